from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gguf_shapes import LlamaShape, write_embedding, write_llama

from server.core.errors import ModelLoadingFailed
from server.llama.main_memory import give_back_freed, resident_bytes
from server.llama.model import ContextOptions, LlamaModel, LoadAborted, LoadOptions, _placement
from server.llama.runner import LlamaRunner


def test_unknown_architecture_is_refused_with_the_reason(dense_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "unknown.gguf"
    path.write_bytes(dense_path.read_bytes().replace(b"llama", b"lamma"))

    with pytest.raises(ModelLoadingFailed, match="unknown model architecture: 'lamma'"):
        LlamaModel.load(path, LoadOptions())


def test_no_model_at_all_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"this is not a model" * 100)

    with pytest.raises(ModelLoadingFailed, match=r"no\.gguf"):
        LlamaModel.load(path, LoadOptions())


def test_embedding_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "embedding.gguf"
    write_embedding(path)

    def load() -> None:
        LlamaRunner(LlamaModel.load(path, LoadOptions()), ContextOptions(1, 256, 256, 64))

    with pytest.raises(ModelLoadingFailed, match="does not generate text"):
        load()


def test_closing_twice_is_harmless(dense_path: Path) -> None:
    model = LlamaModel.load(dense_path, LoadOptions())
    runner = LlamaRunner(model, ContextOptions(1, 256, 256, 64, threads=1))
    for _ in range(2):
        runner.close()
    for _ in range(2):
        model.close()


@pytest.mark.parametrize("kv_cache_type", ["f16", "q8_0", "q4_0"])
def test_cache_types(tmp_path: Path, kv_cache_type: str) -> None:
    path = tmp_path / "model.gguf"
    write_llama(path, LlamaShape(width=128, heads=4, kv_heads=4))
    model = LlamaModel.load(path, LoadOptions())
    runner = LlamaRunner(model, ContextOptions(1, 256, 256, 64, threads=1, kv_cache_type=kv_cache_type))
    runner.close()
    model.close()


@pytest.mark.parametrize("flash_attention", ["auto", "on", "off"])
def test_flash_attention(dense_path: Path, flash_attention: str) -> None:
    model = LlamaModel.load(dense_path, LoadOptions())
    runner = LlamaRunner(model, ContextOptions(1, 256, 256, 64, threads=1, flash_attention=flash_attention))
    runner.warm_up()
    runner.close()
    model.close()


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("use_mlock", [True, False])
def test_ways_to_load(dense_path: Path, use_mmap: bool, use_mlock: bool) -> None:  # noqa: FBT001
    model = LlamaModel.load(dense_path, LoadOptions(0, use_mmap, use_mlock))
    runner = LlamaRunner(model, ContextOptions(1, 256, 256, 64, threads=1))
    runner.warm_up()
    runner.close()
    model.close()


@pytest.mark.parametrize("use_mmap", [True, False])
def test_progress_is_reported_to_the_end(dense_path: Path, use_mmap: bool) -> None:  # noqa: FBT001
    fractions: list[float] = []

    def note(fraction: float) -> bool:
        fractions.append(fraction)
        return True

    LlamaModel.load(dense_path, LoadOptions(0, use_mmap), note).close()

    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert len(fractions) > 10
    assert fractions == sorted(fractions)


@pytest.fixture(scope="module")
def large_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 60 MB, so that memory that is not given back is seen."""
    path = tmp_path_factory.mktemp("large") / "model.gguf"
    write_llama(path, LlamaShape(4, 1024, 16, 16, 2816, 4096, 4096, "Q8_0"))
    assert path.stat().st_size > 50 << 20
    return path


class Unlucky(Exception):
    pass


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("error", [None, Unlucky()])
def test_a_load_that_its_callback_ends_gives_the_memory_back(
    large_path: Path,
    use_mmap: bool,  # noqa: FBT001
    error: Exception | None,
) -> None:
    options = LoadOptions(0, use_mmap)
    LlamaModel.load(large_path, options).close()
    give_back_freed()
    before, during = resident_bytes(), 0

    def abort(fraction: float) -> bool:
        nonlocal during
        if fraction < 0.9:
            return True
        during = resident_bytes()
        if error is not None:
            raise error
        return False

    for _ in range(3):
        with pytest.raises(LoadAborted if error is None else Unlucky):
            LlamaModel.load(large_path, options, abort)
    give_back_freed()

    assert during - before > 40 << 20
    assert resident_bytes() - before < 10 << 20


def test_loads_go_on_side_by_side(dense_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(dense_path.read_bytes().replace(b"llama", b"lamma"))
    both_load = threading.Barrier(2)

    def load(path: Path) -> str:
        def meet(fraction: float) -> bool:
            if fraction == 0:
                both_load.wait(30)
            return True

        try:
            LlamaModel.load(path, LoadOptions(), meet).close()
        except ModelLoadingFailed as error:
            return error.message
        return ""

    with ThreadPoolExecutor(4) as threads:
        messages = [*threads.map(load, [dense_path, broken, dense_path, broken])]

    assert messages[0] == messages[2] == ""
    assert all("unknown model architecture" in messages[at] for at in (1, 3))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (LoadOptions(0), ((), ())),
        (LoadOptions(0, tensor_split=(1.0, 1.0)), ((), ())),
        (LoadOptions(-1), ((11, 12), ())),
        (LoadOptions(-1, tensor_split=(0.0, 0.0)), ((11, 12), ())),
        (LoadOptions(5, tensor_split=(3.0, 1.0)), ((11, 12), (3.0, 1.0))),
        (LoadOptions(5, tensor_split=(0.0, 1.0)), ((12,), (1.0,))),  # a GPU without a share is left alone
        (LoadOptions(5, tensor_split=(1.0,)), ((11,), (1.0,))),
        (LoadOptions(5, tensor_split=(0.0, 1.0, 5.0)), ((12,), (1.0,))),
    ],
)
def test_gpus_that_take_part(
    monkeypatch: pytest.MonkeyPatch, options: LoadOptions, expected: tuple[tuple[int, ...], tuple[float, ...]]
) -> None:
    monkeypatch.setattr("server.llama.model.gpu_handles", lambda: (11, 12))
    gpus, shares = _placement(options)
    assert (tuple(gpus), tuple(shares)) == expected
