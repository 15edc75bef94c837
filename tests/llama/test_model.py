from __future__ import annotations

from pathlib import Path

import pytest
from gguf_shapes import LlamaShape, write_embedding, write_llama

from server.core.errors import ModelLoadingFailed
from server.llama.model import ContextOptions, LlamaModel
from server.llama.runner import LlamaRunner


def test_unknown_architecture_is_refused_with_the_reason(dense_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "unknown.gguf"
    path.write_bytes(dense_path.read_bytes().replace(b"llama", b"lamma"))

    with pytest.raises(ModelLoadingFailed, match="unknown model architecture: 'lamma'"):
        LlamaModel.load(path, n_gpu_layers=0)


def test_no_model_at_all_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"this is not a model" * 100)

    with pytest.raises(ModelLoadingFailed, match=r"no\.gguf"):
        LlamaModel.load(path, n_gpu_layers=0)


def test_embedding_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "embedding.gguf"
    write_embedding(path)

    def load() -> None:
        LlamaRunner(LlamaModel.load(path, n_gpu_layers=0), ContextOptions(1, 256, 256, 64))

    with pytest.raises(ModelLoadingFailed, match="does not generate text"):
        load()


def test_closing_twice_is_harmless(dense_path: Path) -> None:
    model = LlamaModel.load(dense_path, n_gpu_layers=0)
    runner = LlamaRunner(model, ContextOptions(1, 256, 256, 64, threads=1))
    for _ in range(2):
        runner.close()
    for _ in range(2):
        model.close()


@pytest.mark.parametrize("kv_cache_type", ["f16", "q8_0", "q4_0"])
def test_cache_types(tmp_path: Path, kv_cache_type: str) -> None:
    path = tmp_path / "model.gguf"
    write_llama(path, LlamaShape(width=128, heads=4, kv_heads=4))
    model = LlamaModel.load(path, n_gpu_layers=0)
    runner = LlamaRunner(model, ContextOptions(1, 256, 256, 64, threads=1, kv_cache_type=kv_cache_type))
    runner.close()
    model.close()
