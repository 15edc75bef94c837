"""Which model answers to which name, while models and daemons come and go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import prestarted
import pytest
from conftest import Start
from fakes.ollama import FakeModel, FakeOllama
from openai import OpenAI
from serving import PATIENCE, Server, environment, eventually, using_ollama

CONFIG = """
[aliases]
"gpt-4o-mini" = "local/spell:8b"
"gpt-4o" = "llamacpp/demo"
"o3" = "demo"
[ollama]
keep_alive = "7m"
preload = "spell:8b"
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[FakeOllama]:
    with FakeOllama(
        FakeModel("demo"),
        FakeModel("spell:8b", ("completion", "tools"), listed=("completion",), context_length=1234),
        FakeModel("hf.co/me/Repo-GGUF:Q4_K_M"),
        FakeModel("team/helper"),
        FakeModel("far:cloud", remote_host="https://ollama.com", remote_model="far"),
    ) as fake:
        yield fake


@pytest.fixture(scope="module")
def routed(daemon: FakeOllama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("routed")
    config = home / "config.toml"
    config.write_text(CONFIG, encoding="utf-8")
    variables = using_ollama(daemon.url)
    with Server("--demo", "--config", str(config), home=home, variables=variables) as server:
        yield server
        assert server.failures == []


def answering(server: Server, model: str) -> str:
    """The backend that answers to a name."""
    response = server.ask(model=model, max_tokens=1)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == model
    return response.headers["x-llmspell-backend"]


def listed(server: Server) -> dict[str, dict[str, Any]]:
    response = httpx.get(f"{server.base_url}/models", timeout=PATIENCE)
    assert response.status_code == 200, response.text
    models = response.json()["data"]
    found = {model["id"]: model for model in models}
    assert len(found) == len(models)
    return found


@pytest.mark.parametrize(
    ("spec", "backend", "known_as"),
    [
        ("local/demo", "ollama", "demo:latest"),
        ("demo", "ollama", "demo:latest"),
        ("demo:latest", "ollama", "demo:latest"),
        ("DEMO", "ollama", "demo:latest"),
        ("demo@ollama", "ollama", "demo:latest"),
        ("ollama/demo", "ollama", "demo:latest"),
        ("ollama/demo:latest@ollama", "ollama", "demo:latest"),
        ("local/demo@llamacpp", "llamacpp", ""),
        ("demo@llama.cpp", "llamacpp", ""),
        ("llamacpp/demo", "llamacpp", ""),
        ("llamacpp/demo:latest@llama.cpp", "llamacpp", ""),
        ("spell:8b", "ollama", "spell:8b"),
        ("hf.co/me/Repo-GGUF", "ollama", "hf.co/me/Repo-GGUF:Q4_K_M"),
        ("local/hf.co/me/repo-gguf:q4_k_m", "ollama", "hf.co/me/Repo-GGUF:Q4_K_M"),
        ("team/helper", "ollama", "team/helper:latest"),
        ("ollama/team/helper", "ollama", "team/helper:latest"),
        ("gpt-4o-mini", "ollama", "spell:8b"),
        ("gpt-4o", "llamacpp", ""),
        ("o3", "ollama", "demo:latest"),
    ],
)
def test_names(routed: Server, daemon: FakeOllama, spec: str, backend: str, known_as: str) -> None:
    assert answering(routed, spec) == backend
    if known_as:
        assert daemon.chats[-1].model == known_as
    found = httpx.get(f"{routed.base_url}/models/{spec}").json()
    assert found["backend"] == backend
    row = listed(routed)[found["id"]]
    assert found | {"state": ""} == row | {"state": ""}  # it may just have been loaded


@pytest.mark.parametrize(
    "spec",
    [
        "ollama/demo@llamacpp", "llamacpp/demo@ollama", "demo@vllm", "demo@", "@ollama", "", "local/", "local/demo:",
        ":8b", "../demo", "local/../../etc/passwd", "a/../b", "demo\n", "de\x00mo", "demo\u202e", "hf.co/me", "hf.co/",
        "x" * 10_000, "demo?x=1", "demo:8b:9b",
    ],
)  # fmt: skip
def test_what_is_no_spec(routed: Server, daemon: FakeOllama, spec: str) -> None:
    before = len(daemon.chats)
    response = routed.ask(model=spec)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", "model")
    assert len(response.content) < 2000
    assert len(daemon.chats) == before


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("llamacpp/spell:8b", "`llmspell model pull local/spell:8b@llamacpp`"),
        ("spell", "Did you mean local/spell:8b"),
        ("local/spelt:8b", "Did you mean local/spell:8b"),
        ("gpt-4o-minni", "gpt-4o-mini"),
        ("hf.co/me/Other-GGUF:Q8_0", "`llmspell model pull local/hf.co/me/Other-GGUF:Q8_0`"),
        ("far:cloud", "allow_cloud_models"),
        ("nothing/of/that/kind", "`llmspell model pull local/nothing/of/that/kind`"),
    ],
)
def test_models_that_nobody_has(routed: Server, spec: str, told: str) -> None:
    response = routed.ask(model=spec)
    error = response.json()["error"]
    assert response.status_code == 404
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")
    assert told in error["message"]
    found = httpx.get(f"{routed.base_url}/models/{spec}")
    assert (found.status_code, found.json()["error"]["code"]) == (404, "model_not_found")


def test_the_list(routed: Server) -> None:
    models = listed(routed)
    assert set(models) == {
        "local/demo:latest",
        "local/demo@llamacpp",
        "local/spell:8b",
        "local/hf.co/me/Repo-GGUF:Q4_K_M",
        "local/team/helper:latest",
    }
    for model, row in models.items():
        assert answering(routed, model) == row["backend"]
    assert len({frozenset(row) for row in models.values()}) == 1  # the same keys on both backends
    row = models["local/spell:8b"]
    assert (row["context_length"], row["capabilities"]) == (1234, ["chat", "tools"])
    assert row["size_bytes"] > 1000


def test_states(routed: Server, daemon: FakeOllama) -> None:
    def state() -> object:
        return listed(routed)["local/spell:8b"]["state"]

    eventually(lambda: state() == "warm", "the daemon was asked to load it at the start")
    daemon.unload("spell:8b")
    eventually(lambda: state() == "cold", "it is not in memory")
    answering(routed, "spell:8b")
    eventually(lambda: state() == "warm", "it is in memory")


def test_extensions_are_passed_on(routed: Server, daemon: FakeOllama) -> None:
    with routed.client() as client:

        def options(**extra: object) -> Any:  # noqa: ANN401
            client.chat.completions.create(
                model="spell:8b", messages=[{"role": "user", "content": "Hi"}], extra_body=extra
            )
            return daemon.chats[-1].body

        assert options()["keep_alive"] == "7m"  # what the operator wants
        assert "num_ctx" not in options()["options"]
        assert options(keep_alive="1h")["keep_alive"] == "1h"
        assert options(keep_alive=-1)["keep_alive"] == -1
        assert options(num_ctx=512)["options"]["num_ctx"] == 512
        assert options()["truncate"] is False
    assert routed.ask(model="demo@llamacpp", num_ctx=512).json()["error"]["param"] == "num_ctx"
    assert routed.ask(model="demo@llamacpp", keep_alive="1h", max_tokens=1).status_code == 200


def test_a_model_that_is_pulled_and_deleted_while_the_server_runs(routed: Server, daemon: FakeOllama) -> None:
    assert routed.ask(model="fresh").status_code == 404
    daemon.add_model(FakeModel("fresh"))
    eventually(lambda: routed.ask(model="fresh", max_tokens=1).status_code == 200, "the new model is used")
    assert "local/fresh:latest" in listed(routed)
    daemon.remove_model("fresh")
    for spec in ("fresh", "fresh@ollama"):
        response = routed.ask(model=spec)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert "llmspell model pull local/fresh" in response.json()["error"]["message"]
    eventually(lambda: "local/fresh:latest" not in listed(routed), "it is off the list")


def test_a_deleted_model_is_served_by_the_pool_if_that_has_it(routed: Server, daemon: FakeOllama) -> None:
    assert answering(routed, "demo") == "ollama"
    daemon.remove_model("demo")
    assert answering(routed, "demo") == "llamacpp"
    eventually(lambda: "local/demo" in listed(routed), "there is only one of that name")
    daemon.add_model(FakeModel("demo"))
    eventually(lambda: answering(routed, "demo") == "ollama", "the daemon is preferred")


def test_the_pool_can_be_preferred(start: Start, daemon: FakeOllama) -> None:
    server = start("--demo", config='[routing]\nprefer = "llamacpp"\n', variables=using_ollama(daemon.url))
    assert answering(server, "demo") == "llamacpp"
    assert answering(server, "demo@ollama") == "ollama"
    assert answering(server, "spell:8b") == "ollama"
    for model, row in listed(server).items():
        assert answering(server, model) == row["backend"]


def test_cloud_models_when_they_are_allowed(start: Start, daemon: FakeOllama) -> None:
    server = start(config="[ollama]\nallow_cloud_models = true\n", variables=using_ollama(daemon.url))
    assert "local/far:cloud" in listed(server)
    assert answering(server, "far:cloud") == "ollama"


@pytest.mark.parametrize("value", [":{}", '"http://0.0.0.0:{}/"'])
def test_forms_of_the_address(start: Start, daemon: FakeOllama, value: str) -> None:
    """Also: a server without models of its own."""
    variables = using_ollama("", OLLAMA_HOST=value.format(daemon.port))
    server = start(variables=variables)
    assert answering(server, "spell:8b") == "ollama"
    assert {row["backend"] for row in listed(server).values()} == {"ollama"}
    assert httpx.get(f"{server.url}/health/ready").json()["status"] == "ready"


def said_by_refusal(home: Path, **variables: str) -> str:
    result = prestarted.run("serve", "--port", "0", timeout=PATIENCE, env=environment(home, **variables), cwd=home)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_neither_models_nor_a_daemon(start: Start) -> None:
    server = start()
    said = "there is no model to serve yet; download one with `llmspell model pull`"
    eventually(lambda: said in server.log_text, "the log has it")  # which is read beside, and may come later
    assert httpx.get(f"{server.url}/v1/models").json()["data"] == []
    refused = server.ask()
    assert refused.status_code == 404
    assert "`llmspell model pull local/demo`" in refused.json()["error"]["message"]


def test_an_address_that_is_none(tmp_path: Path) -> None:
    assert "OLLAMA_HOST" in said_by_refusal(tmp_path, LLMSPELL_OLLAMA__ENABLED="true", OLLAMA_HOST="ftp://x")


def test_thousands_of_models(start: Start) -> None:
    with FakeOllama(FakeModel("spell"), num_models=2000) as many:
        server = start("--demo", variables=using_ollama(many.url))
        assert len(listed(server)) == 2002
        assert answering(server, "model-01999") == "ollama"
        missing = server.ask(model="modle-01999").json()["error"]["message"]
        assert "local/model-0" in missing
        assert len(missing) < 1000
        with OpenAI(base_url=server.base_url, api_key="unused", max_retries=0) as client:
            assert len(client.models.list().data) == 2002
