"""Both clients against the real HTTP API, over a socket; what is behind the API plays a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from api.scripted import ScriptedBackend, ScriptedResidency
from api.scripted_library import ScriptedDaemon, ScriptedLibrary, finished, installed, play, progress
from api.serving import serving
from both_clients import Ask, Pull

from server import __version__
from server.api.application import create_api
from server.api.config import ApiConfig
from server.core import errors
from server.core.library import Deleted, ModelDetails
from server.core.model_spec import BackendName, parse_model_spec
from server.core.ports import DeviceMemory, ModelState, ResidencyStatus
from server.core.pulling import PullEvent, PullFinished, PullNotice, PullProgress
from server.library import ModelLibrary
from server.router import ModelRouter


@dataclass
class Site:
    """A served API, and what is behind it."""

    url: str = ""
    disk: ScriptedLibrary = field(default_factory=ScriptedLibrary)
    theirs: ScriptedLibrary = field(
        default_factory=lambda: ScriptedLibrary(
            BackendName.OLLAMA, [installed("phi3:3.8b", BackendName.OLLAMA, "daemon")]
        )
    )
    residency: ScriptedResidency = field(default_factory=ScriptedResidency)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    router = ModelRouter([ScriptedBackend()], {"gpt-4o-mini": "local/demo"})
    library = ModelLibrary([site.disk, site.theirs], BackendName.OLLAMA)
    app = create_api(router, ApiConfig(), residency=site.residency, library=library, daemon=ScriptedDaemon())
    async with serving(app) as served:
        site.url = served.url
        yield site


async def asked(ask: Ask, site: Site, method: str, *arguments: object, **options: object) -> Any:  # noqa: ANN401
    return await asyncio.to_thread(lambda: ask(site.url, method, *arguments, **options))


def shown(events: Sequence[PullEvent]) -> list[PullEvent]:
    """Round what the API rounds."""
    return [
        replace(each, bytes_per_second=round(each.bytes_per_second), seconds_left=round(each.seconds_left or 0, 1))
        if isinstance(each, PullProgress)
        else each
        for each in events
    ]


async def test_status(ask: Ask, site: Site) -> None:
    site.theirs.reason = "the connection is refused"
    site.residency.memory = [DeviceMemory("CPU", "memory", 9, 4)]
    site.residency.models = {
        "demo": ResidencyStatus("demo", ModelState.WARM, measured={"CPU": 7}, num_leases=2, num_waiting=1),
        "cold": ResidencyStatus("cold", ModelState.COLD),
    }
    status = await asked(ask, site, "status")
    assert (status.version, status.is_ready, status.devices) == (__version__, True, tuple(site.residency.memory))
    assert status.started is not None
    assert {each.name: each.reason for each in status.backends} == {
        BackendName.LLAMACPP: None,
        BackendName.OLLAMA: "the connection is refused",
    }
    (model,) = status.models
    assert (model.backend, model.state, model.memory_bytes) == (BackendName.LLAMACPP, ModelState.WARM, 7)
    assert (model.num_leases, model.num_waiting) == (2, 1)


async def test_models_on_disk(ask: Ask, site: Site) -> None:
    ours = replace(installed(), state=ModelState.WARM)
    (theirs,) = site.theirs.present
    assert set(await asked(ask, site, "list")) == {ours, theirs}
    assert await asked(ask, site, "list", "ollama") == (theirs,)
    with pytest.raises(errors.InvalidRequest, match="backend"):
        await asked(ask, site, "list", "mlx")


@pytest.mark.parametrize("spec", ["demo", "local/demo@llamacpp", "gpt-4o-mini", parse_model_spec("demo")])
async def test_details(ask: Ask, site: Site, spec: object) -> None:
    details = await asked(ask, site, "show", spec)
    assert isinstance(details, ModelDetails)
    expected = await site.disk.details("demo")
    assert details == replace(expected, installed=replace(installed(), state=ModelState.WARM))
    with pytest.raises(errors.ModelNotFound):
        await asked(ask, site, "show", "hf.co/no/body")


async def test_pull(pull: Pull, site: Site) -> None:
    events: list[PullEvent] = [progress(0), PullNotice("trying again"), progress(500), finished("owner/repo")]
    site.disk.script = play(*events)
    seen = await asyncio.to_thread(pull, site.url, "hf.co/owner/repo", "Q8_0")
    assert seen == shown(events)
    assert site.disk.pulls == [("hf.co/owner/repo", "Q8_0")]


@pytest.mark.parametrize("before", [[], [progress(10)]], ids=["at once", "later"])
async def test_a_pull_that_fails(pull: Pull, site: Site, before: list[PullEvent]) -> None:
    site.disk.script = play(*before, errors.DiskFull("There is no room."))
    with pytest.raises(errors.DiskFull, match=r"^There is no room\.$"):
        await asyncio.to_thread(pull, site.url, "hf.co/owner/repo")


async def test_who_closes_the_iterator_leaves_the_pull(pull: Pull, site: Site) -> None:
    site.disk.script = play(progress(10), asyncio.Event())
    seen = await asyncio.to_thread(pull, site.url, "hf.co/owner/repo", enough=lambda _: True)
    assert seen == shown([progress(10)])
    await site.disk.until_held(0)


async def test_a_pull_that_is_cancelled(ask: Ask, pull: Pull, site: Site) -> None:
    site.disk.script = play(progress(10), asyncio.Event())
    pulling = asyncio.create_task(asyncio.to_thread(pull, site.url, "hf.co/owner/repo"))
    await site.disk.until_held(1)
    (active,) = (await asked(ask, site, "status")).pulls
    assert (str(active.spec), active.quantization) == ("local/hf.co/owner/repo", None)
    assert await asked(ask, site, "cancel_pull", "hf.co/nobody/pulls") == 0
    assert await asked(ask, site, "cancel_pull", "hf.co/owner/repo") == 1
    with pytest.raises(errors.PullFailed):
        await pulling
    assert (await asked(ask, site, "status")).pulls == ()


async def test_memory(ask: Ask, site: Site) -> None:
    assert (await asked(ask, site, "unload", "demo", force=True)).state is ModelState.COLD
    assert (await asked(ask, site, "load", "gpt-4o-mini")).state is ModelState.WARM
    assert site.residency.calls == [("unload", "demo", True), ("load", "demo")]
    site.residency.failure = errors.InsufficientMemory("It does not fit.", retry_after=7)
    with pytest.raises(errors.InsufficientMemory, match="does not fit") as caught:
        await asked(ask, site, "load", "demo")
    assert caught.value.retry_after == 7


async def test_delete(ask: Ask, site: Site) -> None:
    site.residency.models["demo"] = ResidencyStatus("demo", ModelState.WARM, num_leases=1)
    with pytest.raises(errors.ModelInUse, match="1 requests use it"):
        await asked(ask, site, "delete", "demo")
    site.residency.models["demo"] = ResidencyStatus("demo", ModelState.COLD)
    model = installed()
    assert model.path is not None
    gone = Deleted("demo", BackendName.LLAMACPP, (model.path,), model.size_bytes)
    assert await asked(ask, site, "delete", "local/demo") == gone
    with pytest.raises(errors.ModelNotFound):
        await asked(ask, site, "delete", "local/demo")


async def test_what_a_finished_pull_is_called(pull: Pull, site: Site) -> None:
    site.theirs.script = play(PullFinished("phi3:3.8b", BackendName.OLLAMA))
    site.disk.script = play(finished("a b@c"))
    (last,) = await asyncio.to_thread(pull, site.url, "llamacpp/x")
    assert last == finished("a b@c")
