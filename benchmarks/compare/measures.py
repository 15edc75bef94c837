"""What is measured, and how rounds become medians, ranges and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

Figures = Mapping[str, float]


class Better(StrEnum):
    """In which direction a figure improves."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True)
class Measure:
    """A figure that a scenario yields in each round: its name, its unit and its good direction."""

    name: str
    unit: str
    better: Better


@dataclass(frozen=True)
class Summary:
    """Median and range of a figure over the rounds."""

    median: float
    lowest: float
    highest: float


def summarise(values: Sequence[float]) -> Summary:
    """Return median and range; ``values`` must not be empty."""
    return Summary(statistics.median(values), min(values), max(values))


def ratio(values: Sequence[float], reference: Sequence[float]) -> Summary | None:
    """Return the ratio of the medians, with the range of the ratios within a round.

    Rounds pair up by position; a round that one side lacks is left out of the range. ``None`` where the reference is
    0 or no round has both.
    """
    paired = [value / other for value, other in zip(values, reference, strict=False) if other]
    if not paired or not statistics.median(reference):
        return None
    middle = statistics.median(values) / statistics.median(reference)
    return Summary(middle, min(paired), max(paired))


def advantage(summary: Summary, better: Better) -> Summary:
    """Turn a ratio into "times better than the reference", whichever direction is good."""
    if better is Better.HIGHER:
        return summary
    return Summary(
        *(1 / value if value else float("inf") for value in (summary.median, summary.highest, summary.lowest))
    )
