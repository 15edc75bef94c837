"""Which tokens the next step computes: pure decisions over counts, no tensors and no queues.

There are no phases, only catching up: a sequence has known tokens and computed tokens, and a step spends a budget on
closing the gaps, decodes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_FIRST_PROMPT_BUDGET = 64
_LEAST_PROMPT_BUDGET = 16
_SMOOTHING = 0.3


@dataclass(frozen=True, slots=True)
class Gap:
    """How far one running sequence is behind; a decoding sequence lacks just the token that was sampled last."""

    sequence_id: int
    num_missing: int
    is_decoding: bool


def schedule(gaps: Sequence[Gap], *, batch_size: int, prompt_budget: int) -> list[tuple[int, int]]:
    """Spend one step.

    Args:
        gaps: running sequences in order of admission.
        batch_size: most tokens of the step; at least the number of sequences.
        prompt_budget: most prompt tokens that may accompany decodes; without decodes prompts take the whole batch.

    Returns:
        Pairs of sequence id and number of tokens to compute, decodes before prompts, earlier prompts first.

    """
    decodes = [(gap.sequence_id, 1) for gap in gaps if gap.is_decoding]
    available = batch_size - len(decodes)
    if decodes:
        available = min(available, prompt_budget)
    chunks = []
    for gap in gaps:
        if gap.is_decoding or available <= 0:
            continue
        num_tokens = min(gap.num_missing, available)
        chunks.append((gap.sequence_id, num_tokens))
        available -= num_tokens
    return decodes + chunks


class PromptBudget:
    """How many prompt tokens fit a step beside running streams, learned from measured steps.

    A step is modelled as ``base + num_prompt_tokens * per_token`` seconds, both smoothed exponentially; steps with many
    prompt tokens say more about ``per_token`` than those with few.
    """

    def __init__(self, target_seconds: float, batch_size: int) -> None:
        self._target = target_seconds
        self._batch_size = batch_size
        self._base: float | None = None
        self._prompt_seconds = 0.0
        self._prompt_tokens = 0.0

    def observe(self, *, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Learn from a finished step."""
        if num_decodes and not num_prompt_tokens:
            self._base = seconds if self._base is None else self._base + _SMOOTHING * (seconds - self._base)
        elif num_prompt_tokens:
            base = (self._base or 0.0) if num_decodes else 0.0
            self._prompt_seconds += max(seconds - base, 0.0) - _SMOOTHING * self._prompt_seconds
            self._prompt_tokens += num_prompt_tokens - _SMOOTHING * self._prompt_tokens

    @property
    def tokens(self) -> int:
        """Prompt tokens that keep the next step under the target; never so few that prompts stand still."""
        if self._prompt_seconds <= 0:
            return min(_FIRST_PROMPT_BUDGET, self._batch_size)
        spare = self._target - (self._base or 0.0)
        affordable = spare * self._prompt_tokens / self._prompt_seconds
        return int(min(max(affordable, _LEAST_PROMPT_BUDGET), self._batch_size))
