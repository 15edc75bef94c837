"""``llmspell model`` beside a server: the real one, with the bundled model."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator

import pytest
from e2e.serving import Server
from fakes.hub import FakeHub, Rule, Stall
from program import PATIENCE, Program

REPOSITORY = "owner/repo-GGUF"
SPEC = f"hf.co/{REPOSITORY}:Q4_K_M"
DEMO = "local/demo@llamacpp"
CONTENT = random.Random(2).randbytes(1 << 20)


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        fake.add(REPOSITORY, {"model-Q4_K_M.gguf": CONTENT})
        yield fake


@pytest.fixture(scope="module")
def server(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server")
    variables = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", "LLMSPELL_STORE__MODELS_DIR": str(home / "models")}
    with Server("--demo", home=home, variables=variables) as running:
        yield running


@pytest.fixture
def client(program: Program, server: Server) -> Program:
    """The program of a user whose configuration names the server's port."""
    program.variables["LLMSPELL_SERVER__PORT"] = str(server.port)
    return program


def test_status_shows_the_server_and_what_is_in_memory(client: Program, server: Server) -> None:
    assert client.run("model", "load", "demo").code == 0
    result = client.run("model", "status")
    assert (result.code, result.errors) == (0, "")
    assert result.output.startswith("Server: llmspell ")
    assert f"at {server.url}, for " in result.output
    assert ", ready\n" in result.output
    assert "local/demo" in result.output
    assert "CPU" in result.output
    document = client.run("model", "status", "--json").document
    assert (document["object"], document["ready"]) == ("status", True)
    assert [each["state"] for each in document["models"]] == ["warm"]


@pytest.mark.parametrize("by", ["--server", "LLMSPELL_SERVER"])
def test_the_server_can_be_named(by: str, program: Program, server: Server) -> None:
    arguments = []
    if by == "--server":
        arguments = ["--server", f"{server.url}/v1/"]
    else:
        program.variables[by] = server.url
    document = program.run("model", "status", "--json", *arguments).document
    assert document["started"] is not None


def test_a_list_has_states(client: Program) -> None:
    assert client.run("model", "load", "demo").code == 0
    document = client.run("model", "list", "--json").document
    (demo,) = [each for each in document["data"] if each["name"] == "demo"]
    assert (demo["state"], demo["source"]) == ("warm", "config")
    assert "warm" in client.run("model", "list").output
    assert client.run("model", "show", "demo", "--json").document["state"] == "warm"
    shown = dict(line.split(maxsplit=1) for line in client.run("model", "show", "demo").output.splitlines()[:6])
    assert shown["state"] == "warm"


def test_load_and_unload(client: Program) -> None:
    unloaded = client.run("model", "unload", "demo", "--force", "--json")
    assert (unloaded.code, unloaded.document["state"]) == (0, "cold")
    loaded = client.run("model", "load", "demo")
    assert loaded.code == 0
    assert loaded.output.startswith("local/demo")
    assert " warm" in loaded.output
    on_terminal = client.on_terminal("model", "load", "demo")
    assert on_terminal.code == 0


def test_what_the_server_refuses_is_one_line(client: Program) -> None:
    for arguments in (["show", "nothing"], ["rm", "nothing", "--yes"], ["load", "nothing"], ["rm", "demo", "--yes"]):
        result = client.run("model", *arguments)
        assert (result.code, result.output) == (1, ""), arguments
        assert result.errors.startswith("llmspell: error: "), arguments
        assert result.errors.count("\n") == 1, arguments


def test_a_pull_of_the_server_that_is_left_and_gone_on_with(client: Program, hub: FakeHub) -> None:
    hub.rules.append(Rule("/", Stall(600_000), times=1, at_hub=False))
    with client.started("model", "pull", SPEC, "--json") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("done_bytes", 0) >= 500_000:
                break
        status = client.run("model", "status")
        assert f"local/{SPEC}" in status.output
        assert "downloading" in status.output
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "run the same command again" in errors
    pulled = client.run("model", "pull", SPEC)
    assert (pulled.code, pulled.output) == (0, f"local/{SPEC}@llamacpp\n")
    deleted = client.run("model", "rm", SPEC, "--yes", "--json").document
    assert (deleted["deleted"], deleted["freed_bytes"]) == (True, len(CONTENT))
