"""Which running sequences guess ahead, and how far: the seam between the step loop and kinds of drafters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Several

from server.engine.drafting import Draft, Drafter, draft_lengths
from server.engine.sequence import Sequence
from server.engine.step_costs import StepCosts

_NOTHING: Mapping[int, Several[int]] = {}


class Speculation:
    """Drafts for the sequences of one engine. Only its thread calls it."""

    def __init__(self, new_drafter: Callable[[], Drafter] | None, num_rows: int) -> None:
        """Guess with drafters of one kind, or not at all.

        Args:
            new_drafter: makes the drafter of a sequence; ``None`` for no speculation.
            num_rows: rows of logits that a step can have.

        """
        self._new_drafter = new_drafter
        self._num_rows = num_rows

    def propose(self, running: Collection[Sequence], costs: StepCosts, target: float) -> Mapping[int, Several[int]]:
        """Return what to verify in the next step, by sequence id, as far as that promises more tokens per second.

        Nothing as long as a prompt is to be computed, which needs the time more. ``target`` is the longest step, in
        seconds.
        """
        room = self._num_rows - len(running)
        if self._new_drafter is None or room <= 0 or not all(sequence.is_decoding for sequence in running):
            return _NOTHING
        drafts = [self._draft(sequence, min(room, sequence.num_left - 1)) for sequence in running]
        lengths = draft_lengths(
            drafts,
            num_decodes=sum(sequence.num_missing for sequence in running),
            seconds=costs.widths.hopeful_seconds,
            most_tokens=room,
            most_seconds=target,
        )
        return {
            sequence.sequence_id: draft.tokens[:length]
            for sequence, draft, length in zip(running, drafts, lengths, strict=True)
            if draft is not None and length
        }

    def _draft(self, sequence: Sequence, most: int) -> Draft | None:
        if most <= 0 or sequence.is_drawn or self._new_drafter is None:
            return None
        if sequence.drafter is None:
            sequence.drafter = self._new_drafter()
        draft = sequence.drafter.propose(sequence.tokens, most)
        return None if draft is None else Draft(draft.tokens[:most], draft.chance)
