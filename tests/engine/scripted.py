"""A model without llama.cpp: it keeps KV contents as lists of tokens and checks everything the engine asks of it."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from server.chat.answer_format import AnswerParser
from server.core.errors import NoFreeCells
from server.core.events import (
    ChoiceFinished,
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from server.core.request import SamplingParameters
from server.engine.answer import ThinkingLimit
from server.engine.constraint import Constraint
from server.engine.drafting import Draft, Drafter
from server.engine.engine import Delivery, Engine, EngineOptions
from server.engine.kv_cells import Saving
from server.engine.runner import Chunk, DeviceSampling, KVMemory, Logits, RunnerShape, State, Tokens
from server.engine.sequence import GenerationRequest

END = 0
GREEDY = SamplingParameters(temperature=0)

Model = Callable[[tuple[int, ...]], Logits]


class Clock:
    """Seconds that pass only when a test says so; they begin at zero, the one time that is false."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class ScriptedVocabulary:
    """Token ``i`` is ``pieces[i]``; token 0 ends a turn."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    @property
    def end_tokens(self) -> Sequence[int]:
        return (END,)

    def piece(self, token: int) -> bytes:
        return self._pieces[token]

    def is_end(self, token: int) -> bool:
        return token == END


LETTERS = ScriptedVocabulary(
    [b"", *(bytes([letter]) for letter in b"abcdefghijklmnopqrstuvwxyz .,!?"), b"\xc3", b"\xa9"]
)
NUM_LETTERS = 34


def letters(text: str) -> tuple[int, ...]:
    """Tokens of ``text``, one for each letter."""
    return tuple(b" abcdefghijklmnopqrstuvwxyz .,!?".index(letter.encode(), 1) for letter in text)


def babbling(vocabulary_size: int = NUM_LETTERS, *, end_bias: float = 0.0) -> Model:
    """Logits that look random and depend on every token held: one wrong cell changes all that follows."""

    def logits(tokens: tuple[int, ...]) -> Logits:
        numbers = np.random.default_rng(zlib.crc32(np.array(tokens, dtype=np.int32).tobytes()))
        row = numbers.normal(scale=2, size=vocabulary_size).astype(np.float32)
        row[END] += np.float32(end_bias)
        return row

    return logits


def reciting(lines: dict[str, str], vocabulary_size: int = NUM_LETTERS) -> Model:
    """Logits that answer each prompt with its line, then end the turn."""
    script = {letters(prompt): (*letters(line), END) for prompt, line in lines.items()}

    def logits(tokens: tuple[int, ...]) -> Logits:
        prompt = max((prompt for prompt in script if tokens[: len(prompt)] == prompt), key=len)
        row = np.zeros(vocabulary_size, dtype=np.float32)
        row[script[prompt][len(tokens) - len(prompt)]] = 20
        return row

    return logits


class Guessing:
    """A drafter that knows what a model says, taken greedily, and is wrong at every n-th guess.

    ``excess`` tokens are proposed beyond those that were asked for, which a drafter must not do.
    """

    def __init__(self, model: Model, *, wrong_every: int = 0, excess: int = 0) -> None:
        self._model = model
        self._wrong_every = wrong_every
        self._excess = excess
        self._num_guessed = 0

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        known = tuple(tokens)
        for _ in range(most + self._excess):
            likeliest = int(self._model(known).argmax())
            self._num_guessed += 1
            is_wrong = self._wrong_every and self._num_guessed % self._wrong_every == 0
            known = (*known, (likeliest + 1) % NUM_LETTERS if is_wrong else likeliest)
        return Draft(known[len(tokens) :], chance=0.99)


@dataclass(eq=False, slots=True)
class _Cell:
    token: int


@dataclass(frozen=True, slots=True)
class SavedCells:
    """What a scripted runner has saved: the tokens, of which each takes as many bytes as the runner says."""

    tokens: tuple[int, ...]
    num_bytes: int
    lowest: int


class ScriptedRunner:
    """A runner with a unified cache: sequences may share cells, and a cell counts once.

    What breaks the contract of ``Runner`` is noted in ``violations`` as well as raised, because the engine rightly
    survives exceptions. ``before_decode`` lets a test raise, or wait, in the middle of a step; where it raises
    ``NoFreeCells``, nothing was computed. ``seconds`` is what a batch costs on ``clock``.

    Memory that cannot be cut, as recurrent memory, is shared only as a whole; other memory cannot be shared at all.
    Memory that is not unified copies what is shared. With a window it says that it could remember everything, as
    llama.cpp does, and remembers no more than the window. ``saves`` and ``restores`` tell whether that is
    possible.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_sequences: int = 4,
        num_cells: int = 512,
        sequence_len: int = 256,
        batch_size: int = 32,
        can_share: bool = True,
        can_cut: bool = True,
        num_rows: int = 16,
        can_draw: bool = False,
        is_unified: bool = True,
        window_len: int = 0,
        vocabulary_size: int = NUM_LETTERS,
    ) -> None:
        memory = KVMemory(is_unified=is_unified, can_cut=can_cut, window_len=window_len, num_kept=sequence_len)
        self.shape = RunnerShape(
            num_sequences, num_cells, sequence_len, batch_size, vocabulary_size, max(num_sequences, num_rows), memory
        )
        self.clock = Clock()
        self.violations: list[str] = []
        self.batches: list[list[Chunk]] = []
        self.num_cleared = 0
        self.before_decode: Callable[[Sequence[Chunk]], None] = lambda _: None
        self.fails_to_warm_up: Exception | None = None
        self.before_clear: Callable[[int], None] = lambda _: None
        self.on_rest: Callable[[], None] = lambda: None
        self.seconds: Callable[[Sequence[Chunk]], float] = lambda _: 0.0
        self.most_cells = 0
        self.token_bytes = 10
        self.saves = True
        self.restores = True
        self.num_saved = self.num_restored = 0
        self._model = model
        self._can_share = can_share
        self._can_draw = can_draw
        self._drawing: dict[int, DeviceSampling] = {}
        self._drawn: Tokens = np.empty(0, dtype=np.int32)
        self._held: list[list[_Cell]] = [[] for _ in range(num_sequences)]
        self._lowest = [0] * num_sequences
        self._broken: set[int] = set()
        self._rows: Logits = np.empty((0, vocabulary_size), dtype=np.float32)
        self._thread: int | None = None

    @property
    def num_cells_used(self) -> int:
        return len({id(cell) for cells in self._held for cell in cells})

    @property
    def num_computed(self) -> int:
        """Tokens that all batches computed together."""
        return sum(len(chunk.tokens) for batch in self.batches for chunk in batch)

    def held(self, sequence_id: int) -> tuple[int, ...]:
        return tuple(cell.token for cell in self._held[sequence_id])

    def warm_up(self) -> None:
        if self.fails_to_warm_up is not None:
            raise self.fails_to_warm_up

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        self._check_thread()
        self._check_batch(chunks)
        self.batches.append([*chunks])
        self._rows[:] = np.nan  # the memory of the last call is not valid any more
        try:
            self.before_decode(chunks)
        except NoFreeCells:
            self.batches.pop()
            raise
        except Exception:
            for chunk in chunks:
                self._broken.add(chunk.sequence_id)
                self._held[chunk.sequence_id] += [_Cell(-1) for _ in chunk.tokens]
            raise
        self._forget_what_is_behind_windows()
        for chunk in chunks:
            self._held[chunk.sequence_id] += [_Cell(token) for token in chunk.tokens]
        self.most_cells = max(self.most_cells, self.num_cells_used)
        self._demand(self.num_cells_used <= self.shape.num_cells, "the cache is full")
        self.clock.now += self.seconds(chunks)
        rows = [
            self._model(self.held(chunk.sequence_id)[: chunk.start + len(chunk.tokens) - behind])
            for chunk in chunks
            for behind in reversed(range(chunk.num_rows))
        ]
        self._rows = np.array(rows, dtype=np.float32).reshape(len(rows), self.shape.vocabulary_size)
        owners = [chunk.sequence_id for chunk in chunks for _ in range(chunk.num_rows)]
        self._drawn = np.array([self._draw(i, owner) for i, owner in enumerate(owners)], dtype=np.int32)
        self._rows[self._drawn >= 0] = np.nan
        return self._rows

    def _draw(self, row: int, sequence_id: int) -> int:
        if sequence_id not in self._drawing:
            return -1
        logits = self._rows[row].copy()
        for token, bias in self._drawing[sequence_id].logit_bias.items():
            logits[token] += bias
        return int(logits.argmax())

    def share_prefix(self, source: int, target: int, length: int) -> bool:
        self._check_thread()
        self._demand(0 < length <= len(self._held[source]), f"sequence {source} does not hold {length} tokens")
        self._demand(source not in self._broken, f"sequence {source} has unknown contents")
        if not self._can_share or not self._can_take(source, length):
            self._held[target] = []
            self._lowest[target] = 0
            return False
        self._lowest[target] = self._lowest[source]
        shared = self._held[source][:length]
        must_copy = source != target and not self.shape.memory.is_unified
        self._held[target] = [_Cell(cell.token) for cell in shared] if must_copy else shared
        self._broken.discard(target)
        return True

    def join_prefix(self, source: int, target: int, length: int) -> bool:
        self._check_thread()
        self._demand(self.shape.memory.can_join, "this memory cannot join prefixes")
        self._demand(source != target, f"sequence {source} is joined with itself")
        same = self.held(source)[:length] == self.held(target)[:length]
        self._demand(same and 0 < length <= len(self.held(target)), f"{source} and {target} differ before {length}")
        self._held[target] = self._held[source][:length] + self._held[target][length:]
        return True

    def clear(self, sequence_id: int) -> None:
        self._check_thread()
        self.before_clear(sequence_id)
        self.num_cleared += 1
        self._held[sequence_id] = []
        self._lowest[sequence_id] = 0
        self._broken.discard(sequence_id)

    def num_state_bytes(self, sequence_id: int) -> int:
        self._check_thread()
        return len(self._held[sequence_id]) * self.token_bytes

    def save(self, sequence_id: int) -> SavedCells | None:
        self._check_thread()
        self._demand(sequence_id not in self._broken, f"sequence {sequence_id} has unknown contents")
        self._demand(len(self._held[sequence_id]) > 0, f"sequence {sequence_id} is saved, but empty")
        if not self.saves:
            return None
        self.num_saved += 1
        held = self.held(sequence_id)
        lowest = self.shape.memory.lowest_saved(self._lowest[sequence_id], len(held))
        return SavedCells(held, self.num_state_bytes(sequence_id), lowest)

    def restore(self, sequence_id: int, state: State) -> bool:
        self._check_thread()
        self._demand(isinstance(state, SavedCells), f"{state} is nothing that was saved")
        self._demand(not self._held[sequence_id], f"sequence {sequence_id} is restored, but not empty")
        if not self.restores or not isinstance(state, SavedCells):
            return False
        self.num_restored += 1
        self._held[sequence_id] = [_Cell(token) for token in state.tokens]
        self._lowest[sequence_id] = state.lowest
        self._demand(self.num_cells_used <= self.shape.num_cells, "the cache is full")
        return True

    def sample_on_device(self, sequence_id: int, sampling: DeviceSampling | None) -> bool:
        """Draw the likeliest token after the bias, whatever else is asked for."""
        self._check_thread()
        self._drawing.pop(sequence_id, None)
        if sampling is None or not self._can_draw:
            return sampling is None
        self._drawing[sequence_id] = sampling
        return True

    def drawn(self) -> Tokens:
        self._check_thread()
        return self._drawn

    def rest(self) -> None:
        self._check_thread()
        self.on_rest()

    def _can_take(self, source: int, length: int) -> bool:
        held = len(self._held[source])
        return self.shape.memory.can_take(length, num_computed=held, lowest=self._lowest[source])

    def _forget_what_is_behind_windows(self) -> None:
        window_len = self.shape.memory.window_len
        if window_len:
            pairs = zip(self._lowest, self._held, strict=True)
            self._lowest = [max(lowest, len(held) - window_len) for lowest, held in pairs]

    def _check_batch(self, chunks: Sequence[Chunk]) -> None:
        ids = [chunk.sequence_id for chunk in chunks]
        self._demand(len(chunks) > 0, "an empty batch")
        self._demand(len(set(ids)) == len(ids), f"two chunks of one sequence in {ids}")
        self._demand(sum(len(chunk.tokens) for chunk in chunks) <= self.shape.batch_size, "the batch is too large")
        self._demand(sum(chunk.num_rows for chunk in chunks) <= self.shape.num_rows, "too many rows of logits")
        for chunk in chunks:
            held = len(self._held[chunk.sequence_id])
            self._demand(chunk.sequence_id not in self._broken, f"sequence {chunk.sequence_id} has unknown contents")
            self._demand(len(chunk.tokens) > 0, "an empty chunk")
            self._demand(0 <= chunk.num_rows <= len(chunk.tokens), f"{chunk} asks for more rows than it has tokens")
            self._demand(chunk.start == held, f"{chunk} starts at {chunk.start}, but {held} tokens are held")
            self._demand(held + len(chunk.tokens) <= self.shape.sequence_len, f"{chunk} leaves the context")
            self._demand(all(0 <= token < self.shape.vocabulary_size for token in chunk.tokens), f"{chunk}: no token")

    def _check_thread(self) -> None:
        self._thread = self._thread or threading.get_ident()
        self._demand(self._thread == threading.get_ident(), "two threads use one runner")

    def _demand(self, condition: bool, complaint: str) -> None:  # noqa: FBT001
        if not condition:
            self.violations.append(complaint)
            raise AssertionError(complaint)


@dataclass
class Heard:
    """What was delivered for one generation."""

    events: list[Event] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finished | Failed)

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    @property
    def failed(self) -> Failed:
        last = self.events[-1]
        assert isinstance(last, Failed), last
        return last

    def text(self, index: int = 0) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta) and event.index == index)

    def reasoning(self, index: int = 0) -> str:
        return "".join(e.text for e in self.events if isinstance(e, ReasoningDelta) and e.index == index)

    def calls(self, index: int = 0) -> list[tuple[str | None, str]]:
        """Names and arguments; the first delta of each call, and no other, has to name it."""
        deltas = [event for event in self.events if isinstance(event, ToolCallDelta) and event.index == index]
        calls: list[tuple[str | None, str]] = []
        for delta in deltas:
            is_new = delta.call == len(calls)
            assert (delta.name is not None, delta.id is not None) == (is_new, is_new), delta
            if is_new:
                calls.append((delta.name, ""))
            assert delta.call == len(calls) - 1, delta
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
        return calls

    def reason(self, index: int = 0) -> FinishReason:
        (reason,) = [e.reason for e in self.events if isinstance(e, ChoiceFinished) and e.index == index]
        return reason

    def logprobs(self, index: int = 0) -> list[TokenLogprob]:
        deltas = [event for event in self.events if isinstance(event, TextDelta) and event.index == index]
        return [entry for delta in deltas for entry in delta.logprobs]

    def check(self) -> None:
        """Hold the events against the grammar of ``server.core.events``."""
        kinds = [type(event) for event in self.events]
        assert kinds.count(Started) <= 1
        assert kinds.count(Finished) + kinds.count(Failed) <= 1
        assert Finished not in kinds[:-1]
        assert Failed not in kinds[:-1]
        assert kinds[0] is Started or kinds == [Failed]
        ended = [event.index for event in self.events if isinstance(event, ChoiceFinished)]
        assert len(ended) == len(set(ended))


class Harness:
    """An engine on a scripted runner, and all it delivered. ``step`` does without the thread; ``start`` runs it."""

    def __init__(
        self,
        runner: ScriptedRunner,
        *,
        vocabulary: ScriptedVocabulary = LETTERS,
        queue_size: int = 64,
        inter_token_target: float = 0.05,
        isolates_keys: bool = False,
        public_prefixes: Sequence[Tokens] = (),
        least_wait: int = 1,
        new_drafter: Callable[[], Drafter] | None = None,
        device_sampling: bool = False,
        saving: Saving | None = None,
    ) -> None:
        self.runner = runner
        self.clock = runner.clock
        self.heard: dict[int, Heard] = {}
        self.num_deliveries = 0
        self.before_deliver: Callable[[], None] = lambda: None
        self._news = threading.Condition()
        self.engine = Engine(
            runner,
            vocabulary,
            self._deliver,
            EngineOptions(
                queue_size,
                inter_token_target,
                isolates_keys,
                public_prefixes,
                least_wait,
                new_drafter,
                device_sampling,
                saving or Saving(),
            ),
            clock=self.clock,
        )

    def submit(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 8,
        sampling: SamplingParameters = GREEDY,
        stop: tuple[str, ...] = (),
        n: int = 1,
        top_logprobs: int | None = None,
        key: str | None = None,
        new_parser: Callable[[], AnswerParser] | None = None,
        new_constraint: Callable[[], Constraint] | None = None,
        markers: Mapping[int, bytes] | None = None,
        thinking: ThinkingLimit | None = None,
    ) -> int:
        tokens = letters(prompt) if isinstance(prompt, str) else prompt
        request = GenerationRequest(
            np.array(tokens, dtype=np.int32),
            sampling,
            max_tokens,
            stop,
            n,
            top_logprobs,
            key,
            new_parser,
            new_constraint,
            markers or {},
            thinking,
        )
        return self.engine.submit(request)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            before = self.num_deliveries
            self.engine.step(wait=False)
            assert self.num_deliveries <= before + 1, "more than one delivery in a step"
            assert not self.runner.violations

    def run(self, *, most_steps: int = 2000) -> None:
        """Step until nothing runs and nothing waits."""
        self.step()
        while self.engine.status.num_running or self.engine.status.num_waiting:
            self.step()
            most_steps -= 1
            assert most_steps, "the engine does not come to an end"
        assert self.engine.status.num_reserved_cells == 0

    def answer(self, prompt: str | Sequence[int], **parameters: object) -> Heard:
        """Serve one request to its end."""
        generation_id = self.submit(prompt, **parameters)  # type: ignore[arg-type]
        self.run()
        return self.heard[generation_id]

    def wait_for(self, generation_id: int, condition: Callable[[Heard], bool]) -> Heard:
        """Wait until what the thread delivered meets ``condition``."""
        with self._news:
            met = self._news.wait_for(
                lambda: generation_id in self.heard and condition(self.heard[generation_id]), timeout=20
            )
        assert met, self.heard.get(generation_id)
        return self.heard[generation_id]

    def _deliver(self, deliveries: list[Delivery]) -> None:
        self.before_deliver()
        assert deliveries
        assert len({generation_id for generation_id, _ in deliveries}) == len(deliveries)
        with self._news:
            self.num_deliveries += 1
            for generation_id, events in deliveries:
                assert events
                heard = self.heard.setdefault(generation_id, Heard())
                heard.events += events
                heard.check()
            self._news.notify_all()


def raising_once(error: Exception) -> Callable[..., None]:
    """Return a hook that raises ``error`` when it is called first, then does nothing."""
    pending = [error]

    def hook(*_: object) -> None:
        if pending:
            raise pending.pop()

    return hook
