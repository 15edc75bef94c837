"""Pulling from the hub into our own folder, through the library."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from fakes.hub import Cut, FakeHub, Rule, Stall, Status
from machines import NAME, REPOSITORY, Machine, collect, pulled
from store.made_stores import gguf_bytes, put_hub, put_ollama

from server.app_library import LibraryParts
from server.core.errors import HubUnreachable, InvalidRequest, ModelNotFound, PullFailed
from server.core.model_spec import BackendName, parse_model_spec
from server.core.pulling import PullEvent, PullFinished, PullNotice, PullProgress

FILE = "model-Q4_K_M.gguf"
WEIGHTS = gguf_bytes({"general.name": "pulled"}, padding=200_000)
SPEC = parse_model_spec(NAME)


def quiet(parts: LibraryParts) -> bool:
    return not parts.library.active()


async def test_a_pulled_model_is_in_the_list_under_the_name_that_is_told(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: WEIGHTS})
    parts = on_hub.parts()
    assert not await parts.library.models(BackendName.LLAMACPP)  # a look that must not be remembered
    finished = await pulled(parts, NAME)
    assert (finished.model, finished.backend) == (f"{NAME}:Q4_K_M", BackendName.LLAMACPP)
    [model] = await parts.library.models(BackendName.LLAMACPP)
    assert model.model == finished.model
    assert model.digest == hub.digest(WEIGHTS)
    assert (model.path,) == finished.paths
    [again] = await on_hub.parts().library.models(BackendName.LLAMACPP)  # another process
    assert again.digest == model.digest
    assert quiet(parts)
    await parts.library.aclose()


async def test_a_recommended_name_is_pulled_and_means_the_file_afterwards(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: WEIGHTS, "model-Q8_0.gguf": WEIGHTS + b"8"})
    parts = on_hub.parts()
    await pulled(parts, "short:7b")  # there is no daemon that could be meant
    await pulled(parts, "llamacpp/short:7b", "Q8_0")
    found = await parts.library.find(parse_model_spec("short"))
    assert found is not None
    assert found.model == f"{NAME}:Q4_K_M"
    other = await parts.library.find(parse_model_spec("short:Q8_0"))
    assert other is not None
    assert other.model == f"{NAME}:Q8_0"
    await parts.library.aclose()


async def test_shards_and_projector_come_along(on_hub: Machine, hub: FakeHub) -> None:
    files = {f"big-Q4_K_M-0000{number}-of-00002.gguf": WEIGHTS + bytes([number]) for number in (1, 2)}
    hub.add(REPOSITORY, files | {"mmproj-F16.gguf": gguf_bytes({"general.architecture": "clip"})})
    parts = on_hub.parts()
    finished = await pulled(parts, NAME)
    assert [path.name for path in finished.paths] == [*files, "mmproj-F16.gguf"]
    shown = await parts.library.details(parse_model_spec(finished.model))
    assert len(shown.files) == 2
    assert [path.name for path in shown.projectors] == ["mmproj-F16.gguf"]
    await parts.library.aclose()


@pytest.mark.parametrize("where", ["huggingface", "ollama"])
async def test_what_another_program_has_already_is_not_downloaded(on_hub: Machine, hub: FakeHub, where: str) -> None:
    hub.add(REPOSITORY, {FILE: WEIGHTS})
    if where == "huggingface":
        put_hub(on_hub.hugging_face, REPOSITORY, FILE, WEIGHTS)
    else:
        put_ollama(on_hub.ollama, f"{NAME}/Q4_K_M", WEIGHTS)
    parts = on_hub.parts()
    notice, finished = await collect(parts.library.pull(SPEC))
    assert isinstance(notice, PullNotice)
    assert "already" in notice.message
    assert isinstance(finished, PullFinished)
    assert finished.model == f"{NAME}:Q4_K_M"
    assert await parts.library.find(parse_model_spec(f"llamacpp/{NAME}"))
    assert not hub.asked("/resolve/")
    assert not on_hub.own.exists()
    await parts.library.aclose()


async def test_the_same_file_by_another_name_is_no_answer(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: WEIGHTS})
    put_ollama(on_hub.ollama, "registry.ollama.ai/library/same/1b", WEIGHTS)
    parts = on_hub.parts()
    assert (await pulled(parts, NAME)).model == f"{NAME}:Q4_K_M"
    assert await parts.library.find(SPEC)  # who asked for this name finds it
    await parts.library.aclose()


async def test_a_copy_without_the_projector_is_not_enough(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: WEIGHTS, "mmproj-F16.gguf": gguf_bytes({"general.architecture": "clip"})})
    put_hub(on_hub.hugging_face, REPOSITORY, FILE, WEIGHTS)
    parts = on_hub.parts()
    finished = await pulled(parts, NAME)
    assert len(finished.paths) == 2
    await parts.library.aclose()


async def test_two_who_pull_the_same_share_one_download(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: WEIGHTS})
    parts = on_hub.parts()
    both = await asyncio.gather(pulled(parts, "llamacpp/short"), pulled(parts, f"{NAME}:q4_k_m"))
    assert both[0] == both[1]
    assert len(hub.asked(FILE, at_hub=False)) == 1
    await parts.library.aclose()


async def until_stalled(events: asyncio.Queue[PullEvent | None], num_bytes: int) -> None:
    while isinstance(event := await events.get(), PullEvent):
        if isinstance(event, PullProgress) and event.done_bytes >= num_bytes:
            return
    pytest.fail("the pull ended")


async def listen(parts: LibraryParts, events: asyncio.Queue[PullEvent | None]) -> None:
    try:
        async for event in parts.library.pull(SPEC):
            events.put_nowait(event)
    finally:
        events.put_nowait(None)


async def test_a_cancelled_pull_ends_for_all_and_goes_on_later(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: WEIGHTS})
    hub.rules.append(Rule(FILE, Stall(after=100_000), times=1, at_hub=False))
    parts = on_hub.parts()
    queues = [asyncio.Queue[PullEvent | None]() for _ in range(2)]
    listeners = [asyncio.create_task(listen(parts, queue)) for queue in queues]
    for queue in queues:
        await until_stalled(queue, 100_000)
    [active] = parts.library.active()
    assert active.spec == SPEC
    assert active.progress is not None
    assert active.progress.done_bytes >= 100_000
    assert parts.library.cancel(parse_model_spec(f"llamacpp/{NAME}")) == 1
    for listener in listeners:
        with pytest.raises(PullFailed, match="was cancelled"):
            await listener
    assert quiet(parts)
    assert parts.library.cancel(SPEC) == 0
    await pulled(parts, NAME)
    assert [each.headers.get("range") for each in hub.asked(FILE, at_hub=False)] == [None, "bytes=100000-"]
    await parts.library.aclose()


async def test_only_the_last_listener_who_goes_ends_the_download(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: WEIGHTS})
    hub.rules.append(Rule(FILE, Stall(after=100_000), times=1, at_hub=False))
    parts = on_hub.parts()
    queue = asyncio.Queue[PullEvent | None]()
    stays = asyncio.create_task(listen(parts, queue))
    await until_stalled(queue, 100_000)
    async with aclosing(parts.library.pull(SPEC)) as events:
        async for _ in events:
            break
    [_] = parts.library.active()
    assert not stays.done()
    stays.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stays
    assert quiet(parts)
    await parts.library.aclose()


async def test_closing_the_library_ends_its_pulls(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: WEIGHTS})
    hub.rules.append(Rule(FILE, Stall(after=100_000), times=1, at_hub=False))
    parts = on_hub.parts()
    queue = asyncio.Queue[PullEvent | None]()
    listener = asyncio.create_task(listen(parts, queue))
    await until_stalled(queue, 100_000)
    await parts.library.aclose()
    with pytest.raises(PullFailed, match="shutting down"):
        await listener


async def test_failures_reach_whoever_asked(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: WEIGHTS})
    parts = on_hub.parts()
    hub.rules.append(Rule("/api/models/", Status(500), times=1))
    with pytest.raises(HubUnreachable):
        await pulled(parts, NAME)
    with pytest.raises(ModelNotFound, match="Q4_K_M"):
        await pulled(parts, f"{NAME}:Q2_K")
    with pytest.raises(InvalidRequest, match="keep one"):
        await pulled(parts, f"{NAME}:Q2_K", "Q8_0")
    with pytest.raises(ModelNotFound, match=r"No repository is known.*short:7b"):
        await pulled(parts, "llamacpp/shrt:7b")
    assert quiet(parts)
    await parts.library.aclose()


async def test_a_broken_connection_is_a_notice_and_no_end(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: WEIGHTS})
    hub.rules.append(Rule(FILE, Cut(after=50_000), times=1, at_hub=False))
    parts = on_hub.parts()
    events = await collect(parts.library.pull(SPEC))
    assert any(isinstance(event, PullNotice) for event in events)
    await parts.library.aclose()


async def test_nothing_but_a_pull_needs_the_network(machine: Machine) -> None:
    machine.hub_url = "http://hub.invalid"
    parts = machine.parts()
    assert await parts.library.models() == []
    assert parts.library.cancel(SPEC) == 0
    with pytest.raises(HubUnreachable):
        await pulled(parts, NAME)
    await parts.library.aclose()
