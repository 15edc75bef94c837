"""The proxied backend: a chat request becomes one or several requests to an Ollama daemon."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from server.backends.ollama.answer_events import AnswerEvents
from server.backends.ollama.answer_form import AnswerForm, answer_form, check_strict_tools
from server.backends.ollama.answer_stream import Choice, DaemonAway, MergedAnswer, SingleAnswer
from server.backends.ollama.autostart import DaemonProcess
from server.backends.ollama.catalogue import Catalogue
from server.backends.ollama.chat_events import ChatDecoder
from server.backends.ollama.chat_request import PARAMETERS, chat_body, seed_of_choice
from server.backends.ollama.config import OllamaConfig
from server.backends.ollama.daemon import Daemon, DaemonModel
from server.backends.ollama.daemon_errors import elsewhere, in_terms_of
from server.backends.ollama.host import daemon_url
from server.backends.ollama.http_stream import HttpStreamClient
from server.backends.ollama.images import ImageFetcher, ImageLimits
from server.core.errors import InvalidRequest, LlmspellError, ModelNotFound
from server.core.model_spec import BackendName, ModelSpec
from server.core.ports import EventStream, LoadProgress, ModelCard, PreloadedModel
from server.core.request import ChatRequest, ImageInput, ReasoningOutput, ToolChoiceMode

_MAX_IMAGES_AT_ONCE = 4

_log = logging.getLogger(__name__)


def _always_split(model: str) -> ReasoningOutput:  # noqa: ARG001 - it is the same for all
    return ReasoningOutput.SPLIT


class OllamaBackend:
    """``core.ports.Backend`` over an Ollama daemon."""

    name = BackendName.OLLAMA
    parameters = PARAMETERS

    def __init__(
        self,
        config: OllamaConfig,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        reasoning: Callable[[str], ReasoningOutput] = _always_split,
    ) -> None:
        """Know the daemon; nothing is sent before ``start`` or the first request.

        Args:
            config: the operator's settings.
            environ: the environment that a daemon is started with.
            clock: seconds, for what is cached and for the time to the first token.
            reasoning: what becomes of the thinking of a model, which is named as the daemon does, with its tag.

        Raises:
            ConfigurationError: the URL cannot be that of a daemon.

        """
        self._config = config
        self._clock = clock
        self._reasoning = reasoning
        self.url = daemon_url(config.url)
        self._daemon = Daemon(
            self.url,
            connect_timeout=config.connect_timeout_seconds,
            answer_timeout=config.detection_timeout_seconds,
        )
        self._catalogue = Catalogue(self._daemon, config.detection_cache_seconds, clock)
        self._client = HttpStreamClient(
            self.url,
            connect_timeout=config.connect_timeout_seconds,
            silence_timeout=config.silence_timeout_seconds,
            is_alive=self._catalogue.is_alive,
        )
        self._images = ImageFetcher(
            ImageLimits(config.max_image_bytes, config.image_timeout_seconds, config.allow_private_images)
        )
        self._process = DaemonProcess(self.url, config.autostart_timeout_seconds, self._answers, environ)
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look for the daemon, start it if the operator wants that, and have it load models; in the background."""
        self._starting = asyncio.create_task(self._start())

    async def aclose(self) -> None:
        """Give up what runs in the background, and stop the daemon if it was started here."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._catalogue.close()
        await self._process.stop()
        await self._images.aclose()
        self._client.close()
        await self._daemon.close()

    async def chat(self, request: ChatRequest) -> EventStream:
        """Pass a request on, and wait until the daemon answers it.

        Raises:
            LlmspellError: the request is refused, or the daemon cannot be reached.

        """
        arrival = self._clock()
        model = await self._require(request.spec.model)
        form = await _form(request)
        images = await self._load_images(request)
        body = chat_body(request, form, model.name, images, self._config.keep_alive)
        try:
            return await self._ask(request, form, model, body, arrival)
        except DaemonAway as error:
            self._catalogue.report_failure(error.reason)
            raise
        except ModelNotFound:
            self._catalogue.forget(model)
            raise
        except LlmspellError as error:
            if (meant := in_terms_of(request, error)) is error:
                raise
            raise meant from error

    async def models(self) -> Sequence[ModelCard]:
        """List the daemon's models; none while it is down."""
        return await self._catalogue.cards(self._is_allowed)

    def preloaded(self) -> Sequence[PreloadedModel]:
        """Name none: what the daemon loads, and when, is its own affair."""
        return ()

    def progress(self, model: str) -> LoadProgress | None:  # noqa: ARG002 - the port's signature
        """Know of none: the daemon does not say how far it is."""
        return None

    async def model(self, model: str) -> ModelCard | None:
        """Describe one of the daemon's models."""
        found = await self._catalogue.find(model)
        return await self._catalogue.card(found) if found is not None and self._is_allowed(found) else None

    async def has_model(self, spec: ModelSpec) -> bool:
        """Whether the daemon has the model, as far as is known without waiting for a daemon that is down."""
        found = await self._catalogue.find(spec.model)
        return found is not None and self._is_allowed(found)

    async def take_notice(self) -> None:
        """Ask the daemon anew for its models, because they have changed."""
        await self._catalogue.refresh()

    async def look_again(self) -> bool:
        """Ask a daemon that seems to be down, after waiting for one that is being started; say whether it is there."""
        if self._config.autostart and self._catalogue.is_down:
            await self._process.start_if_absent()
        await self._catalogue.look_again()
        return not self._catalogue.is_down

    def refusal(self, spec: ModelSpec) -> LlmspellError | None:
        """Say that the daemon is down, if it had the model or the spec names it, or that the model runs elsewhere."""
        known = self._catalogue.known(spec.model)
        if known is not None and not self._is_allowed(known):
            return elsewhere(known.name, known.remote_host)
        is_ours = known is not None or spec.backend is self.name
        return self._catalogue.outage_error() if is_ours and self._catalogue.is_down else None

    async def load(self, model: str, keep_alive: str | float | None = None) -> None:
        """Have a model loaded.

        Raises:
            LlmspellError: the daemon does not have it, cannot load it, or cannot be reached.

        """
        await self._daemon.load((await self._require(model)).name, keep_alive)

    async def unload(self, model: str) -> None:
        """Have a model removed from memory.

        Raises:
            LlmspellError: the daemon does not have it, or cannot be reached.

        """
        await self._daemon.unload((await self._require(model)).name)

    async def _require(self, name: str) -> DaemonModel:
        model = await self._catalogue.require(name)
        if model is None:
            raise ModelNotFound(
                f"Ollama does not have the model {name!r}. Download it with `llmspell model pull local/{name}@ollama`.",
                param="model",
            )
        if not self._is_allowed(model):
            raise elsewhere(model.name, model.remote_host)
        return model

    def _is_allowed(self, model: DaemonModel) -> bool:
        return model.remote_host is None or self._config.allow_cloud_models

    async def _load_images(self, request: ChatRequest) -> dict[str, str]:
        images = [image for message in request.messages for image in message.images]
        if not images:
            return {}
        if len(images) > self._config.max_images:
            raise InvalidRequest(
                f"The messages show {len(images)} images; at most {self._config.max_images} are accepted.",
                param=images[self._config.max_images].path,
            )
        slots = asyncio.Semaphore(_MAX_IMAGES_AT_ONCE)  # of this request: nobody waits for the URLs of somebody else
        tasks = [asyncio.create_task(self._load_image(image, slots)) for image in images]
        try:
            return dict(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _load_image(self, image: ImageInput, slots: asyncio.Semaphore) -> tuple[str, str]:
        async with slots:
            data = await self._images.load(image.url, image.path)
        return image.path, base64.b64encode(data).decode()

    async def _ask(
        self, request: ChatRequest, form: AnswerForm | None, model: DaemonModel, body: dict[str, Any], arrival: float
    ) -> EventStream:
        def decoder(index: int) -> ChatDecoder:
            return ChatDecoder(request, AnswerEvents(request, form, self._reasoning(model.name), index), model.name)

        if request.n == 1:
            choice = self._choice(arrival)
            await choice.open(_dump(body), decoder(0), model.name)
            return SingleAnswer(choice)
        choices = [self._choice(arrival) for _ in range(request.n)]
        openings = [
            partial(choice.open, _dump(_body_of_choice(body, request, index)), decoder(index), model.name)
            for index, choice in enumerate(choices)
        ]
        answer = MergedAnswer(choices, openings)
        await answer.open()
        return answer

    def _choice(self, arrival: float) -> Choice:
        def waited() -> float:
            return self._clock() - arrival

        return Choice(self._client, self.url, self._config.silence_timeout_seconds, waited)

    async def _answers(self) -> bool:
        try:
            await self._daemon.version()
        except LlmspellError:
            return False
        return True

    async def _start(self) -> None:
        if self._config.autostart:
            await self._process.start_if_absent()
        await self._catalogue.refresh()
        for name in filter(None, (part.strip() for part in self._config.preload.split(","))):
            try:
                await self.load(name, self._config.keep_alive or None)
            except LlmspellError as error:
                _log.error("Ollama was to load %s at start: %s", name, error)
            else:
                _log.info("Ollama has loaded %s", name)


async def _form(request: ChatRequest) -> AnswerForm | None:
    is_forced = request.tool_choice.mode is ToolChoiceMode.REQUIRED
    if request.response_format is None and not is_forced and not any(tool.strict for tool in request.tools):
        return None

    def find() -> AnswerForm | None:
        check_strict_tools(request)
        return answer_form(request)

    return await asyncio.to_thread(find)  # clients' schemas may be large


def _body_of_choice(body: Mapping[str, Any], request: ChatRequest, index: int) -> dict[str, Any]:
    seed = seed_of_choice(request.sampling, index)
    return dict(body) if seed is None else {**body, "options": {**body["options"], "seed": seed}}


def _dump(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # integers beyond 64 bits, in the schema of a tool
        return json.dumps(body).encode()
