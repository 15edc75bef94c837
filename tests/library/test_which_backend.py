"""Which backend a spec means: where both have a model, where one does, where none does."""

from __future__ import annotations

import asyncio

import pytest
from fakes.hub import FakeHub
from fakes.ollama import FakeModel, FakeOllama
from machines import NAME, REPOSITORY, Machine, pulled, unused_url
from store.made_stores import gguf_bytes, put, put_ollama

from server.core.errors import Forbidden, InvalidRequest, ModelNotFound
from server.core.model_spec import BackendName, parse_model_spec

OLLAMA, LLAMACPP = BackendName.OLLAMA, BackendName.LLAMACPP
DEMO = parse_model_spec("demo")


@pytest.fixture
def with_both(with_daemon: Machine) -> Machine:
    """A machine where the daemon and our own folder have a model of one name."""
    put(with_daemon.own / "demo.gguf")
    return with_daemon


@pytest.mark.parametrize("prefer", [OLLAMA, LLAMACPP])
async def test_details_are_those_of_the_preferred_backend(with_both: Machine, prefer: BackendName) -> None:
    library = with_both.parts(prefer=prefer).library
    assert (await library.details(DEMO)).installed.backend is prefer
    assert next(iter(await library.models())).backend is prefer
    forced = await library.details(parse_model_spec("demo@llamacpp"))
    assert forced.installed.backend is LLAMACPP
    await library.aclose()


async def test_deleting_is_never_a_guess(with_both: Machine) -> None:
    library = with_both.parts().library
    with pytest.raises(InvalidRequest, match=r"local/demo:latest@ollama and local/demo@llamacpp"):
        await library.delete(DEMO)
    assert len(await library.models()) == 2
    assert (await library.delete(parse_model_spec("demo@llamacpp"))).backend is LLAMACPP
    assert (await library.delete(DEMO)).backend is OLLAMA
    with pytest.raises(ModelNotFound):
        await library.delete(DEMO)
    await library.aclose()


async def test_the_files_of_a_model_of_the_daemon_are_the_same_model(with_daemon: Machine) -> None:
    put_ollama(with_daemon.ollama, "registry.ollama.ai/library/demo/latest")
    library = with_daemon.parts().library
    assert [each.source for each in await library.models()] == ["daemon", "ollama"]
    assert (await library.to_delete(DEMO)).backend is OLLAMA
    assert (await library.delete(DEMO)).backend is OLLAMA
    await library.aclose()


async def test_ollamas_files_stay_while_its_daemon_is_down(machine: Machine) -> None:
    put_ollama(machine.ollama, "registry.ollama.ai/library/demo/latest")
    library = machine.parts().library
    with pytest.raises(Forbidden, match="ollama rm demo:latest"):
        await library.delete(DEMO)


async def test_what_nobody_has_is_not_found_and_the_daemon_that_is_down_is_named(machine: Machine) -> None:
    machine.daemon_url = unused_url()
    put(machine.own / "denmo.gguf")
    library = machine.parts().library
    for ask in (library.details, library.delete, library.to_delete):
        with pytest.raises(ModelNotFound, match=r"Did you mean denmo\?.*ollama cannot be asked.*model pull local/demo"):
            await ask(DEMO)
    assert await library.find(DEMO) is None


async def test_a_backend_that_is_switched_off_is_none(machine: Machine) -> None:
    library = machine.parts(enabled=False).library
    assert [each.name for each in await library.health()] == [LLAMACPP]
    assert await library.models(OLLAMA) == []
    forced = parse_model_spec("ollama/demo")
    assert await library.find(forced) is None
    for ask in (library.details, library.delete, library.to_delete):
        with pytest.raises(InvalidRequest, match="switched off"):
            await ask(forced)
    with pytest.raises(ModelNotFound, match=r"Ollama is switched off.*llmspell model pull hf\.co/"):
        await anext(library.pull(parse_model_spec("nothing:7b")))


async def test_a_repository_is_pulled_by_llama_cpp(on_hub: Machine, hub: FakeHub, daemon: FakeOllama) -> None:
    on_hub.daemon_url = daemon.url
    hub.add(REPOSITORY, {"m-Q4_K_M.gguf": gguf_bytes(padding=1000)})
    parts = on_hub.parts()
    assert (await pulled(parts, NAME)).backend is LLAMACPP
    assert not [each for each in daemon.requests if each.path == "/api/pull"]
    await parts.library.aclose()


async def test_other_names_are_pulled_by_the_daemon_while_it_is_up(
    on_hub: Machine, hub: FakeHub, daemon: FakeOllama
) -> None:
    on_hub.daemon_url = daemon.url
    hub.add(REPOSITORY, {"m-Q4_K_M.gguf": gguf_bytes(padding=1000), "m-Q8_0.gguf": gguf_bytes(padding=1001)})
    daemon.offer(FakeModel("short:7b", size=10))
    parts = on_hub.parts()
    assert (await pulled(parts, "short:7b")).backend is OLLAMA
    assert (await pulled(parts, "short:7b", "Q8_0")).backend is LLAMACPP  # which the daemon does not take
    preferring = on_hub.parts(prefer=LLAMACPP)
    assert (await pulled(preferring, "short:7b")).backend is LLAMACPP
    daemon.offer(FakeModel("unheard-of", size=10))
    assert (await pulled(preferring, "unheard-of")).backend is OLLAMA
    await asyncio.to_thread(daemon.stop)
    fresh = on_hub.parts()
    assert (await pulled(fresh, "short:7b")).backend is LLAMACPP
    with pytest.raises(ModelNotFound, match=r"connection is refused.*ollama/unheard-of.*hf\.co/owner/repository"):
        await pulled(fresh, "unheard-of")
    for each in (parts, preferring, fresh):
        await each.library.aclose()
