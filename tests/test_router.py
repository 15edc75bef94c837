from __future__ import annotations

import pytest
from api.scripted import ScriptedBackend, card

from server.core.errors import ConfigurationError, InvalidModelSpec, ModelNotFound
from server.core.model_spec import BackendName, ModelSpec
from server.core.ports import Backend
from server.router import ModelRouter


def llamacpp(*models: str) -> ScriptedBackend:
    return ScriptedBackend(cards=[card(model) for model in models])


def ollama(*models: str) -> ScriptedBackend:
    backend = ScriptedBackend(name=BackendName.OLLAMA)
    backend.cards = [card(model, backend=BackendName.OLLAMA) for model in models]
    return backend


async def chosen(router: ModelRouter, text: str) -> tuple[Backend, ModelSpec]:
    route = await router.route(text)
    return route.backend, route.spec


async def test_the_first_backend_that_has_the_model_serves_it() -> None:
    first, second = ollama("a"), llamacpp("a", "b")
    router = ModelRouter([first, second], {})

    assert await chosen(router, "local/a") == (first, ModelSpec("a"))
    assert await chosen(router, "b") == (second, ModelSpec("b"))


async def test_a_spec_can_force_a_backend() -> None:
    router = ModelRouter([ollama("a"), second := llamacpp("a")], {})

    assert await chosen(router, "a@llamacpp") == (second, ModelSpec("a", backend=BackendName.LLAMACPP))
    assert await chosen(router, "llamacpp/a") == (second, ModelSpec("a", backend=BackendName.LLAMACPP))


async def test_a_forced_backend_without_the_model_does_not_fall_back() -> None:
    router = ModelRouter([ollama("a"), llamacpp("b")], {})

    with pytest.raises(ModelNotFound):
        await router.route("a@llamacpp")


async def test_a_backend_that_is_not_configured_is_named() -> None:
    with pytest.raises(ModelNotFound, match=r"ollama, which is not configured here.*llamacpp") as caught:
        await ModelRouter([llamacpp("a")], {}).route("a@ollama")
    assert caught.value.param == "model"


async def test_aliases_stand_for_specs() -> None:
    router = ModelRouter([backend := llamacpp("demo")], {"gpt-4o-mini": "local/demo", "any text!": "demo@llamacpp"})

    assert await chosen(router, "gpt-4o-mini") == (backend, ModelSpec("demo"))
    assert await chosen(router, "any text!") == (backend, ModelSpec("demo", backend=BackendName.LLAMACPP))


@pytest.mark.parametrize(
    "aliases", [{"a": "!"}, {"a": ""}, {"a": "x@y"}, {"": "local/demo"}, {"a": "b", "b": "local/demo"}]
)
def test_aliases_are_checked_at_once(aliases: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        ModelRouter([], aliases)


async def test_an_unknown_model_suggests_the_closest() -> None:
    router = ModelRouter([llamacpp("llama3.1:8b", "phi3:3.8b", "qwen")], {"lama": "qwen"})

    with pytest.raises(ModelNotFound, match=r"Did you mean local/llama3\.1:8b, lama\?.*--model FILE\.gguf"):
        await router.route("llama")
    with pytest.raises(ModelNotFound) as caught:
        await router.route("zzzzzzzzzzzzzz")
    assert "Did you mean" not in caught.value.message


async def test_what_is_no_spec_is_refused() -> None:
    with pytest.raises(InvalidModelSpec):
        await ModelRouter([llamacpp("a")], {}).route("!")


async def test_each_listed_id_leads_back_to_its_model() -> None:
    router = ModelRouter([ollama("a"), llamacpp("a", "b")], {})

    listed = await router.models()

    assert [model.id for model in listed] == ["local/a", "local/a@llamacpp", "local/b"]
    for model in listed:
        backend, spec = await chosen(router, model.id)
        assert (backend.name, spec.model) == (model.card.backend, model.card.model)
        assert await router.model(model.id) == model


async def test_describing_an_unknown_model_fails() -> None:
    with pytest.raises(ModelNotFound):
        await ModelRouter([llamacpp("a")], {}).model("b")
