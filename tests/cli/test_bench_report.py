from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from server.cli.bench_figures import Answer, Measurement, Memory, Round
from server.cli.bench_report import (
    as_json,
    print_table,
    shown_ratio,
    shown_seconds,
    shown_size,
    shown_speed,
)
from server.cli.bench_run import BenchPlan, BenchResult
from server.core.ports import DeviceMemory

PLAN = BenchPlan(256, 9, (1, 16), 1, 7)
DEVICES = [DeviceMemory("CUDA0", "A GPU [1]", 2**34, 0)]


def measured(spec: str, slowness: float = 1.0) -> Measurement:
    def at(seconds: float) -> float:
        return 100.0 + slowness * seconds

    arrivals = tuple(at(0.5 + 0.25 * index) for index in range(9))
    new = Answer(100.0, at(0.5), at(2.5), arrivals, 1, 9, 256, 3, 0.0)
    seen = Answer(100.0, at(0.05), at(0.05), (at(0.05),), 1, 1, 256, 255, 0.0)
    memory = Memory({"CPU": 2**20, "CUDA0": 4 * 2**30}, {"CPU": 2**20, "CUDA0": 5 * 2**30})
    rounds = [Round(new, seen, {1: [new], 16: [new] * 16})]
    return Measurement(spec, "llamacpp", loads=[2.0 * slowness], memory=memory, rounds=rounds)


def printed(*measurements: Measurement, width: int = 80) -> str:
    file = io.StringIO()
    print_table(Console(file=file, width=width, highlight=False), BenchResult(measurements, DEVICES), PLAN)
    return file.getvalue()


def row(output: str, label: str) -> list[str]:
    (line,) = [line for line in output.splitlines() if line.strip().startswith(f"{label}  ")]
    return line.strip().removeprefix(label).split()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.000_123, "0.12 ms"),
        (0.0123, "12.3 ms"),
        (0.9994, "999.4 ms"),
        (1.0, "1.00 s"),
        (65.4321, "65.43 s"),
        (1234, "1234 s"),
    ],
)
def test_seconds(seconds: float, shown: str) -> None:
    assert shown_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (5 * 2**20, "5.00 MiB"),
        (15.75 * 2**20, "15.8 MiB"),
        (900 * 2**20, "900 MiB"),
        (3 * 2**29, "1.50 GiB"),
        (9.996 * 2**30, "10.0 GiB"),
        (2**37, "128 GiB"),
    ],
)
def test_sizes(size: float, shown: str) -> None:
    assert shown_size(size) == shown


def test_speeds_and_ratios() -> None:
    assert shown_speed(81.249) == "81.2"
    assert [shown_ratio(*pair) for pair in ((1, 2), (250, 2), (1, None), (1, 0))] == ["0.50x", "125x", "", ""]


def test_figures_are_side_by_side_with_ratios_beside_the_first() -> None:
    output = printed(measured("local/a"), measured("local/b", 2.0))
    assert row(output, "load") == ["2.00", "s", "4.00", "s", "2.00x"]
    assert row(output, "memory") == ["5.00", "GiB", "5.00", "GiB", "1.00x"]
    assert row(output, "memory, predicted") == ["4.00", "GiB", "4.00", "GiB", "1.00x"]
    assert row(output, "first token") == ["500.0", "ms", "1.00", "s", "2.00x"]
    assert row(output, "first token, seen prompt") == ["50.0", "ms", "100.0", "ms", "2.00x"]
    assert row(output, "gap between tokens") == ["250.0", "ms", "500.0", "ms", "2.00x"]
    assert row(output, "tokens/s, generation") == ["4.0", "2.0", "0.50x"]
    assert row(output, "tokens/s, 1 stream") == ["3.6", "1.8", "0.50x"]
    assert row(output, "tokens/s, 16 streams") == ["57.6", "28.8", "0.50x"]
    assert "x: times the figure of local/a." in output
    assert "--seed 7; CUDA0 (A GPU [1])." in output


def test_one_spec_has_no_ratios() -> None:
    output = printed(measured("local/a"))
    assert row(output, "load") == ["2.00", "s"]
    assert "times the figure" not in output


def test_long_figures_stay_on_their_line() -> None:
    output = printed(measured("local/a", 0.01), measured("local/b", 0.999_8), measured("local/c", 15.0))
    assert row(output, "first token") == ["5.00", "ms", "499.9", "ms", "99.98x", "7.50", "s", "1500x"]
    assert [line for line in output.splitlines() if line.strip().endswith("x") and line.startswith(" ")] == []


@pytest.mark.parametrize("width", [50, 80, 200])
def test_many_specs_with_long_names_fit(width: int) -> None:
    specs = [f"local/a-model-of-some-length-{index}:8b-instruct-q4_K_M@ollama" for index in range(7)]
    output = printed(*map(measured, specs), width=width)
    assert max(map(len, output.splitlines())) <= width
    assert sum(line.strip(" ").count("@ollama") for line in output.partition("One round")[0].splitlines()) == 7
    assert output.count("5.00 GiB") == 7
    assert "..." not in output
    assert "…" not in output


def test_a_spec_that_failed_is_beside_the_others() -> None:
    failed = Measurement("local/c", error="Not there; set [ollama] url.")
    output = printed(failed, measured("local/b", 2.0), measured("local/a"))
    assert row(output, "load")[:3] == ["n/a", "4.00", "s"]
    assert row(output, "load")[3:] == ["2.00", "s", "0.50x"]
    assert "(failed)" in output
    assert "local/c: failed: Not there; set [ollama] url." in output
    assert "x: times the figure of local/b." in output


def test_without_any_figure_there_is_no_table() -> None:
    assert printed(Measurement("local/c", error="Not there.")) == "local/c: failed: Not there.\n"


def test_what_is_true_of_several_specs_is_said_once() -> None:
    measurements = [measured("local/a"), measured("local/b")]
    for each in measurements:
        each.memory = Memory()
    assert "local/a, local/b: memory: the backend does not say.\n" in printed(*measurements)


def test_json_has_all_of_it() -> None:
    failed = Measurement("local/c", error="Not there.")
    document = json.loads(as_json(BenchResult([measured("local/a"), failed], DEVICES), PLAN))
    assert document["plan"] == {"prompt_tokens": 256, "max_tokens": 9, "streams": [1, 16], "rounds": 1, "seed": 7}
    assert document["devices"] == [{"name": "CUDA0", "description": "A GPU [1]"}]
    first, second = document["results"]
    assert (first["spec"], first["backend"], first["error"], first["notes"]) == ("local/a", "llamacpp", None, [])
    assert first["load_seconds"] == 2.0
    assert first["together"] == {"1": pytest.approx(3.6), "16": pytest.approx(57.6)}
    assert first["memory_by_device"]["measured"] == {"CPU": 2**20, "CUDA0": 5 * 2**30}
    assert [each["first_token_seconds"] for each in first["rounds"]] == [0.5]
    assert (second["error"], second["first_token_seconds"], second["rounds"]) == ("Not there.", None, [])
