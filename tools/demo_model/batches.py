"""From conversations to batches: tokens, loss weights, and rows packed by length."""

import bisect
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from demo_model.conversations import conversation
from demo_model.template import rendered
from demo_model.tokens import TURN_END, TURN_START

ROW_LENGTHS = (128, 224, 352, 896)
BATCH_TOKENS = 2048
POOL = 3000
LEAP_SHARE = 0.05
LONGEST_LEAP = 1100

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sample:
    """A conversation as tokens: which of them the assistant produces, and where each stands."""

    ids: list[int]
    answered: list[bool]
    positions: list[int]


@dataclass
class Row:
    """One row of a batch, filled with conversations."""

    length: int
    samples: list[Sample] = field(default_factory=list)
    used: int = 0

    def add(self, sample: Sample) -> None:
        """Append a conversation; the caller has seen that it fits."""
        self.samples.append(sample)
        self.used += len(sample.ids)


def _answer_mask(ids: list[int], opening: list[int], end: int) -> list[bool]:
    """True at each token that the assistant has to produce, its end of turn included."""
    mask, inside = [], False
    for index, token in enumerate(ids):
        mask.append(inside)
        if inside and token == end:
            inside = False
        elif ids[max(0, index + 1 - len(opening)) : index + 1] == opening:
            inside = True
    return mask


def _positions(ids: list[int], end: int, source: random.Random) -> list[int]:
    """Some conversations leap ahead after a turn: distances of long conversations at the price of short ones."""
    counted = list(range(len(ids)))
    if source.random() > LEAP_SHARE:
        return counted
    after = source.choice([index for index, token in enumerate(ids) if token == end])
    leap = source.randint(1, LONGEST_LEAP)
    return [position + leap if position > after else position for position in counted]


def _samples(tokenizer: Tokenizer, source: random.Random, count: int, *, basics: bool) -> list[Sample]:
    made = (conversation(source, basics=basics) for _ in range(count))
    texts = [rendered(each.messages, each.tools) for each in made]
    opening = tokenizer.encode(f"{TURN_START}assistant\n").ids
    (end,) = tokenizer.encode(TURN_END).ids
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    return [
        Sample(ids, _answer_mask(ids, opening, end), _positions(ids, end, source))
        for ids in encoded
        if len(ids) <= ROW_LENGTHS[-1]
    ]


def _packed(pool: list[Sample]) -> list[Row]:
    """Longest first, each into the fullest row that has room, else into the shortest new row."""
    rows: list[Row] = []
    gaps: list[tuple[int, int]] = []
    for sample in sorted(pool, key=lambda sample: -len(sample.ids)):
        size = len(sample.ids)
        at = bisect.bisect_left(gaps, (size, 0))
        if at < len(gaps):
            _, index = gaps.pop(at)
        else:
            index = len(rows)
            rows.append(Row(next(length for length in ROW_LENGTHS if length >= size)))
        rows[index].add(sample)
        bisect.insort(gaps, (rows[index].length - rows[index].used, index))
    return rows


def arrays(rows: list[Row]) -> Arrays:
    """Rows of one length as the arrays that the network takes."""
    length = rows[0].length
    batch = {name: np.zeros((len(rows), length), np.int32) for name in ("tokens", "targets", "segments", "positions")}
    batch["weights"] = np.zeros((len(rows), length), np.float32)
    for index, row in enumerate(rows):
        start = 0
        for number, sample in enumerate(row.samples, 1):
            size = len(sample.ids)
            inside = slice(start, start + size)
            batch["tokens"][index, inside] = sample.ids
            batch["segments"][index, inside] = number
            batch["positions"][index, inside] = sample.positions
            batch["targets"][index, start : start + size - 1] = sample.ids[1:]
            batch["weights"][index, start : start + size - 1] = sample.answered[1:]
            start += size
    return batch


def _pool_batches(pool: list[Sample], source: random.Random) -> list[Arrays]:
    rows = _packed(pool)
    source.shuffle(rows)
    found = []
    for length in ROW_LENGTHS:
        of_length = [row for row in rows if row.length == length]
        size = BATCH_TOKENS // length
        found += [arrays(of_length[at : at + size]) for at in range(0, len(of_length) - size + 1, size)]
    source.shuffle(found)
    return found


def stream(tokenizer: Tokenizer, seed: int, basic_batches: int) -> Iterator[Arrays]:
    """Batches without end, at first of short conversations; the same seed gives the same batches."""
    source = random.Random(seed)
    given = 0
    while True:
        batches = _pool_batches(_samples(tokenizer, source, POOL, basics=given < basic_batches), source)
        yield from batches
        given += len(batches)
