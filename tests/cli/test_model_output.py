"""What the ``model`` commands make of what they are told; no process, no file."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cli.model_fit import Fit, Memory, fit_of, needed_bytes
from server.cli.model_list import merged, row
from server.cli.model_loaded import loaded_json, loaded_row, loading_model
from server.cli.model_machine import amd_bytes, nvidia_bytes
from server.cli.model_show import details_lines
from server.cli.output import clean, date_text, duration_text, size_text
from server.cli.output_progress import ProgressLines, progress_text
from server.cli.output_table import Column, fitting, print_table
from server.client.results import LoadedModel
from server.core.library import InstalledModel, ModelDetails
from server.core.model_spec import BackendName
from server.core.ports import ModelState
from server.core.pulling import PullActivity, PullEvent, PullNotice, PullProgress

GB = 10**9
OLLAMA, LLAMACPP = BackendName.OLLAMA, BackendName.LLAMACPP
OF_DAEMON = InstalledModel("phi3:3.8b", OLLAMA, "daemon", 2 * GB, quantization="Q4_0", state=ModelState.WARM)
OF_FILE = InstalledModel("phi3:3.8b", LLAMACPP, "ollama", 2 * GB, path=Path("/blob"), state=ModelState.COLD)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_940_000, "99.9 MB"),
        (99_960_000, "100 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1.0 GB"),
        (4_920_000_000, "4.9 GB"),
        (10**15, "1000 TB"),
    ],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3900, "1 h 05 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.integers(min_value=-(2**62), max_value=2**62))
def test_any_time_of_a_file_has_a_date_or_none(unix_time: int) -> None:
    assert len(date_text(unix_time)) in (0, 10)


@given(st.text())
def test_nothing_that_is_shown_moves_the_cursor(text: str) -> None:
    assert clean(text).isprintable()


def test_a_table_leaves_out_columns_that_nobody_fills(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([Column("A"), Column("EMPTY"), Column("N", "right")], [("x", "", "1"), ("longer", "", "22")])
    assert capsys.readouterr().out == "A        N\nx        1\nlonger  22\n"


def test_a_narrow_terminal_gets_the_columns_that_matter() -> None:
    columns = [Column("NAME"), Column("SOURCE", rank=2), Column("SIZE"), Column("DATE", rank=1)]
    rows = [("a" * 10, "b" * 10, "c" * 10, "d" * 10)]
    assert fitting(columns, rows, 46) == [0, 1, 2, 3]
    assert fitting(columns, rows, 45) == [0, 2, 3]
    assert fitting(columns, rows, 33) == [0, 2]
    assert fitting(columns, rows, 1) == [0, 2]
    assert fitting([], [], 0) == []
    assert fitting([Column("NAME", least=4), *columns[1:]], rows, 40) == [0, 1, 2, 3]


def test_a_pull_in_words() -> None:
    progress = PullProgress(PullActivity.DOWNLOADING, 1_200_000_000, 4_800_000_000, 98_000_000, 36.7)
    assert progress_text(progress) == "downloading 1.2 of 4.8 GB (25 %), 98.0 MB/s, 37 s left"
    early = replace(progress, done_bytes=1000, bytes_per_second=0, seconds_left=None)
    assert progress_text(early) == "downloading 1.0 kB of 4.8 GB (0 %)"
    assert progress_text(PullProgress(PullActivity.QUEUED, 0, 0, 0, None)) == "waiting for its turn"


def test_a_log_gets_a_line_at_each_tenth_and_after_half_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with ProgressLines("x", now=lambda: now) as lines:
        for percent in range(101):
            event: PullEvent = PullProgress(PullActivity.DOWNLOADING, percent, 100, 0, None)
            lines.show(event)
            lines.show(event)
        lines.show(PullNotice("the connection broke"))
        last = PullProgress(PullActivity.DOWNLOADING, 100, 100, 0, None)
        now = 29.9
        lines.show(last)
        now = 30.0
        lines.show(last)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 11 + 1 + 1
    assert shown.err.splitlines()[11] == "x: the connection broke"


@pytest.mark.parametrize(
    ("size", "memory", "fit"),
    [
        (4 * GB, Memory(8 * GB, 16 * GB), Fit.MEMORY),
        (4 * GB, Memory(4 * GB, 16 * GB), Fit.TIGHT),
        (16 * GB, Memory(16 * GB, 16 * GB), Fit.NO),
        (4 * GB, Memory(8 * GB, 16 * GB, gpu=8 * GB), Fit.GPU),
        (8 * GB, Memory(8 * GB, 16 * GB, gpu=8 * GB), Fit.PARTLY),
        (20 * GB, Memory(8 * GB, 16 * GB, gpu=8 * GB), Fit.TIGHT),
        (30 * GB, Memory(16 * GB, 16 * GB, gpu=8 * GB), Fit.NO),
        (10 * GB, Memory(16 * GB, 16 * GB, gpu=12 * GB, is_shared=True), Fit.GPU),
        (14 * GB, Memory(16 * GB, 16 * GB, gpu=12 * GB, is_shared=True), Fit.MEMORY),
        (20 * GB, Memory(16 * GB, 16 * GB, gpu=12 * GB, is_shared=True), Fit.NO),
    ],
)
def test_where_a_model_fits(size: int, memory: Memory, fit: Fit) -> None:
    assert fit_of(size, memory) is fit


@given(st.integers(1, 100 * GB), st.integers(0, 64 * GB), st.integers(0, 64 * GB), st.integers(0, 64 * GB))
def test_what_fits_is_never_larger_than_the_memory(size: int, free: int, more: int, gpu: int) -> None:
    memory = Memory(free, free + more, gpu)
    if fit_of(size, memory) is not Fit.NO:
        assert needed_bytes(size) <= memory.total + memory.gpu
    else:
        assert needed_bytes(size) > memory.total + memory.gpu


def test_a_machine_without_a_driver_has_no_gpu(tmp_path: Path) -> None:
    assert nvidia_bytes("libthere-is-no-such-library.so.1") == 0
    assert nvidia_bytes("libc.so.6") == 0
    assert amd_bytes(tmp_path) == 0
    for number, text in enumerate(["1000\n", "2000\n", "broken\n"]):
        path = tmp_path / f"sys/class/drm/card{number}/device/mem_info_vram_total"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert amd_bytes(tmp_path) == 3000


def test_a_model_of_the_daemon_and_its_files_are_one() -> None:
    (group,) = merged([OF_FILE, OF_DAEMON])
    assert group == (OF_DAEMON, OF_FILE)
    name, short, backends, size, quantization, _, _, state, source, problem = row(group)
    assert (name, short, backends, size, quantization) == ("phi3:3.8b", "", "ollama, llamacpp", "2.0 GB", "Q4_0")
    assert (state, source, problem) == ("warm (ollama)", "ollama", "")


def test_models_that_only_have_a_name_in_common_are_not_one() -> None:
    others = [replace(OF_FILE, source="own"), replace(OF_FILE, source="folder", model=""), OF_DAEMON]
    assert [len(group) for group in merged(others)] == [1, 1, 1]
    assert [len(group) for group in merged([OF_DAEMON, OF_DAEMON, OF_FILE])] == [1, 2]


def test_what_one_backend_cannot_use_is_no_problem_while_the_other_can() -> None:
    broken = replace(OF_FILE, problem="of Ollama's own engine")
    cells = row((OF_DAEMON, broken))
    assert (cells[2], cells[-1]) == ("ollama", "")
    assert row((broken,))[-1] == "of Ollama's own engine"


def test_which_model_is_being_loaded() -> None:
    models = [
        LoadedModel("local/a:latest@llamacpp", LLAMACPP, ModelState.LOADING, 1, progress=0.5),
        LoadedModel("local/b", LLAMACPP, ModelState.LOADING, 1),
        LoadedModel("local/c", LLAMACPP, ModelState.WARM, 1),
    ]
    assert loading_model("a", models) is models[0]
    assert loading_model("local/B@llamacpp", models) is models[1]
    assert loading_model("an alias", models) is None
    assert loading_model("an alias", models[1:]) is models[1]
    assert loading_model("c", []) is None


def test_a_model_in_memory() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    model = LoadedModel("local/a@ollama", OLLAMA, ModelState.LOADING, 1, 2 * GB, 3, 4, now + timedelta(minutes=5), 0.5)
    assert loaded_row(model, now) == ("local/a@ollama", "loading 50 %", "2.0 GB", "3", "4", "in 5 min 00 s")
    assert loaded_json(model)["keep_alive_until"] == "2026-01-02T03:09:05.000Z"


def test_long_texts_are_cut_for_people() -> None:
    licence = "\n".join(f"line {number}\x1b" for number in range(100))
    lines = list(details_lines(ModelDetails(OF_DAEMON, licence=licence, defaults={"stop": ["a", "b"]})))
    assert len(lines) < 30
    assert any("88 more lines" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    assert any(line.endswith("stop = ['a', 'b']") for line in lines)
