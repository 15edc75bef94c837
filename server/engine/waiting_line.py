"""Who is admitted next: keys in turn, within a key who came first."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable

from server.engine.sequence import Generation, Sequence

Key = str | None


class WaitingLine:
    """Sequences that have no cells yet. Only the engine's thread calls it."""

    def __init__(self) -> None:
        self._lines: dict[Key, deque[Sequence]] = {}
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting  # any thread may ask

    def extend(self, sequences: Iterable[Sequence]) -> None:
        """Have sequences queue up behind those of their key."""
        for sequence in sequences:
            self._lines.setdefault(sequence.generation.request.key, deque()).append(sequence)
            self._num_waiting += 1

    def remove(self, generation: Generation) -> None:
        """Have all sequences of a generation leave."""
        key = generation.request.key
        line = self._lines.pop(key, deque())
        rest = deque(sequence for sequence in line if sequence.generation is not generation)
        self._num_waiting -= len(line) - len(rest)
        if rest:
            self._lines[key] = rest

    def clear(self) -> None:
        """Have everybody leave."""
        self._lines.clear()
        self._num_waiting = 0

    def admit(self, running: Iterable[Sequence], place: Callable[[Sequence], bool]) -> None:
        """Let in who can be placed: next is always the key with the fewest running sequences, of equals who came first.

        Who waits for another one's prompt is passed by. Who finds no room ends it: nobody overtakes a large request.

        Args:
            running: sequences that have cells.
            place: gives a sequence its cells, or returns ``False``.

        """
        num_running = Counter(sequence.generation.request.key for sequence in running)
        rest = {key: iter([*line]) for key, line in self._lines.items()}
        heads = {key: next(line) for key, line in rest.items()}
        while heads:
            key = min(heads, key=lambda key: (num_running[key], heads[key].generation.generation_id))
            sequence = heads[key]
            if place(sequence):
                self._leave(key, sequence)
                num_running[key] += 1
            elif sequence.wait is None:
                return
            following = next(rest[key], None)
            if following is None:
                del heads[key]
            else:
                heads[key] = following

    def _leave(self, key: Key, sequence: Sequence) -> None:
        self._lines[key].remove(sequence)
        self._num_waiting -= 1
        if not self._lines[key]:
            del self._lines[key]
