"""Which models there are, as files come and go and the operator says something about them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_shapes import write_llama
from pools import Loader, opened, pool_config, until
from store.made_stores import index_of, put, put_ollama

from server.core.errors import ModelLoadingFailed, ModelNotFound
from server.core.ports import ModelState
from server.pool.config import ModelConfig
from server.pool.pool import Pool
from server.pool.shelf import Shelf
from server.store.places import Source


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shelf") / "model.gguf"
    write_llama(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, model_file: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(model_file, folder / "spell-Q8_0.gguf")
    return folder


def shelf(folder: Path, **configured: ModelConfig) -> Shelf:
    return Shelf(configured, pool_config(), index_of((Source.FOLDER, folder)))


def impatience() -> Callable[[], float]:
    """A clock that makes an index look again whenever it is asked."""
    return itertools.count(0.0, 10.0).__next__


def names(shelf: Shelf) -> list[str]:
    return [entry.name for entry in shelf.listed]


async def test_all_names_of_a_model_are_one_entry(folder: Path) -> None:
    found = shelf(folder)
    entry = await found.find("spell")
    assert entry is not None
    assert entry.name == "spell:Q8_0"
    assert found.known("SPELL:q8_0") is entry
    assert found.known("models/spell:Q8_0") is entry
    assert found.known("spell:Q4_0") is None
    assert entry.size_bytes == (folder / "spell-Q8_0.gguf").stat().st_size
    assert entry.created > 0


async def test_the_operators_word_comes_first(folder: Path, model_file: Path) -> None:
    other = folder.parent / "other.gguf"
    shutil.copy(model_file, other)
    config = {"spell:Q8_0": ModelConfig(path=str(other)), "mine": ModelConfig(path=str(folder / "spell-Q8_0.gguf"))}
    found = shelf(folder, **config)
    await found.refresh()
    assert names(found) == ["spell:Q8_0", "mine"]
    entry = found.known("spell:Q8_0")
    assert entry is not None
    assert found.material(entry).path == other
    further = found.known("models/spell:Q8_0")
    assert further is not None
    assert found.material(further).path == folder / "spell-Q8_0.gguf"


async def test_a_configured_model_without_path_is_the_one_that_is_found(folder: Path) -> None:
    found = shelf(folder, spell=ModelConfig(keep_alive="1s"), absent=ModelConfig())  # type: ignore[arg-type]
    await found.refresh()
    assert names(found) == ["spell"]
    entry = found.known("spell:Q8_0")
    assert entry is not None
    assert entry is found.known("spell") is found.known("models/spell:Q8_0")
    assert found.material(entry).path == folder / "spell-Q8_0.gguf"
    absent = found.known("absent")
    assert absent is not None
    with pytest.raises(ModelNotFound, match="has no file"):
        found.material(absent)


async def test_what_cannot_be_used_is_told_and_not_served(folder: Path, tmp_path: Path) -> None:
    put_ollama(tmp_path / "ollama", "registry.ollama.ai/library/adapted/1b", None, [("adapter", b"x")])
    found = Shelf({}, pool_config(), index_of((Source.FOLDER, folder), (Source.OLLAMA, tmp_path / "ollama")))
    assert await found.find("adapted:1b") is None
    assert names(found) == ["spell:Q8_0"]
    problem = found.problem("adapted:1b")
    assert isinstance(problem, ModelLoadingFailed)
    assert "LoRA adapter" in problem.message
    assert found.problem("spell") is None

    pool = Pool({}, pool_config(), index=index_of((Source.OLLAMA, tmp_path / "ollama")))
    with pytest.raises(ModelLoadingFailed, match="LoRA adapter"):
        await pool.lease("adapted:1b")
    with pytest.raises(ModelNotFound):
        await pool.lease("nothing")
    await pool.close()


async def test_the_same_file_is_listed_once_and_loaded_by_each_of_its_names(folder: Path, model_file: Path) -> None:
    shutil.copy(model_file, folder / "twin-Q8_0.gguf")
    put(folder / "no-model.gguf", b"")
    loader = Loader()
    async with opened({}, loader, index=index_of((Source.FOLDER, folder))) as pool:
        assert len(await pool.cards()) == 1
        for name in ("spell:Q8_0", "spell", "models/spell:Q8_0", "twin"):
            with await pool.lease(name) as lease:
                assert lease.model.context_length
        assert loader.loads == {"spell-Q8_0": 1, "twin-Q8_0": 1}


async def test_a_file_that_is_gone_leaves_memory_when_nobody_uses_it(folder: Path) -> None:
    path = folder / "spell-Q8_0.gguf"
    async with opened({}, Loader(), index=index_of((Source.FOLDER, folder), clock=impatience())) as pool:
        lease = await pool.lease("spell")
        path.unlink()
        assert await pool.cards() == []
        assert not await pool.has_model("spell")
        with pytest.raises(ModelNotFound):
            await pool.lease("spell")
        assert [status.num_leases for status in pool.statuses()] == [1]
        lease.release()
        await until(lambda: not pool.statuses())
        assert all(device.taken == 0 for device in pool.devices())


async def test_another_file_under_the_same_name_is_loaded_the_next_time(folder: Path, model_file: Path) -> None:
    async with opened({}, Loader(), index=index_of((Source.FOLDER, folder), clock=impatience())) as pool:
        with await pool.lease("spell"):
            pass
        (folder / "spell-Q8_0.gguf").rename(folder.parent / "kept.gguf")
        (folder / "deep").mkdir()
        shutil.copy(model_file, folder / "deep" / "spell-Q8_0.gguf")
        await pool.unload("spell", force=False)
        with await pool.lease("spell"):
            (card,) = await pool.cards()
            assert (card.model, card.state) == ("spell:Q8_0", ModelState.WARM)
