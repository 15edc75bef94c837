"""``llmspell model`` beside a daemon (a stand-in), without a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes.ollama import FakeModel, FakeOllama
from program import Program
from store.made_stores import put_ollama


@pytest.fixture
def daemon(program: Program) -> Iterator[FakeOllama]:
    offered = [FakeModel("phi3:3.8b")]
    with FakeOllama(FakeModel("demo"), FakeModel("other:1b"), offered=offered) as running:
        program.variables |= {
            "OLLAMA_HOST": running.url,
            "LLMSPELL_OLLAMA__DETECTION_TIMEOUT_SECONDS": "30",
            "LLMSPELL_OLLAMA__CONNECT_TIMEOUT_SECONDS": "30",
        }
        yield running


def test_a_model_in_its_store_is_one_line_for_both_backends(program: Program, daemon: FakeOllama) -> None:
    assert daemon.url
    put_ollama(program.home / ".ollama" / "models", "registry.ollama.ai/library/demo/latest")
    lines = program.run("model", "list").output.splitlines()
    shown = {line.split()[0]: line for line in lines[1:]}
    assert sorted(shown) == ["demo:latest", "other:1b"]
    assert "ollama, llamacpp" in shown["demo:latest"]
    ids = [each["id"] for each in program.run("model", "list", "--json").document["data"]]
    assert sorted(ids) == ["local/demo:latest@llamacpp", "local/demo:latest@ollama", "local/other:1b@ollama"]
    only = program.run("model", "list", "--backend", "ollama").output.splitlines()
    assert [line.split()[:2] for line in only[1:]] == [["demo:latest", "ollama"], ["other:1b", "ollama"]]


def test_status_shows_the_daemon_and_what_it_has_in_memory(program: Program, daemon: FakeOllama) -> None:
    loaded = program.run("model", "load", "other:1b")
    assert (loaded.code, loaded.output) == (0, "local/other:1b@ollama warm\n")
    result = program.run("model", "status")
    assert result.code == 0
    assert f"up     0.30.0   {daemon.url}" in " ".join(result.output.split("\n")) or daemon.url in result.output
    assert "local/other:1b@ollama  warm" in result.output
    document = program.run("model", "status", "--json").document
    assert [(each["id"], each["state"]) for each in document["models"]] == [("local/other:1b@ollama", "warm")]
    unloaded = program.run("model", "unload", "other:1b", "--json").document
    assert (unloaded["id"], unloaded["state"]) == ("local/other:1b@ollama", "cold")
    assert program.run("model", "status", "--json").document["models"] == []


def test_the_daemon_is_not_forced(program: Program, daemon: FakeOllama) -> None:
    assert daemon.url
    result = program.run("model", "unload", "demo", "--force")
    assert (result.code, result.output) == (1, "")
    assert "--force" in result.errors


def test_it_pulls_and_deletes(program: Program, daemon: FakeOllama) -> None:
    assert daemon.url
    pulled = program.run("model", "pull", "ollama/phi3:3.8b")
    assert (pulled.code, pulled.output) == (0, "local/phi3:3.8b@ollama\n")
    assert "phi3:3.8b" in program.run("model", "list").output
    assert program.run("model", "show", "phi3:3.8b", "--json").document["backend"] == "ollama"
    deleted = program.run("model", "rm", "phi3:3.8b", "--yes")
    assert deleted.code == 0
    assert deleted.output.startswith("deleted local/phi3:3.8b@ollama, ")
    assert "phi3:3.8b" not in program.run("model", "list").output
    unknown = program.run("model", "pull", "ollama/nothing")
    assert (unknown.code, unknown.output) == (1, "")
    assert unknown.errors.splitlines()[-1].startswith("llmspell: error: ")


def test_its_tags_are_the_quantizations(program: Program, daemon: FakeOllama) -> None:
    assert daemon.url
    result = program.run("model", "pull", "ollama/phi3:3.8b", "--quantization", "Q8_0")
    assert (result.code, result.output) == (1, "")
    assert "tag" in result.errors
