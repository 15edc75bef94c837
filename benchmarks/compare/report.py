"""Tables in Markdown, a plot, and the raw figures of a comparison."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from compare.measures import Better, Figures, Measure, Summary, advantage, ratio, summarise
from compare.scenarios import Scenario

# Distinguishable with any colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
ARROWS = {Better.HIGHER: "↑", Better.LOWER: "↓"}


@dataclass
class Results:
    """Figures by scenario key and server name, one entry a round; ``facts`` say what was measured on what."""

    reference: str
    servers: Sequence[str]
    scenarios: Sequence[Scenario]
    facts: dict[str, str]
    rounds: dict[tuple[str, str], list[Figures]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, scenario: Scenario, server: str, figures: Figures) -> None:
        """Keep what a round has brought."""
        self.rounds.setdefault((scenario.key, server), []).append(figures)

    def take(self, written: str) -> None:
        """Put in what ``as_json`` has written of another run; its scenarios replace those that are here."""
        run = json.loads(written)
        for entry in run["figures"]:
            self.rounds[entry["scenario"], entry["server"]] = entry["rounds"]
            if run["facts"].get("model") != self.facts.get("model"):
                title = next(scenario.title for scenario in self.scenarios if scenario.key == entry["scenario"])
                self.facts[f"model of {title!r}"] = run["facts"]["model"]

    def values(self, scenario: Scenario, server: str, measure: Measure) -> list[float]:
        """Return a figure of all rounds."""
        return [figures[measure.name] for figures in self.rounds.get((scenario.key, server), [])]

    def ratio(self, scenario: Scenario, server: str, measure: Measure) -> Summary | None:
        """Return a figure beside the reference's."""
        return ratio(self.values(scenario, server, measure), self.values(scenario, self.reference, measure))

    @property
    def others(self) -> list[str]:
        """All servers but the reference."""
        return [server for server in self.servers if server != self.reference]


def markdown(results: Results) -> str:
    """Return the facts and one table: medians with ranges, and ratios beside the reference."""
    head = ["scenario", "figure", *results.servers, *(f"{name} / {results.reference}" for name in results.others)]
    rows = [
        _row(results, scenario, measure)
        for scenario in results.scenarios
        for measure in scenario.measures
        if any(results.values(scenario, server, measure) for server in results.servers)
    ]
    lines = [
        *(f"- {name}: {value}" for name, value in results.facts.items()),
        "",
        *(_line(cells) for cells in (head, ["---"] * len(head), *rows)),
        "",
        "Medians (ranges); ratios of the medians (range of the ratios within a round). ↑ more is better, ↓ less is.",
        *(f"\nFailed: {failure}" for failure in results.failures),
    ]
    return "\n".join(lines) + "\n"


def _row(results: Results, scenario: Scenario, measure: Measure) -> list[str]:
    figures = [_figure(results.values(scenario, server, measure)) for server in results.servers]
    ratios = [_ratio(results.ratio(scenario, server, measure)) for server in results.others]
    unit = "" if measure.unit == measure.name else f", {measure.unit}"
    return [scenario.title, f"{measure.name}{unit} {ARROWS[measure.better]}", *figures, *ratios]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(values: Sequence[float]) -> str:
    if not values:
        return "failed"
    summary = summarise(values)
    return f"{_short(summary.median)} ({_short(summary.lowest)} to {_short(summary.highest)})"


def _ratio(summary: Summary | None) -> str:
    if summary is None:
        return ""
    return f"**{summary.median:.2f}** ({summary.lowest:.2f} to {summary.highest:.2f})"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def shares(values: Sequence[float]) -> str:
    """Return shares from 0 to 1 as a median and the highest."""
    if not values:
        return "unknown"
    summary = summarise(values)
    return f"{summary.median:.0%} of all cores at the median, {summary.highest:.0%} at most"


def as_json(results: Results) -> str:
    """Return facts, failures and the figures of every round."""
    rounds = [
        {"scenario": scenario, "server": server, "rounds": [dict(figures) for figures in rounds]}
        for (scenario, server), rounds in results.rounds.items()
    ]
    whole = {
        "facts": dict(results.facts),
        "reference": results.reference,
        "figures": rounds,
        "failures": results.failures,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def can_plot() -> bool:
    """Say whether matplotlib is installed; nothing but the plot needs it."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(results: Results, path: Path) -> None:
    """Write ``path`` with the suffixes .png and .svg: how many times better than the reference each server is.

    Raises ``ImportError`` without matplotlib.
    """
    bars = [
        (scenario, measure)
        for scenario in results.scenarios
        for measure in scenario.measures[: scenario.num_plotted]
        if any(results.ratio(scenario, server, measure) for server in results.others)
    ]
    matplotlib: Any = importlib.import_module("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    matplotlib.rcParams["svg.hashsalt"] = "compare"  # the same figures give the same file
    figure = figures.Figure(figsize=(10, 1.2 + 0.32 * len(bars) * max(len(results.others), 1)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / max(len(results.others), 1)
    for number, server in enumerate(results.others):
        _draw(axes, results, server, bars, number, height)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(bars)), [f"{scenario.title}: {measure.name}" for scenario, measure in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g} x")
    axes.set_xlabel(f"times better than {results.reference} (thin lines: range of the rounds)", fontsize=8)
    axes.set_xlim(left=min(axes.get_xlim()[0], 0.5))
    axes.set_title("\n".join(f"{name}: {value}" for name, value in results.facts.items() if name in TITLE), fontsize=8)
    axes.legend(loc="lower right")
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=150)


TITLE = ("hardware", "model")


class _Axes(Protocol):
    """What is used of matplotlib's."""

    def barh(self, y: list[float], width: list[float], height: float, **options: object) -> object: ...

    def plot(self, x: list[float], y: list[float], **options: object) -> object: ...


def _draw(
    axes: _Axes,
    results: Results,
    server: str,
    bars: Sequence[tuple[Scenario, Measure]],
    number: int,
    height: float,
) -> None:
    found = [
        (index + (number - (len(results.others) - 1) / 2) * height, advantage(summary, measure.better))
        for index, (scenario, measure) in enumerate(bars)
        if (summary := results.ratio(scenario, server, measure)) is not None
    ]
    # bars begin at the reference's 1, so that better and worse point to different sides
    axes.barh(
        [place for place, _ in found],
        [summary.median - 1 for _, summary in found],
        height,
        left=1,
        color=COLOURS[number % len(COLOURS)],
        label=server,
    )
    for place, summary in found:
        axes.plot([summary.lowest, summary.highest], [place, place], color="black", linewidth=1)
