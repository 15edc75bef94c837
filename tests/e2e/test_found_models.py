"""Models that other programs have put on this machine are served where they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Start
from fakes.ollama import FakeModel, FakeOllama
from serving import CHAT, DISCOVER, PATIENCE, Server, chat_body, eventually, using_ollama
from store.made_stores import put, put_hub, put_ollama

DEMO_FILE = Path(__file__).parents[2] / "server" / "assets" / "demo.gguf"
FOUND = {DISCOVER: "true"}
SYSTEM = "You answer in English."
QUESTION = {"role": "user", "content": "The capital of France?"}


@pytest.fixture
def ollama_store(tmp_path: Path) -> Path:
    """A store of Ollama with the demo model in Ollama's layout, and with a manifest that says something."""
    root = tmp_path / "ollama"
    layers = [
        ("template", b"{{ .System }}|{{ .Prompt }}|"),
        ("system", SYSTEM.encode()),
        ("params", json.dumps({"temperature": 0, "num_predict": 7, "num_ctx": 512, "mirostat": 2}).encode()),
    ]
    put_ollama(root, "registry.ollama.ai/library/spell/1b", DEMO_FILE.read_bytes(), layers)
    return root


@pytest.fixture
def on_ollama_store(start: Start, ollama_store: Path) -> Server:
    """A server on a machine with nothing but that store."""
    return start(variables=FOUND | {"OLLAMA_MODELS": str(ollama_store)})


def listed(server: Server) -> dict[str, dict[str, Any]]:
    answer = httpx.get(f"{server.url}/v1/models", timeout=PATIENCE).json()
    return {model["id"]: model for model in answer["data"]}


def ask(server: Server, model: str, **parameters: object) -> httpx.Response:
    body = chat_body() | {"model": model, "messages": [QUESTION]} | parameters
    return httpx.post(server.url + CHAT, json=body, timeout=PATIENCE)


def answered(server: Server, model: str, **parameters: object) -> dict[str, Any]:
    response = ask(server, model, **parameters)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_model_that_only_ollama_has_answers_in_the_pool(on_ollama_store: Server, ollama_store: Path) -> None:
    before = sorted(ollama_store.rglob("*"))
    assert [*listed(on_ollama_store)] == ["local/spell:1b"]
    for name in ("local/spell:1b@llamacpp", "spell:1b", "llamacpp/SPELL:1B"):
        assert answered(on_ollama_store, name)["choices"][0]["message"]["content"]
    assert sorted(ollama_store.rglob("*")) == before, "it runs straight from its blob"
    status = httpx.get(f"{on_ollama_store.url}/admin/models", timeout=PATIENCE).json()["data"]
    assert [(model["id"], model["state"]) for model in status] == [("local/spell:1b", "warm")]


def test_what_its_manifest_says_holds_for_requests(on_ollama_store: Server) -> None:
    answer = answered(on_ollama_store, "spell:1b", ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 7, "num_predict"
    assert answered(on_ollama_store, "spell:1b", ignore_eos=True)["choices"] == answer["choices"], "temperature"
    assert answered(on_ollama_store, "spell:1b", ignore_eos=True, max_tokens=9)["usage"]["completion_tokens"] == 9

    said = answered(on_ollama_store, "spell:1b", messages=[{"role": "system", "content": SYSTEM}, QUESTION])
    other = answered(on_ollama_store, "spell:1b", messages=[{"role": "system", "content": "."}, QUESTION])
    assert answer["usage"]["prompt_tokens"] == said["usage"]["prompt_tokens"] > other["usage"]["prompt_tokens"]

    status = httpx.get(f"{on_ollama_store.url}/admin/models/local/spell:1b", timeout=PATIENCE).json()
    assert status["context_length"] == 512
    eventually(lambda: "mirostat" in on_ollama_store.log_text, "what has no counterpart is named")


def test_models_come_and_go_while_the_server_runs(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    server = start(config=f'[llamacpp]\nmodel_dirs = ["{folder}"]\n')
    assert listed(server) == {}
    assert ask(server, "fresh").status_code == 404

    shutil.copy(DEMO_FILE, folder / "fresh.gguf")
    eventually(lambda: ask(server, "fresh", max_tokens=1).status_code == 200, "a new file is found")
    assert listed(server)["local/fresh"]["state"] == "warm"

    (folder / "fresh.gguf").unlink()
    eventually(lambda: listed(server) == {}, "a file that is gone is not listed")
    assert ask(server, "fresh").status_code == 404

    def in_memory() -> list[str]:
        models = httpx.get(f"{server.url}/admin/models", timeout=PATIENCE).json()["data"]
        return [model["id"] for model in models if model["state"] != "cold"]

    eventually(lambda: in_memory() == [], "its memory is free again")


def test_all_places_together_and_every_model_once(start: Start, tmp_path: Path) -> None:
    data = DEMO_FILE.read_bytes()
    put(tmp_path / "data" / "llmspell" / "models" / "hf.co" / "me" / "Own-GGUF" / "Own-Q8_0.gguf", data + b"\0")
    put(tmp_path / "mine" / "mine.gguf", data + b"\0\0")
    put_hub(tmp_path / "hub", "you/Cached-GGUF", "cached-Q4_K_M.gguf", data + b"\0\0\0")
    put(tmp_path / ".lmstudio" / "models" / "them" / "Studio-GGUF" / "copy-Q4_K_M.gguf", data + b"\0\0\0")
    put(tmp_path / "mine" / "broken.gguf", b"GGUF" + bytes(100))
    folders = {"XDG_DATA_HOME": str(tmp_path / "data"), "HF_HUB_CACHE": str(tmp_path / "hub")}
    server = start(config='[llamacpp]\nmodel_dirs = ["mine"]\n', variables=FOUND | folders)

    models = ["local/hf.co/me/Own-GGUF:Q8_0", "local/mine", "local/hf.co/you/Cached-GGUF:Q4_K_M"]
    assert set(listed(server)) == {*models, "local/broken"}
    for model in (*models, "local/hf.co/them/Studio-GGUF", "local/cached"):
        assert answered(server, model, max_tokens=2)["usage"]["completion_tokens"] == 2
    broken = ask(server, "local/broken")
    assert (broken.status_code, broken.json()["error"]["code"]) == (503, "model_loading_failed")
    assert "broken.gguf" in broken.json()["error"]["message"]


def test_a_model_of_the_configuration_may_be_found_by_its_name(start: Start, ollama_store: Path) -> None:
    server = start(
        config='[models."local/spell:1b"]\npreload = true\ncontext_length = 256\n',
        variables=FOUND | {"OLLAMA_MODELS": str(ollama_store)},
    )
    assert {name: model["state"] for name, model in listed(server).items()} == {"local/spell:1b": "warm"}
    assert listed(server)["local/spell:1b"]["context_length"] == 256


def test_the_daemon_comes_first_and_the_pool_when_it_is_told_to(start: Start, ollama_store: Path) -> None:
    with FakeOllama(FakeModel("spell:1b")) as daemon:
        server = start(variables=using_ollama(daemon.url) | FOUND | {"OLLAMA_MODELS": str(ollama_store)})
        assert [*listed(server)] == ["local/spell:1b", "local/spell:1b@llamacpp"]
        assert ask(server, "spell:1b").headers["x-llmspell-backend"] == "ollama"
        assert ask(server, "spell:1b@llamacpp").headers["x-llmspell-backend"] == "llamacpp"
    eventually(
        lambda: ask(server, "spell:1b").headers.get("x-llmspell-backend") == "llamacpp",
        "the pool serves what the daemon had",
    )
