"""What ``llmspell bench`` shows: a table for people, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from server import __version__
from server.cli.bench_figures import Figures, Measurement, figures, notes, round_figures

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from server.cli.bench_run import BenchPlan, BenchResult

NOT_AVAILABLE = "n/a"
_LABEL_WIDTH = 24
_CELL_WIDTH = 15
_GAP_WIDTH = 3
_RATIO_WIDTH = 6


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    value: Callable[[Figures], float | None]
    show: Callable[[float], str]


def shown_seconds(seconds: float) -> str:
    """Write a time with three digits or more, in at most eight characters."""
    if seconds < 0.01:
        return f"{seconds * 1e3:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"


def shown_size(num_bytes: float) -> str:
    """Write a number of bytes with three digits or more, in at most eight characters."""
    unit, size = ("GiB", 2**30) if num_bytes >= 2**30 else ("MiB", 2**20)
    number = num_bytes / size
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f} {unit}"


def shown_speed(speed: float) -> str:
    """Write a number of tokens per second."""
    return f"{speed:.1f}"


def shown_ratio(value: float, reference: float | None) -> str:
    """Write how many times the reference a value is; nothing where that is not known."""
    if not reference:
        return ""
    ratio = value / reference
    return f"{ratio:.2f}x" if ratio < 100 else f"{ratio:.0f}x"


def print_table(console: Console, result: BenchResult, plan: BenchPlan) -> None:
    """Print the figures, specs side by side, as many as there is room for; below them what is to be said of them."""
    from rich.text import Text  # noqa: PLC0415 - slow, and not needed for JSON

    shown = [(each, figures(each, plan.streams)) for each in result.measurements]
    reference = next((pair for pair in shown if pair[0].rounds), None)
    if reference is not None:
        num_columns = max((console.width - _LABEL_WIDTH) // (_GAP_WIDTH + _CELL_WIDTH), 1)
        for start in range(0, len(shown), num_columns):
            console.print(_table(shown[start : start + num_columns], reference[1], plan.streams, console.width))
            console.print()
    for line in _notes(shown, plan):
        console.print(Text(line))
    if reference is not None:
        for line in _legend(shown, reference[0].spec, result, plan):
            console.print(Text(line))


def _table(
    shown: Sequence[tuple[Measurement, Figures]], reference: Figures, streams: Sequence[int], width: int
) -> Table:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", min_width=_LABEL_WIDTH)
    most = max((width - _LABEL_WIDTH) // len(shown) - _GAP_WIDTH, _CELL_WIDTH)
    for measurement, _ in shown:
        table.add_column(
            Text(_heading(measurement)), justify="right", min_width=_CELL_WIDTH, max_width=most, overflow="fold"
        )
    for row in _rows(streams):
        table.add_row(row.label, *(Text(_cell(row, each, reference)) for _, each in shown))
    return table


def _heading(measurement: Measurement) -> str:
    """Return a spec with its backend on a line of its own where it is too long for one."""
    spec = measurement.spec
    shown = spec if len(spec) <= _CELL_WIDTH else spec.replace("@", "\n@")
    return shown if measurement.error is None else f"{shown}\n(failed)"


def _rows(streams: Sequence[int]) -> list[_Row]:
    rows = [
        _Row("load", lambda each: each.load_seconds, shown_seconds),
        _Row("memory", lambda each: each.memory_bytes, shown_size),
        _Row("memory, predicted", lambda each: each.predicted_memory_bytes, shown_size),
        _Row("first token", lambda each: each.first_token_seconds, shown_seconds),
        _Row("first token, seen prompt", lambda each: each.seen_first_token_seconds, shown_seconds),
        _Row("gap between tokens", lambda each: each.gap_seconds, shown_seconds),
        _Row("tokens/s, generation", lambda each: each.tokens_per_second, shown_speed),
    ]
    together = (
        _Row(f"tokens/s, {num} stream{'' if num == 1 else 's'}", partial(_together, num=num), shown_speed)
        for num in streams
    )
    return [*rows, *together]


def _together(each: Figures, num: int) -> float | None:
    return each.together[num]


def _cell(row: _Row, each: Figures, reference: Figures) -> str:
    value = row.value(each)
    if value is None:
        return f"{NOT_AVAILABLE} {'':{_RATIO_WIDTH}}"
    ratio = "" if each is reference else shown_ratio(value, row.value(reference))
    return f"{row.show(value)} {ratio:>{_RATIO_WIDTH}}"


def _notes(shown: Sequence[tuple[Measurement, Figures]], plan: BenchPlan) -> Iterator[str]:
    """Say what is to be said of specs, once for all of which it is true."""
    specs_of = dict[str, list[str]]()
    for measurement, each in shown:
        for note in notes(measurement, each, plan.max_tokens):
            specs_of.setdefault(note, []).append(measurement.spec)
    for note, specs in specs_of.items():
        yield f"{', '.join(specs)}: {note}"


def _legend(
    shown: Sequence[tuple[Measurement, Figures]], reference: str, result: BenchResult, plan: BenchPlan
) -> Iterator[str]:
    """Say what the figures are."""
    lengths = sorted({each.prompt_tokens for _, each in shown if each.prompt_tokens is not None})
    rounds = "One round" if plan.rounds == 1 else f"Medians of {plan.rounds} rounds"
    prompts = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    yield (
        f"{rounds}; prompts of {prompts} tokens, answers of at most {plan.max_tokens}, greedy. "
        "First token: prompt not seen before; seen prompt: the same right after. Generation: from the first token on, "
        "one stream. N streams: all tokens from the requests on, prompts included."
    )
    if len(shown) > 1:
        yield f"x: times the figure of {reference}."
    devices = ", ".join(f"{device.name} ({device.description})" for device in result.devices)
    yield f"llmspell {__version__}; --seed {plan.seed}{f'; {devices}' if devices else ''}."


def as_json(result: BenchResult, plan: BenchPlan) -> str:
    """Return all that was measured as one JSON document; times are seconds, sizes bytes."""
    document = {
        "version": __version__,
        "plan": asdict(plan),
        "devices": [{"name": each.name, "description": each.description} for each in result.devices],
        "results": [_entry(each, plan) for each in result.measurements],
    }
    return json.dumps(document, indent=2)


def _entry(measurement: Measurement, plan: BenchPlan) -> Mapping[str, Any]:
    shown = figures(measurement, plan.streams)
    return {
        "spec": measurement.spec,
        "backend": measurement.backend,
        "error": measurement.error,
        **asdict(shown),
        "rounds": [asdict(each) for each in round_figures(measurement)],
        "loads_seconds": measurement.loads,
        "memory_by_device": asdict(measurement.memory),
        "notes": notes(measurement, shown, plan.max_tokens),
    }
