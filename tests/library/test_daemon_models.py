"""The models of an Ollama daemon: a real one's stand-in behind a real socket."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fakes.ollama import Answer, FakeModel, FakeOllama, Pause
from machines import Machine, unused_url

from server.app_library import LibraryParts
from server.backends.ollama.config import OllamaConfig
from server.backends.ollama.library import OllamaLibrary
from server.core.errors import BackendError, LlmspellError, ModelNotFound
from server.core.library import BackendHealth
from server.core.model_spec import BackendName, parse_model_spec
from server.core.ports import ModelState

DEMO = parse_model_spec("ollama/demo")


def daemon_of(parts: LibraryParts) -> OllamaLibrary:
    assert parts.ollama is not None
    return parts.ollama


def config_of(daemon: FakeOllama) -> OllamaConfig:
    return OllamaConfig(url=daemon.url, detection_timeout_seconds=10)


def num_asked(daemon: FakeOllama) -> int:
    return len([each for each in daemon.requests if each.path == "/api/version"])


async def health(parts: LibraryParts) -> BackendHealth:
    [found] = [each for each in await parts.library.health() if each.name is BackendName.OLLAMA]
    return found


async def test_models_are_listed_with_what_the_daemon_says_of_them(with_daemon: Machine, daemon: FakeOllama) -> None:
    daemon.add_model(FakeModel("me/other:7b", size=5, parameter_size="7.2B", quantization="Q4_K_M", context_length=99))
    parts = with_daemon.parts()
    await daemon_of(parts).load("demo")
    other, demo = await parts.library.models(BackendName.OLLAMA)
    assert (other.model, other.source, other.size_bytes, other.parameters) == ("me/other:7b", "daemon", 5, "7.2B")
    assert (other.quantization, other.context_length, other.capabilities) == ("Q4_K_M", 99, ("chat",))
    assert other.modified > 0
    assert other.digest
    assert (demo.model, demo.state, other.state) == ("demo:latest", ModelState.WARM, ModelState.COLD)
    await parts.library.aclose()


async def test_models_that_run_elsewhere_are_hidden(with_daemon: Machine, daemon: FakeOllama) -> None:
    cloud = FakeModel("big:120b-cloud", remote_host="https://ollama.com:443", remote_model="big:120b")
    daemon.add_model(cloud)
    parts = with_daemon.parts()
    assert [each.model for each in await parts.library.models(BackendName.OLLAMA)] == ["demo:latest"]
    assert await daemon_of(parts).find("big:120b-cloud") is None
    with pytest.raises(ModelNotFound, match="allow_cloud_models"):
        await daemon_of(parts).details("big:120b-cloud")
    with pytest.raises(ModelNotFound, match="allow_cloud_models"):
        await daemon_of(parts).delete("big:120b-cloud")
    await parts.library.aclose()


async def test_details_are_what_the_daemon_shows(with_daemon: Machine, daemon: FakeOllama) -> None:
    daemon.add_model(
        FakeModel(
            "able:1b", ("completion", "tools", "vision"), parameters={"temperature": 0.5, "stop": '"<end>"', "seed": 7}
        )
    )
    parts = with_daemon.parts()
    shown = await parts.library.details(parse_model_spec("able:1b"))
    assert shown.architecture == "llama"
    assert shown.template == "daemon"
    assert shown.installed.capabilities == ("chat", "tools", "vision")
    assert shown.template_capabilities == ("tools", "images")
    assert shown.installed.context_length == 8192
    assert shown.defaults == {"temperature": 0.5, "stop": "<end>", "seed": 7}
    assert shown.memory == ()
    with pytest.raises(ModelNotFound, match=r"llmspell model pull local/no@ollama"):
        await parts.library.details(parse_model_spec("ollama/no"))
    await parts.library.aclose()


async def test_a_daemon_that_answers_is_up(with_daemon: Machine) -> None:
    parts = with_daemon.parts()
    assert await health(parts) == BackendHealth(
        BackendName.OLLAMA, is_up=True, version="0.30.0", url=with_daemon.daemon_url
    )
    await parts.library.aclose()


async def test_a_daemon_that_is_down_has_no_models_and_says_how_to_start_it(machine: Machine) -> None:
    programs = machine.root / "programs"
    programs.mkdir()
    machine.environ["PATH"] = str(programs)
    machine.daemon_url = unused_url()
    parts = machine.parts()
    found = await health(parts)
    assert (found.is_up, found.url, found.reason) == (False, machine.daemon_url, "the connection is refused")
    assert await parts.library.models() == []
    assert await parts.library.find(DEMO) is None
    for ask in (parts.library.details, parts.library.delete):
        with pytest.raises(BackendError, match="llmspell model install-ollama"):
            await ask(DEMO)
    (programs / "ollama").touch(mode=0o755)
    with pytest.raises(BackendError, match=r"ollama serve"):
        await parts.library.details(DEMO)
    await parts.library.aclose()


async def test_a_daemon_that_comes_up_is_noticed(daemon: FakeOllama) -> None:
    daemon.stop()
    now = 0.0
    library = OllamaLibrary(config_of(daemon), {}, clock=lambda: now)
    assert await library.models() == []
    daemon.start()
    assert await library.models() == []  # it was asked a moment ago
    now = 2.0
    assert len(await library.models()) == 1
    assert (await library.health()).is_up
    await library.aclose()


async def test_who_asks_often_does_not_wait_for_a_daemon_that_hangs(daemon: FakeOllama) -> None:
    now = 0.0
    library = OllamaLibrary(replace(config_of(daemon), detection_timeout_seconds=0.2), {}, clock=lambda: now)
    pause = daemon.on(Pause(), path="/api/version", times=None)
    first = await library.health()  # takes as long as the configuration allows
    assert (first.is_up, first.reason) == (False, "it takes too long")
    before = num_asked(daemon)
    now = 2.0
    assert await library.health() == first  # which is asked again meanwhile
    await asyncio.to_thread(daemon.wait_for, lambda: num_asked(daemon) > before)
    pause.release()
    await library.aclose()


@pytest.mark.parametrize("body", ["<html>hello</html>", "[]", "{}", '{"version": 3}'])
async def test_something_else_on_the_port_is_not_a_daemon(with_daemon: Machine, daemon: FakeOllama, body: str) -> None:
    daemon.on(Answer(body=body), path="/api/version", times=None)
    parts = with_daemon.parts()
    found = await health(parts)
    assert not found.is_up
    assert "does not behave as Ollama does" in (found.reason or "")
    with pytest.raises(BackendError, match="does not behave as Ollama does"):
        await parts.library.details(DEMO)
    await parts.library.aclose()


async def test_a_list_that_cannot_be_read_is_no_end(with_daemon: Machine, daemon: FakeOllama) -> None:
    daemon.on(Answer(body='{"models": [{"name": 1}], "x": 2'), path="/api/tags", times=1)
    parts = with_daemon.parts()
    assert await parts.library.models(BackendName.OLLAMA) == []
    assert len(await parts.library.models(BackendName.OLLAMA)) == 1
    await parts.library.aclose()


async def test_a_deleted_model_is_gone_from_memory_and_disk(with_daemon: Machine, daemon: FakeOllama) -> None:
    parts = with_daemon.parts()
    await daemon_of(parts).load("demo", "1h")
    assert daemon.loaded == ["demo:latest"]
    deleted = await parts.library.delete(DEMO)
    assert (deleted.model, deleted.backend) == ("demo:latest", BackendName.OLLAMA)
    assert (deleted.paths, deleted.freed_bytes) == ((), 1000)
    assert daemon.loaded == []
    assert await parts.library.models(BackendName.OLLAMA) == []
    with pytest.raises(ModelNotFound):
        await parts.library.delete(DEMO)
    await parts.library.aclose()


async def test_a_copy_of_a_model_frees_nothing(with_daemon: Machine, daemon: FakeOllama) -> None:
    demo = FakeModel("demo")
    daemon.add_model(FakeModel("copy", digest=demo.sha256))
    parts = with_daemon.parts()
    assert (await parts.library.delete(parse_model_spec("ollama/copy"))).freed_bytes == 0
    await parts.library.aclose()


async def test_refusals_of_the_daemon_are_told(with_daemon: Machine, daemon: FakeOllama) -> None:
    daemon.on(Answer(status=500, error="remove /x: permission denied"), path="/api/delete")
    parts = with_daemon.parts()
    with pytest.raises(LlmspellError, match="permission denied"):
        await parts.library.delete(DEMO)
    assert await parts.library.find(DEMO) is not None
    await parts.library.aclose()


async def test_models_are_loaded_and_unloaded(with_daemon: Machine, daemon: FakeOllama) -> None:
    parts = with_daemon.parts()
    library = daemon_of(parts)
    await library.load("demo", -1)
    await library.load("demo", "5m")
    assert daemon.loaded == ["demo:latest"]
    assert daemon.requests[-1].body["keep_alive"] == "5m"
    await library.unload("demo:latest")
    assert daemon.loaded == []
    await library.unload("demo")  # which is fine
    for ask in (library.load, library.unload):
        with pytest.raises(ModelNotFound):
            await ask("no")
    await parts.library.aclose()
