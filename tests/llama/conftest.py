"""Real GGUF files with random weights, one of each kind of memory, written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf_shapes import write_hybrid, write_llama, write_recurrent, write_sliding_window

from server.llama.model import ContextOptions, LlamaModel, LoadOptions
from server.llama.runner import LlamaRunner

WRITERS: dict[str, Callable[[Path], object]] = {
    "dense": write_llama,
    "sliding window": write_sliding_window,
    "recurrent": write_recurrent,
    "hybrid": write_hybrid,
}


@pytest.fixture(scope="session", params=WRITERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """A model of each kind."""
    path = tmp_path_factory.mktemp("shapes") / "model.gguf"
    WRITERS[request.param](path)
    loaded = LlamaModel.load(path, LoadOptions())
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def dense_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the dense model."""
    path = tmp_path_factory.mktemp("shapes") / "dense.gguf"
    write_llama(path)
    return path


@pytest.fixture
def runner(model: LlamaModel) -> Iterator[LlamaRunner]:
    """A context of four sequences on each kind of model."""
    made = LlamaRunner(model, ContextOptions(4, 512, 256, 64, threads=1))
    yield made
    made.close()
