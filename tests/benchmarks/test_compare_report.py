from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from compare.load import Chat
from compare.measures import Better, Figures, Measure
from compare.prompts import Prompts
from compare.report import Results, as_json, can_plot, markdown, plot, shares
from compare.scenarios import Scenario


async def never(_chat: Chat, _prompts: Prompts) -> Figures:
    raise AssertionError


SPEED = Measure("tokens/s", "tokens/s", Better.HIGHER)
WAIT = Measure("first token", "ms", Better.LOWER)
SCENARIO = Scenario("one", "one user", (SPEED, WAIT), never)


@pytest.fixture
def results() -> Results:
    found = Results("theirs", ["theirs", "ours"], [SCENARIO], {"hardware": "a machine"})
    for speed in (10.0, 20.0, 30.0):
        found.add(SCENARIO, "theirs", {"tokens/s": speed, "first token": 2000.0})
        found.add(SCENARIO, "ours", {"tokens/s": speed * 2, "first token": 500.0})
    return found


def test_the_table_has_medians_ranges_and_ratios(results: Results) -> None:
    lines = markdown(results).splitlines()
    assert lines[:3] == ["- hardware: a machine", "", "| scenario | figure | theirs | ours | ours / theirs |"]
    assert lines[4:6] == [
        "| one user | tokens/s ↑ | 20.0 (10.0 to 30.0) | 40.0 (20.0 to 60.0) | **2.00** (2.00 to 2.00) |",
        "| one user | first token, ms ↓ | 2000 (2000 to 2000) | 500.0 (500.0 to 500.0) | **0.25** (0.25 to 0.25) |",
    ]


def test_failures_are_told_and_have_no_ratio() -> None:
    results = Results("theirs", ["theirs", "ours"], [SCENARIO], {})
    results.add(SCENARIO, "theirs", {"tokens/s": 1.0, "first token": 1.0})
    results.failures.append("ours, one: no slot")
    table = markdown(results)
    assert "| one user | tokens/s ↑ | 1.0 (1.0 to 1.0) | failed |  |" in table
    assert table.endswith("\nFailed: ours, one: no slot\n")


def test_every_round_is_kept(results: Results) -> None:
    found = json.loads(as_json(results))
    assert found["figures"][1] == {
        "scenario": "one",
        "server": "ours",
        "rounds": [{"tokens/s": speed, "first token": 500.0} for speed in (20.0, 40.0, 60.0)],
    }


def test_another_run_replaces_its_scenarios_and_names_its_model(results: Results) -> None:
    results.facts["model"] = "a.gguf"
    other = Results("theirs", ["theirs", "ours"], [SCENARIO], {"model": "b.gguf"})
    other.add(SCENARIO, "ours", {"tokens/s": 7.0, "first token": 1.0})
    results.take(as_json(other))
    assert results.values(SCENARIO, "ours", SPEED) == [7.0]
    assert len(results.values(SCENARIO, "theirs", SPEED)) == 3
    assert results.facts == {"hardware": "a machine", "model": "a.gguf", "model of 'one user'": "b.gguf"}


def test_shares_are_told_as_median_and_highest() -> None:
    assert shares([0.01, 0.02, 0.5]) == "2% of all cores at the median, 50% at most"
    assert shares([]) == "unknown"


@pytest.mark.skipif(not can_plot(), reason="matplotlib is not installed")
@pytest.mark.filterwarnings("default")
def test_the_plot_is_written_twice(results: Results, tmp_path: Path) -> None:
    plot(results, tmp_path / "plot")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_without_matplotlib_there_is_no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert not can_plot()
