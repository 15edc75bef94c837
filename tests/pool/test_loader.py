"""Loads of real files: what they take, what they give back, and how they end."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import pytest
from files import rewrite
from gguf_shapes import LlamaShape, write_llama

from server.chat.conversation import Conversation
from server.core.errors import BackendError, ContextLengthExceeded, ModelLoadingFailed
from server.core.events import Event, Failed, Finished
from server.core.model_spec import parse_model_spec
from server.core.request import ChatRequest, Message, Role, SamplingParameters
from server.engine.engine import Delivery
from server.engine.sequence import GenerationRequest
from server.llama.main_memory import give_back_freed, resident_bytes
from server.llama.model import LlamaModel
from server.llama.runner import LlamaRunner
from server.pool import loader
from server.pool.config import ModelConfig, PoolConfig, Switch
from server.pool.loader import LoadCancelled, LoadedModel, LoadMonitor, load_model
from server.pool.plan import LoadPlan, Machine, make_plan

POOL = PoolConfig(max_sequences=2, threads=1, prefix_memory=0)
TIMEOUT = 30.0
MIB = 1 << 20


class Loading:
    """A model and all that a load of it needs and says."""

    def __init__(
        self, path: Path, *, mmap: Switch = Switch.AUTO, chat_template: str = "", config: ModelConfig | None = None
    ) -> None:
        self.config = config or ModelConfig(str(path), mmap=mmap, chat_template=chat_template)
        self.pool = POOL
        self.deliveries: SimpleQueue[list[Delivery]] = SimpleQueue()
        self.has_ended = threading.Event()
        self.monitor = LoadMonitor()
        self.plan = self.new_plan()

    def new_plan(self) -> LoadPlan:
        machine = Machine.this()
        return make_plan(self.config, self.pool, machine, {device.name: device.free for device in machine.devices})

    def load(self) -> LoadedModel:
        return load_model(self.plan, self.pool, self.deliveries.put, self.has_ended.set, self.monitor)

    def generate(self, model: LoadedModel, num_prompt_tokens: int = 10, seed: int = 20) -> list[Event]:
        prompt = np.arange(seed, seed + num_prompt_tokens, dtype=np.int32) % model.vocabulary_size
        sampling = SamplingParameters(temperature=0, ignore_eos=True)
        model.engine.submit(GenerationRequest(prompt, sampling, 5))
        events: list[Event] = []
        while not events or not isinstance(events[-1], Finished | Failed):
            events += [event for _, batch in self.deliveries.get(timeout=TIMEOUT) for event in batch]
        return events

    def load_and_close(self) -> None:
        model = self.load()
        self.generate(model)
        model.stop()
        model.close()


@pytest.fixture
def closing() -> Iterator[Callable[[LoadedModel], LoadedModel]]:
    """Closes what a test has loaded."""
    models: list[LoadedModel] = []

    def note(model: LoadedModel) -> LoadedModel:
        models.append(model)
        return model

    yield note
    for model in models:
        model.stop()
        model.close()


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loader") / "tiny.gguf"
    write_llama(path)
    return path


@pytest.fixture(scope="session")
def large_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of more than 50 MB, so that memory that is not given back is seen."""
    path = tmp_path_factory.mktemp("loader") / "large.gguf"
    write_llama(path, LlamaShape(4, 1024, 16, 16, 2816, 4096, 4096, "Q8_0"))
    assert path.stat().st_size > 50 * MIB
    return path


def settled_bytes() -> int:
    gc.collect()
    give_back_freed()
    return resident_bytes()


def said(text: str) -> ChatRequest:
    return ChatRequest(parse_model_spec("local/tiny"), (Message(Role.USER, text),))


def test_a_loaded_model_generates(tiny_path: Path, closing: Callable[[LoadedModel], LoadedModel]) -> None:
    loading = Loading(tiny_path)
    model = closing(loading.load())

    assert model.context_length == loading.plan.context.sequence_len == 512
    assert model.load_seconds > 0
    assert loading.monitor.fraction == 1.0
    assert isinstance(loading.generate(model)[-1], Finished)
    assert len(model.prepare(said("hello")).prompt) > 0
    with pytest.raises(ContextLengthExceeded):
        model.prepare(said("xyzzy " * 600))


def test_closing_ends_the_engine(tiny_path: Path) -> None:
    loading = Loading(tiny_path)
    model = loading.load()
    assert not loading.has_ended.is_set()
    model.stop()
    model.close()
    assert loading.has_ended.is_set()
    assert not model.engine.is_alive


def test_progress_grows_to_the_end(tiny_path: Path, closing: Callable[[LoadedModel], LoadedModel]) -> None:
    class Noting(LoadMonitor):
        fractions: list[float] = []  # noqa: RUF012

        def report(self, fraction: float) -> None:
            self.fractions.append(fraction)
            super().report(fraction)

    loading = Loading(tiny_path)
    loading.monitor = Noting()
    closing(loading.load())

    fractions = Noting.fractions
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert fractions == sorted(fractions)
    assert sum(0 < fraction <= 0.95 for fraction in fractions) > 5


def test_a_file_that_is_replaced_is_not_loaded(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(tiny_path, path)
    loading = Loading(path)
    other = tmp_path / "other.gguf"
    write_llama(other, LlamaShape(layers=3))
    other.rename(path)

    with pytest.raises(ModelLoadingFailed, match=r"model\.gguf was replaced .* send the request again"):
        loading.load()
    loading.plan = loading.new_plan()
    loading.load_and_close()


@pytest.mark.parametrize("size", [0, 100, -1000])
def test_a_file_that_is_truncated_is_not_loaded(tiny_path: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(tiny_path, path)
    loading = Loading(path)
    os.truncate(path, size % path.stat().st_size)

    with pytest.raises(ModelLoadingFailed, match=r"model\.gguf was replaced"):
        loading.load()
    with pytest.raises(ModelLoadingFailed, match=r"model\.gguf is (empty|truncated)"):
        loading.new_plan()


def test_a_file_that_disappears_is_not_loaded(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(tiny_path, path)
    loading = Loading(path)
    path.unlink()

    with pytest.raises(ModelLoadingFailed, match=r"model\.gguf cannot be read: No such file"):
        loading.load()


def test_a_file_that_is_replaced_while_it_is_loaded_is_not_served(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(tiny_path, path)

    class Replacing(LoadMonitor):
        def report(self, fraction: float) -> None:
            if fraction == 0.95:
                shutil.copy(tiny_path, tmp_path / "other.gguf")
                (tmp_path / "other.gguf").rename(path)
            super().report(fraction)

    loading = Loading(path)
    loading.monitor = Replacing()
    with pytest.raises(ModelLoadingFailed, match="was replaced"):
        loading.load()


def test_parts_of_a_split_model_are_loaded_and_watched(tiny_path: Path, tmp_path: Path) -> None:
    first = rewrite(tiny_path, tmp_path / "model.gguf", tensors_per_part=10)
    loading = Loading(first)
    loading.load_and_close()
    first.with_name("model-00002-of-00002.gguf").touch()

    with pytest.raises(ModelLoadingFailed, match="was replaced"):
        loading.load()


def test_the_chat_template_is_the_one_that_was_planned_with(
    tiny_path: Path, tmp_path: Path, closing: Callable[[LoadedModel], LoadedModel]
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("planned: {{ messages[0].content }}", encoding="utf-8")
    loading = Loading(tiny_path, chat_template=str(template))
    template.unlink()

    model = closing(loading.load())
    assert model.template.render(Conversation((Message(Role.USER, "hello"),))) == ["planned: hello"]
    with pytest.raises(ModelLoadingFailed, match="cannot be read"):
        loading.new_plan()


class CancelledAt(LoadMonitor):
    """Cancelled when the load has come so far; notes what the process has taken by then."""

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self._at = fraction
        self.resident = 0

    def report(self, fraction: float) -> None:
        if fraction >= self._at and not self.is_cancelled:
            self.resident = resident_bytes()
            self.cancel()
        super().report(fraction)


@pytest.mark.parametrize("mmap", [Switch.ON, Switch.OFF])
@pytest.mark.parametrize("at", [0.0, 0.3, 0.8, 0.95, 0.98, 1.0])
def test_a_cancelled_load_gives_everything_back(large_path: Path, mmap: Switch, at: float) -> None:
    loading = Loading(large_path, mmap=mmap)
    loading.load_and_close()
    before = settled_bytes()

    loading.monitor = monitor = CancelledAt(at)
    with pytest.raises(LoadCancelled):
        loading.load()

    if at >= 0.8:
        assert monitor.resident - before > 20 * MIB
    assert settled_bytes() - before < 10 * MIB


def test_a_load_that_was_cancelled_before_it_began(tiny_path: Path) -> None:
    loading = Loading(tiny_path)
    loading.monitor.cancel()
    with pytest.raises(LoadCancelled):
        loading.load()


def broken_data(_path: Path, _monkeypatch: pytest.MonkeyPatch, loading: Loading) -> None:
    """The file ends before its weights do, which the header's check is made to overlook."""
    os.truncate(_path, _path.stat().st_size // 2)
    loading.plan = replace(loading.plan, identity=type(loading.plan.identity).of(_path))


def no_context(_path: Path, _monkeypatch: pytest.MonkeyPatch, loading: Loading) -> None:
    """Cells that llama.cpp refuses when the weights are in memory, which a plan would have refused before."""
    context = replace(loading.plan.context, kv_cache_type="q8_0", flash_attention="off")
    loading.plan = replace(loading.plan, context=context)


def no_computing(_path: Path, monkeypatch: pytest.MonkeyPatch, _loading: Loading) -> None:
    def fail(_runner: LlamaRunner, _chunks: object) -> None:
        raise BackendError("the device is lost")

    monkeypatch.setattr(LlamaRunner, "decode", fail)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (broken_data, "cannot be loaded"),
        (no_context, "no context of 8192 KV cells is to be had: .*flash_attn"),
        (no_computing, "cannot compute: the device is lost"),
    ],
)
def test_a_load_that_fails_halfway_gives_everything_back(
    large_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[Path, pytest.MonkeyPatch, Loading], None],
    said: str,
) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(large_path, path)
    loading = Loading(path, mmap=Switch.OFF)
    loading.load_and_close()
    before = settled_bytes()

    break_it(path, monkeypatch, loading)
    for _ in range(2):
        with pytest.raises(ModelLoadingFailed, match=said):
            loading.load()
        assert settled_bytes() - before < 10 * MIB

    monkeypatch.undo()
    shutil.copy(large_path, path)
    loading.plan = loading.new_plan()
    loading.load_and_close()


@pytest.mark.parametrize("mmap", [Switch.ON, Switch.OFF])
def test_twenty_loads_keep_the_memory_flat(large_path: Path, mmap: Switch) -> None:
    loading = Loading(large_path, mmap=mmap)
    sizes = []
    for _ in range(20):
        loading.load_and_close()
        sizes.append(resident_bytes())

    assert max(sizes[2:]) - sizes[1] < 8 * MIB


SHAPES = {
    "dense": (LlamaShape(4, 1024, 16, 16, 2816, 4096, 4096, "Q8_0"), ModelConfig("")),
    "many cells": (LlamaShape(8, 512, 8, 8, 1024, 4096, 8192, "F16"), ModelConfig("", kv_cells=16_384)),
    "rearranged": (LlamaShape(8, 1024, 16, 4, 4096, 8192, 4096, "Q4_K", tied=False), ModelConfig("")),
    "big vocabulary": (LlamaShape(2, 512, 8, 2, 1024, 64_000, 2048, "Q8_0"), ModelConfig("", max_sequences=8)),
}


class Measured(NamedTuple):
    """Bytes of main memory: predicted, measured at the load, and taken by the first large batch."""

    predicted: int
    measured: int
    later: int
    taken_later: int


def measure(config: ModelConfig) -> Measured:
    """Load a model and compute a large batch, in a process that has freed nothing yet that a load could use again."""
    loading = Loading(Path(config.path), config=config)
    model = loading.load()
    before = resident_bytes()
    loading.generate(model, num_prompt_tokens=1000)
    taken_later = resident_bytes() - before
    model.stop()
    model.close()
    return Measured(loading.plan.predicted["CPU"], model.measured["CPU"], loading.plan.later, taken_later)


@pytest.fixture(scope="module", params=SHAPES)
def model_of_a_shape(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    shape, config = SHAPES[request.param]
    path = tmp_path_factory.mktemp("shape") / "model.gguf"
    write_llama(path, shape)
    return replace(config, path=str(path))


@pytest.mark.parametrize("mmap", [Switch.ON, Switch.OFF])
def test_what_is_measured_was_predicted(model_of_a_shape: ModelConfig, mmap: Switch) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        found = process.submit(measure, replace(model_of_a_shape, mmap=mmap)).result(TIMEOUT)

    assert found.predicted > 50 * MIB
    assert found.measured == pytest.approx(found.predicted, rel=0.15)
    assert found.taken_later <= found.later + 4 * MIB


def test_prompts_are_kept_in_the_memory_that_was_set_aside_for_them(
    tiny_path: Path, closing: Callable[[LoadedModel], LoadedModel]
) -> None:
    loading = Loading(tiny_path)
    without = closing(loading.load())
    loading.pool = replace(POOL, prefix_memory="1MiB")
    plan = loading.plan
    loading.plan = loading.new_plan()
    assert loading.plan.predicted["CPU"] - plan.predicted["CPU"] == loading.plan.later - plan.later == MIB
    assert loading.plan.fingerprint != plan.fingerprint
    model = closing(loading.load())
    for length in (100, 101, 102, 103):
        for each in (without, model):
            loading.generate(each, num_prompt_tokens=length, seed=length)
    assert without.engine.status.num_saved == 0
    assert model.engine.status.num_saved >= 1
    assert 0 < model.engine.status.num_saved_bytes <= MIB


def test_loads_go_on_side_by_side(tiny_path: Path, closing: Callable[[LoadedModel], LoadedModel]) -> None:
    """Then nobody can tell who took what, and the prediction stands."""
    together = threading.Barrier(3)

    class Waiting(LoadMonitor):
        def report(self, fraction: float) -> None:
            if fraction == 0.95:
                together.wait(TIMEOUT)
            super().report(fraction)

    loadings = [Loading(tiny_path) for _ in range(3)]
    for loading in loadings:
        loading.monitor = Waiting()
    with ThreadPoolExecutor(3) as threads:
        models = [*threads.map(Loading.load, loadings)]

    for loading, model in zip(loadings, models, strict=True):
        assert isinstance(loading.generate(closing(model))[-1], Finished)
        assert model.measured == loading.plan.predicted


def test_an_unload_meanwhile_spoils_a_measurement(
    tiny_path: Path, closing: Callable[[LoadedModel], LoadedModel]
) -> None:
    other = Loading(tiny_path).load()

    class Unloading(LoadMonitor):
        def report(self, fraction: float) -> None:
            if fraction == 0.95:
                other.stop()
                other.close()
            super().report(fraction)

    loading = Loading(tiny_path)
    loading.monitor = Unloading()
    assert closing(loading.load()).measured == loading.plan.predicted


def test_where_the_system_does_not_tell(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, closing: Callable[[LoadedModel], LoadedModel]
) -> None:
    monkeypatch.setattr(loader, "resident_bytes", lambda: 0)
    loading = Loading(tiny_path)
    assert closing(loading.load()).measured["CPU"] == loading.plan.predicted["CPU"]


def test_memory_that_shrinks_is_not_measured_as_negative(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, closing: Callable[[LoadedModel], LoadedModel]
) -> None:
    sizes = iter([500 * MIB, 100 * MIB])
    monkeypatch.setattr(loader, "resident_bytes", lambda: next(sizes))
    loading = Loading(tiny_path)
    assert closing(loading.load()).measured["CPU"] == loading.plan.later


def test_models_that_do_not_generate_are_given_back(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    close = LlamaModel.close

    def note(model: LlamaModel) -> None:
        closed.append(model)
        close(model)

    def refuse(_runner: LlamaRunner, _options: object) -> None:
        raise ModelLoadingFailed("it does not generate text")

    monkeypatch.setattr(LlamaModel, "close", note)
    monkeypatch.setattr(LlamaRunner, "_set_up", refuse)
    with pytest.raises(ModelLoadingFailed, match="does not generate"):
        Loading(tiny_path).load()
    assert len(closed) == 1


def test_a_model_whose_pages_were_given_back_says_what_it_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_llama(path, LlamaShape(layers=4, width=512, heads=8, hidden=2048, vocabulary=4096, weights="Q4_K_M"))
    said, took = [], []
    for mmap in (Switch.ON, Switch.OFF):
        loading = Loading(path, mmap=mmap)
        assert loading.plan.releases_mapping is (mmap is Switch.ON and Machine.this().can_release_mappings)
        gc.collect()
        give_back_freed()
        before = resident_bytes()
        model = loading.load()
        took.append(resident_bytes() - before)
        said.append(loading.generate(model, 20)[:-1])
        model.stop()
        model.close()
    assert said[0] == said[1]
    assert took[0] < took[1] + 8 * MIB
