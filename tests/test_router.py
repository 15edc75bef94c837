from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import pytest
from api.scripted import ScriptedBackend, card, fail, finished, play, say_hello

from server.core.errors import (
    BackendError,
    ConfigurationError,
    ContextLengthExceeded,
    DiskFull,
    Draining,
    InvalidModelSpec,
    LlmspellError,
    ModelLoadingFailed,
    ModelNotFound,
    QueueFull,
    TimedOut,
)
from server.core.events import Event, Failed, ReasoningDelta, Started, TextDelta
from server.core.model_spec import BackendName, ModelSpec
from server.core.ports import Backend, LoadProgress, PreloadedModel
from server.core.pulling import PullActivity, PullEvent, PullFinished, PullProgress
from server.core.request import ChatRequest, Message, Role
from server.router import Accepts, ModelRouter, OpenedAnswer, RoutingConfig


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


# --- preference, names, outages ---


async def test_the_preferred_backend_comes_first() -> None:
    backends = [ollama("a"), llamacpp("a")]
    for prefer in BackendName:
        router = ModelRouter(backends, {}, RoutingConfig(prefer=prefer))
        assert (await chosen(router, "a"))[0].name is prefer
        first, _ = await router.models()
        assert (first.id, first.card.backend) == ("local/a", prefer)


@pytest.mark.parametrize("prefer", BackendName)
@pytest.mark.parametrize(
    ("of_ollama", "of_llamacpp"),
    [
        ("demo:latest", "demo"),
        ("demo", "demo:latest"),
        ("hf.co/owner/repo:Q4_K_M", "hf.co/owner/repo"),
        ("hf.co/owner/repo:latest", "hf.co/owner/repo:Q4_K_M"),
        ("hf.co/owner/repo:latest", "hf.co/owner/repo"),
        ("registry:5000/team/model:latest", "registry:5000/team/model"),
    ],
)
async def test_names_that_mean_the_same_lead_back(prefer: BackendName, of_ollama: str, of_llamacpp: str) -> None:
    router = ModelRouter([ollama(of_ollama), llamacpp(of_llamacpp)], {}, RoutingConfig(prefer=prefer))

    listed = await router.models()

    assert {model.card.model for model in listed} == {of_ollama, of_llamacpp}
    for model in listed:
        assert (await chosen(router, model.id))[0].name is model.card.backend
        assert await router.model(model.id) == model


@pytest.mark.parametrize("name", ["hf.co/owner/repo", "hf.co/owner/repo:Q4_K_M"])
async def test_repositories_of_hugging_face(name: str) -> None:
    router = ModelRouter([ollama(), backend := llamacpp("hf.co/owner/repo:Q4_K_M")], {})

    assert (await chosen(router, name))[0] is backend


async def test_a_file_not_yet_downloaded_comes_with_its_command() -> None:
    with pytest.raises(ModelNotFound, match=r"`llmspell model pull local/hf\.co/owner/repo:Q8_0`"):
        await ModelRouter([ollama(), llamacpp()], {}).route("hf.co/owner/repo:Q8_0")
    with pytest.raises(ModelNotFound, match=r"`llmspell model pull local/x:1b@ollama`"):
        await ModelRouter([ollama(), llamacpp()], {}).route("ollama/x:1b")


async def test_a_model_of_a_backend_that_is_down() -> None:
    down = ollama()
    down.refusals = {"a": BackendError("it is down")}
    router = ModelRouter([down, llamacpp("b")], {})

    with pytest.raises(BackendError, match="it is down"):
        await router.route("a")
    assert (await chosen(router, "b"))[0].name is BackendName.LLAMACPP
    with pytest.raises(ModelNotFound):
        await router.route("c")
    assert [model.id for model in await router.models()] == ["local/b"]


async def test_the_other_backend_serves_what_the_one_that_is_down_had() -> None:
    down, up = ollama(), llamacpp("a")
    down.refusals = {"a": BackendError("it is down")}

    assert (await chosen(ModelRouter([down, up], {}), "a"))[0] is up


# --- opening and fallback ---

HELLO = ChatRequest(ModelSpec("a"), (Message(Role.USER, "Hi"),))
BROKEN = BackendError("it broke")


def everything(_: Backend) -> bool:
    return True


async def opened(
    backends: Sequence[ScriptedBackend], text: str = "a", *, fallback: bool = True, accepts: Accepts = everything
) -> OpenedAnswer:
    route = await ModelRouter(backends, {}, RoutingConfig(fallback=fallback)).route(text)
    return await route.open(HELLO, accepts)


async def none_held(*backends: ScriptedBackend) -> None:
    for backend in backends:
        await backend.until_held(0)


async def test_an_answer_begins_with_its_first_output() -> None:
    first, second = ollama("a"), llamacpp("a")

    answer = await opened([first, second])

    assert (answer.backend, answer.failed) == (first, None)
    assert list(answer.early) == [Started(), TextDelta(0, "Hel")]
    assert [batch async for batch in answer.stream][-1][-1] == finished()
    await answer.stream.aclose()
    assert second.requests == []
    await none_held(first)


@pytest.mark.parametrize(
    "error",
    [BROKEN, QueueFull("busy"), TimedOut("late"), ModelLoadingFailed("no"), ModelNotFound("gone")],
)
@pytest.mark.parametrize("is_early", [True, False])
async def test_the_other_backend_takes_over(error: LlmspellError, is_early: bool) -> None:  # noqa: FBT001
    first, second = ollama("a"), llamacpp("a")
    if is_early:
        first.rejection = error
    else:
        first.script = fail(error)

    answer = await opened([first, second])

    assert (answer.backend, answer.failed) == (second, BackendName.OLLAMA)
    assert second.requests == [HELLO]
    await none_held(first)
    await answer.stream.aclose()
    await none_held(second)


@pytest.mark.parametrize("error", [ContextLengthExceeded("too long"), Draining("bye"), InvalidModelSpec("odd")])
async def test_what_the_other_backend_would_refuse_too_is_not_moved(error: LlmspellError) -> None:
    first, second = ollama("a"), llamacpp("a")
    first.rejection = error

    with pytest.raises(type(error)) as caught:
        await opened([first, second])

    assert caught.value is error
    assert second.requests == []
    await none_held(first)


async def test_without_fallback_only_a_model_that_is_gone_moves() -> None:
    first, second = ollama("a"), llamacpp("a")
    first.rejection = BROKEN
    with pytest.raises(BackendError):
        await opened([first, second], fallback=False)
    first.rejection = ModelNotFound("gone")

    answer = await opened([first, second], fallback=False)

    assert answer.backend is second
    await answer.stream.aclose()


@pytest.mark.parametrize("text", ["a@ollama", "ollama/a"])
async def test_a_backend_that_is_named_keeps_the_request(text: str) -> None:
    first, second = ollama("a"), llamacpp("a")
    first.rejection = BROKEN

    with pytest.raises(BackendError):
        await opened([first, second], text)

    assert second.requests == []


async def test_a_backend_that_lacks_model_or_parameter_does_not_take_over() -> None:
    first = ollama("a")
    first.rejection = BROKEN
    other, lacking = llamacpp("a"), llamacpp("b")

    with pytest.raises(BackendError):
        await opened([first, lacking])
    with pytest.raises(BackendError):
        await opened([first, other], accepts=lambda backend: backend is first)

    assert other.requests == lacking.requests == []


async def test_when_both_fail_the_second_error_is_told() -> None:
    first, second = ollama("a"), llamacpp("a")
    first.rejection, second.script = BROKEN, fail(TimedOut("late"))

    with pytest.raises(TimedOut):
        await opened([first, second])

    assert (len(first.requests), len(second.requests)) == (1, 1)
    await none_held(first, second)


@pytest.mark.parametrize("output", [TextDelta(0, "a"), ReasoningDelta(0, "hm")])
async def test_after_the_first_output_nothing_moves(output: Event) -> None:
    first, second = ollama("a"), llamacpp("a")
    first.script = play([Started()], [output], [Failed(BROKEN)])

    answer = await opened([first, second])

    assert (answer.backend, answer.failed) == (first, None)
    assert [batch async for batch in answer.stream] == [[Failed(BROKEN)]]
    await answer.stream.aclose()
    assert second.requests == []


async def test_output_and_failure_at_once_is_a_failure() -> None:
    first, second = ollama("a"), llamacpp("a")
    first.script = play([Started(), TextDelta(0, "a"), Failed(BROKEN)])

    answer = await opened([first, second])

    assert (answer.backend, answer.failed) == (second, BackendName.OLLAMA)
    await answer.stream.aclose()
    await none_held(first, second)


async def test_who_goes_away_while_it_waits_leaves_nothing_behind() -> None:
    never = asyncio.Event()

    async def silence(_: ChatRequest) -> AsyncIterator[Sequence[Event]]:
        yield [Started()]
        await never.wait()

    admitting, silent = ollama("a"), ollama("a")
    admitting.admission, silent.script = never, silence
    for backend in (admitting, silent):
        opening = asyncio.create_task(opened([backend, llamacpp("a")]))
        await backend.until_held(1)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await none_held(backend)


async def test_many_at_once() -> None:
    first, second = ollama("a"), llamacpp("a")
    requests = 0

    async def every_other(request: ChatRequest) -> AsyncIterator[Sequence[Event]]:
        nonlocal requests
        requests += 1
        script = say_hello(request) if requests % 2 else fail(BROKEN)(request)
        async for batch in script:
            await asyncio.sleep(0)
            yield batch

    first.script = every_other

    answers = await asyncio.gather(*(opened([first, second]) for _ in range(50)))

    assert sorted(answer.backend.name for answer in answers) == [BackendName.LLAMACPP] * 25 + [BackendName.OLLAMA] * 25
    assert all((answer.failed is None) == (answer.backend is first) for answer in answers)
    for answer in answers:
        await answer.stream.aclose()
    await none_held(first, second)


async def test_two_thousand_models_are_listed_and_searched() -> None:
    names = [f"model-{index:05d}:latest" for index in range(2000)]
    router = ModelRouter([ollama(*names), llamacpp("model-00007")], {})

    assert len({model.id for model in await router.models()}) == 2001
    with pytest.raises(ModelNotFound, match="Did you mean local/model-"):
        await router.route("model-9999999")


def test_preloaded_models_are_those_of_all_backends() -> None:
    first, second = ollama("a"), llamacpp("b")
    second.preloads = [PreloadedModel(card("b"), is_ready=True)]

    assert ModelRouter([first, second], {}).preloaded() == {"local/b": second.preloads[0]}


async def test_each_backend_is_told_of_when_it_is_asked() -> None:
    first, second = ollama("a"), llamacpp("a")
    first.rejection = BROKEN
    asked: list[Backend] = []
    route = await ModelRouter([first, second], {}, RoutingConfig(fallback=True)).route("a")

    answer = await route.open(HELLO, everything, asked.append)

    assert asked == [first, second]
    await answer.stream.aclose()


def test_a_spec_or_an_alias_is_a_spec() -> None:
    router = ModelRouter([], {"gpt-4o-mini": "demo@llamacpp"})

    assert router.spec("gpt-4o-mini") == ModelSpec("demo", backend=BackendName.LLAMACPP)
    assert router.spec("local/phi3:3.8b") == ModelSpec("phi3", "3.8b")
    with pytest.raises(InvalidModelSpec):
        router.spec("!")


async def test_a_backend_that_is_back_is_noticed_by_the_request_that_needs_it() -> None:
    class Returning(ScriptedBackend):
        async def look_again(self) -> bool:
            self.cards = [card("late", backend=BackendName.OLLAMA)]
            return True

    back = Returning(name=BackendName.OLLAMA, cards=[])
    pool = llamacpp("a")
    router = ModelRouter([back, pool], {})

    assert await chosen(router, "a") == (pool, ModelSpec("a"))
    assert back.cards == []  # nobody looked, because nobody needed it
    assert await chosen(router, "late") == (back, ModelSpec("late"))


# --- models that are downloaded for a request ---


class ScriptedFetcher:
    """Downloads ``name`` for ``backend``, which has it then; waits at each step until it may go on."""

    def __init__(self, backend: ScriptedBackend, name: str, error: LlmspellError | None = None) -> None:
        self.backend = backend
        self.name = name
        self.error = error
        self.may_go_on = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.was_left = asyncio.Event()

    async def fetching_backend(self, spec: ModelSpec) -> BackendName | None:
        return self.backend.name if spec.model == self.name else None

    async def pull(self, spec: ModelSpec) -> AsyncGenerator[PullEvent]:
        assert spec.model == self.name
        try:
            yield PullProgress(PullActivity.DOWNLOADING, 25, 100, 0.0, None)
            self.has_begun.set()
            await self.may_go_on.wait()
            if self.error is not None:
                raise self.error
            self.backend.cards.append(card("hf.co/owner/repo:Q4_K_M", backend=self.backend.name))
            yield PullFinished("hf.co/owner/repo:Q4_K_M", self.backend.name)
        finally:
            self.was_left.set()


async def test_a_known_model_that_is_absent_is_downloaded_first() -> None:
    daemon, pool = ollama("a"), llamacpp("b")
    fetcher = ScriptedFetcher(pool, "mistral:7b")
    router = ModelRouter([daemon, pool], {}, fetcher=fetcher)

    route = await router.route("mistral:7b", may_fetch=True)
    assert route.backend is pool
    assert route.fetch is not None
    opening = asyncio.create_task(route.open(HELLO, everything))
    await fetcher.has_begun.wait()
    assert route.fetch.progress == LoadProgress(0.25, is_download=True)
    fetcher.may_go_on.set()
    answer = await opening
    assert [route.fetch.progress] == [None]
    assert [request.spec for request in pool.requests] == [
        ModelSpec("hf.co/owner/repo", "Q4_K_M", BackendName.LLAMACPP)
    ]
    await answer.stream.aclose()
    assert (await router.route("b", may_fetch=True)).fetch is None


async def test_nothing_is_downloaded_for_who_only_asks_what_there_is() -> None:
    pool = llamacpp()
    router = ModelRouter([pool], {}, fetcher=ScriptedFetcher(pool, "x"))
    with pytest.raises(ModelNotFound):
        await router.route("x")
    with pytest.raises(ModelNotFound):
        await router.model("x")
    with pytest.raises(ModelNotFound):
        await router.route("y", may_fetch=True)
    with pytest.raises(ModelNotFound, match="ollama"):
        await router.route("x@ollama", may_fetch=True)


async def test_a_download_that_fails_is_the_requests_failure() -> None:
    pool = llamacpp()
    fetcher = ScriptedFetcher(pool, "x", DiskFull("no room"))
    fetcher.may_go_on.set()
    route = await ModelRouter([pool], {}, fetcher=fetcher).route("x", may_fetch=True)
    with pytest.raises(DiskFull):
        await route.open(HELLO, everything)
    assert pool.requests == []


async def test_who_goes_away_leaves_the_download() -> None:
    pool = llamacpp()
    fetcher = ScriptedFetcher(pool, "x")
    route = await ModelRouter([pool], {}, fetcher=fetcher).route("x", may_fetch=True)
    opening = asyncio.create_task(route.open(HELLO, everything))
    await fetcher.has_begun.wait()
    opening.cancel()
    await fetcher.was_left.wait()
    assert pool.requests == []
