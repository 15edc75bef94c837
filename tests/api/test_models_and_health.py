from __future__ import annotations

import httpx
import openai
import pytest
from openai.types import Model

from api.scripted import ScriptedBackend, card
from api.serving import Served
from server.core.ports import ModelState, PreloadedModel


async def test_lists_models_as_openai_does(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.cards = [card("demo"), card("phi3:3.8b", ModelState.COLD)]

    listed = (await client.get("/v1/models")).json()

    assert listed["object"] == "list"
    assert [Model.model_validate(model).id for model in listed["data"]] == ["local/demo", "local/phi3:3.8b"]
    assert listed["data"][0] == {
        "id": "local/demo",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "llmspell",
        "backend": "llamacpp",
        "state": "warm",
        "size_bytes": 1234,
        "context_length": 2048,
        "capabilities": ["chat"],
    }


@pytest.mark.parametrize(
    "name", ["local/demo", "local%2Fdemo", "demo", "local/demo@llamacpp", "llamacpp/demo", "gpt-4o-mini"]
)
async def test_retrieves_a_model_by_any_of_its_names(client: httpx.AsyncClient, name: str) -> None:
    response = await client.get(f"/v1/models/{name}")

    assert response.status_code == 200
    assert response.json()["id"] == "local/demo"


async def test_retrieving_an_unknown_model_is_a_404(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models/local/dem")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "local/demo" in response.json()["error"]["message"]


async def test_the_official_client_lists_and_retrieves(served: Served) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["local/demo"]
        assert (await client.models.retrieve("local/demo")).id == "local/demo"


@pytest.mark.parametrize(
    ("models", "code", "status"),
    [
        ([], 200, "ready"),
        ([(ModelState.WARM, True)], 200, "ready"),
        ([(ModelState.WARM, True), (ModelState.COLD, True)], 200, "ready"),
        ([(ModelState.LOADING, True), (ModelState.DRAINING, True)], 200, "ready"),
        ([(ModelState.WARM, True), (ModelState.LOADING, False)], 503, "loading"),
        ([(ModelState.COLD, False)], 503, "loading"),
        ([(ModelState.LOADING, False), (ModelState.FAILED, False)], 503, "failed"),
        ([(ModelState.WARM, True), (ModelState.FAILED, False)], 503, "failed"),
    ],
)
async def test_ready_means_that_preloaded_models_have_been_loaded(
    client: httpx.AsyncClient, backend: ScriptedBackend, models: list[tuple[ModelState, bool]], code: int, status: str
) -> None:
    preloads = [PreloadedModel(card(f"m{index}", state), is_ready=ready) for index, (state, ready) in enumerate(models)]
    backend.cards = [*(model.card for model in preloads), card("lazy", ModelState.COLD)]
    backend.preloads = preloads

    for path in ("/health", "/health/ready"):
        response = await client.get(path)
        assert response.status_code == code
        assert response.json() == {
            "status": status,
            "models": {f"local/m{index}": state.value for index, (state, _) in enumerate(models)},
        }
        assert (await client.head(path)).status_code == code


async def test_live_whatever_the_models_do(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.cards = [card("m", ModelState.FAILED)]

    assert (await client.get("/health/live")).status_code == 200


async def test_the_root_points_to_the_rest(client: httpx.AsyncClient) -> None:
    assert (await client.get("/")).json()["models"] == "/v1/models"
