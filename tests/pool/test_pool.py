"""One model of a pool: loads that callers share, failures, and the way out of memory."""

from __future__ import annotations

import asyncio
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from gguf_shapes import LlamaShape, write_llama
from pools import TIMEOUT, Loader, generate, pool_config, state_of, until

from server.core.errors import ContextLengthExceeded, Draining, ModelLoadingFailed, ModelNotFound
from server.core.events import Failed, Finished
from server.core.model_spec import parse_model_spec
from server.core.ports import ModelState
from server.core.request import ChatRequest, Message, Role
from server.pool.config import ModelConfig
from server.pool.loader import LoadedModel
from server.pool.pool import Pool

REQUEST = ChatRequest(parse_model_spec("local/tiny"), (Message(Role.USER, "hello"),))


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "tiny.gguf"
    write_llama(path)
    return path


@pytest.fixture
def loader() -> Loader:
    return Loader()


def pool_of(path: Path, loader: Loader, *, preload: bool = False) -> Pool:
    return Pool({"tiny": ModelConfig(path=str(path), preload=preload)}, pool_config(), load=loader)


async def test_concurrent_leases_share_one_load(model_path: Path, loader: Loader) -> None:
    pool = pool_of(model_path, loader)
    assert state_of(pool, "tiny") is ModelState.COLD
    loader.gate = threading.Event()

    waiting = [asyncio.create_task(pool.lease("tiny")) for _ in range(5)]
    await asyncio.sleep(0)
    assert state_of(pool, "tiny") is ModelState.LOADING
    loader.gate.set()
    leases = await asyncio.gather(*waiting)

    assert loader.num_loads == 1
    assert state_of(pool, "tiny") is ModelState.WARM
    assert isinstance((await generate(leases[0]))[-1], Finished)
    for lease in leases:
        lease.release()
    await pool.close()


async def test_a_caller_that_goes_away_does_not_cancel_the_load(model_path: Path, loader: Loader) -> None:
    pool = pool_of(model_path, loader)
    loader.gate = threading.Event()
    leaving = asyncio.create_task(pool.lease("tiny"))
    staying = asyncio.create_task(pool.lease("tiny"))
    await asyncio.sleep(0)

    leaving.cancel()
    loader.gate.set()

    with await staying:
        assert leaving.cancelled()
        assert loader.num_loads == 1
    await pool.close()


async def test_a_failed_load_reaches_everyone_and_is_tried_again(
    model_path: Path, tmp_path: Path, loader: Loader
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_path.read_bytes()[:1000])
    pool = pool_of(path, loader)

    results = await asyncio.gather(*(pool.lease("tiny") for _ in range(3)), return_exceptions=True)

    assert all(isinstance(result, ModelLoadingFailed) for result in results)
    assert (loader.num_loads, state_of(pool, "tiny")) == (0, ModelState.FAILED)
    shutil.copy(model_path, path)
    with await pool.lease("tiny"):
        assert state_of(pool, "tiny") is ModelState.WARM
    await pool.close()


async def test_a_missing_file_fails_the_preload(tmp_path: Path, loader: Loader) -> None:
    pool = pool_of(tmp_path / "absent.gguf", loader, preload=True)
    with pytest.raises(ModelLoadingFailed, match=r"absent\.gguf"):
        await pool.preload()
    assert (await pool.cards())[0].size_bytes == 0
    await pool.close()


async def test_unknown_models_are_not_found(model_path: Path, loader: Loader) -> None:
    pool = pool_of(model_path, loader)
    with pytest.raises(ModelNotFound):
        await pool.lease("tinny")
    assert not await pool.has_model("tinny")
    await pool.close()


async def test_only_preloaded_models_are_loaded_at_start(model_path: Path, loader: Loader) -> None:
    config = {name: ModelConfig(path=str(model_path), preload=name == "hot") for name in ("hot", "cold")}
    pool = Pool(config, pool_config(), load=loader)
    await pool.preload()
    states = {card.model: card.state for card in await pool.cards()}
    assert states == {"hot": ModelState.WARM, "cold": ModelState.COLD}
    await pool.close()


async def test_a_dead_engine_is_replaced_when_its_last_lease_is_back(model_path: Path, loader: Loader) -> None:
    pool = pool_of(model_path, loader)
    first = await pool.lease("tiny")
    first.model.engine.close(TIMEOUT)

    waiting = asyncio.create_task(pool.lease("tiny"))
    # the old model may still be tokenizing for somebody: its vocabulary has to be there
    assert len((await first.prepare(REQUEST)).prompt) > 0
    assert (loader.num_loads, state_of(pool, "tiny")) == (1, ModelState.DRAINING)
    first.release()

    with await asyncio.wait_for(waiting, TIMEOUT) as second:
        assert second.model is not first.model
        assert isinstance((await generate(second))[-1], Finished)
    await pool.close()
    assert loader.num_loads == 2


async def test_a_preloaded_model_that_died_is_loaded_again_unasked(model_path: Path, loader: Loader) -> None:
    pool = pool_of(model_path, loader, preload=True)
    await pool.preload()
    with await pool.lease("tiny") as first:
        first.model.engine.close(TIMEOUT)
    assert state_of(pool, "tiny") is ModelState.FAILED
    await until(lambda: loader.num_loads == 2)  # the news from the engine's thread comes by the loop
    with await pool.lease("tiny") as second:
        assert isinstance((await generate(second))[-1], Finished)
    await pool.close()
    assert loader.num_loads == 2


async def test_memory_is_not_freed_under_a_tokenizer_whose_caller_went_away(
    model_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(model_path, loader)
    lease = await pool.lease("tiny")
    begun, gate, freed = threading.Event(), threading.Event(), threading.Event()
    prepare, close = LoadedModel.prepare, LoadedModel.close

    def slowly(model: LoadedModel, request: ChatRequest) -> object:
        begun.set()
        assert gate.wait(TIMEOUT)
        assert not freed.is_set()
        return prepare(model, request)

    def note(model: LoadedModel) -> bool:
        freed.set()
        return close(model)

    monkeypatch.setattr(LoadedModel, "prepare", slowly)
    monkeypatch.setattr(LoadedModel, "close", note)
    leaving = asyncio.create_task(lease.prepare(REQUEST))
    assert await asyncio.to_thread(begun.wait, TIMEOUT)
    leaving.cancel()
    await asyncio.wait({leaving})
    lease.release()

    closing = asyncio.create_task(pool.close())
    await asyncio.to_thread(lease.model.engine.close, TIMEOUT)
    assert not freed.is_set()
    gate.set()
    await asyncio.wait_for(closing, TIMEOUT)
    assert freed.is_set()


@pytest.mark.parametrize(("num_words", "said"), [(600, "messages have [0-9]+"), (200_000, "at least [0-9]+")])
async def test_prompts_that_do_not_fit_are_refused(model_path: Path, loader: Loader, num_words: int, said: str) -> None:
    pool = pool_of(model_path, loader)
    with await pool.lease("tiny") as lease, pytest.raises(ContextLengthExceeded, match=said):
        await lease.prepare(replace(REQUEST, messages=(Message(Role.USER, "xyzzy " * num_words),)))
    await pool.close()


async def test_closing_fails_what_runs_and_refuses_what_comes(model_path: Path, loader: Loader) -> None:
    pool = pool_of(model_path, loader)
    lease = await pool.lease("tiny")
    running = asyncio.create_task(generate(lease, max_tokens=400))
    await asyncio.sleep(0)

    closing = asyncio.create_task(pool.close())
    events = await running
    lease.release()
    await closing

    assert isinstance(events[-1], Failed | Finished)
    with pytest.raises(Draining):
        await pool.lease("tiny")


async def test_loading_and_closing_gives_the_memory_back(tmp_path: Path, loader: Loader) -> None:
    path = tmp_path / "model.gguf"
    write_llama(path, LlamaShape(width=512, hidden=1024, layers=4, vocabulary=4096))
    process = psutil.Process()

    async def load_and_close() -> int:
        pool = pool_of(path, loader)
        with await pool.lease("tiny") as lease:
            await generate(lease)
        await pool.close()
        return int(process.memory_info().rss)

    warm = [await load_and_close() for _ in range(3)][-1]
    later = [await load_and_close() for _ in range(5)][-1]
    assert later - warm < 3 * path.stat().st_size
