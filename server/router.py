"""From the text in ``model`` to the backend that serves it, and to another one when that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain

from server.core.errors import (
    ConfigurationError,
    Draining,
    InvalidModelSpec,
    InvalidRequest,
    LlmspellError,
    ModelNotFound,
)
from server.core.events import Event, Failed, Started
from server.core.model_spec import BackendName, ModelSpec, equivalent_names, is_hugging_face, parse_model_spec
from server.core.ports import Backend, EventStream, LoadProgress, ModelCard, ModelFetcher, PreloadedModel
from server.core.pulling import PullFinished, PullProgress
from server.core.request import ChatRequest

_MAX_SUGGESTIONS = 3
_MAX_COMPARED = 1000

_log = logging.getLogger(__name__)

Accepts = Callable[[Backend], bool]
"""Whether a backend honours all that a request asks for."""


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """Section ``[routing]``: which backend serves a model that several have, and what happens when it fails.

    Attributes:
        prefer: the backend that serves a model which both have, when the request does not name one.
        fallback: when a backend fails before the first token, the other one gets the request if it has the model and
            the request did not name a backend; the response header x-llmspell-fallback names the one that failed,
            unless a stream had to begin before.

    """

    prefer: BackendName = BackendName.OLLAMA
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model with the spec that selects it."""

    id: str
    card: ModelCard


@dataclass(frozen=True, slots=True)
class OpenedAnswer:
    """An answer whose first output is there.

    ``early`` are the events up to it, and ``failed`` the backend that had the request before ``backend``, if any.
    """

    backend: Backend
    stream: EventStream
    early: Sequence[Event]
    failed: BackendName | None


class Fetch:
    """The download that a request waits for, because nobody has its model."""

    def __init__(self, fetcher: ModelFetcher, spec: ModelSpec) -> None:
        self._fetcher = fetcher
        self._spec = spec
        self.progress: LoadProgress | None = LoadProgress(0.0, is_download=True)

    async def run(self) -> ModelSpec:
        """Download the model, and return the spec that it has then.

        Whoever gives up leaves the download, which ends with the last one and keeps what has come.

        Raises:
            LlmspellError: it cannot be downloaded.

        """
        spec = self._spec
        try:
            async with aclosing(self._fetcher.pull(spec)) as events:
                async for event in events:
                    if isinstance(event, PullProgress):
                        self.progress = LoadProgress(event.fraction, is_download=True)
                    elif isinstance(event, PullFinished):
                        spec = replace(parse_model_spec(event.model), backend=event.backend)
        finally:
            self.progress = None
        return spec


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: to the first of ``backends``; the others may take over.

    ``fetch`` is what has to be done first if nobody has the model.
    """

    spec: ModelSpec
    backends: tuple[Backend, ...]
    fallback: bool
    fetch: Fetch | None = None

    @property
    def backend(self) -> Backend:
        """The backend of choice."""
        return self.backends[0]

    async def open(
        self, request: ChatRequest, accepts: Accepts, asking: Callable[[Backend], object] | None = None
    ) -> OpenedAnswer:
        """Ask for an answer and wait for its first output; another backend that accepts the request may take over.

        Args:
            request: what is asked.
            accepts: whether a backend honours all of it.
            asking: is told of each backend when its turn comes.

        Raises:
            LlmspellError: the request is refused, or failed before any output.

        """
        if self.fetch is not None:
            request = replace(request, spec=await self.fetch.run())
        backend, others = self.backend, list(self.backends[1:])
        failed: BackendName | None = None
        while True:
            if asking is not None:
                asking(backend)
            try:
                stream, early = await _open(backend, request)
            except LlmspellError as error:
                successor = await self._successor(error, others, accepts)
                if successor is None:
                    raise
                _log.warning("%s failed on %s before the first token: %s", backend.name, self.spec, error.message)
                failed, backend = backend.name, successor
                others.remove(successor)
            else:
                return OpenedAnswer(backend, stream, early, failed)

    async def _successor(self, error: LlmspellError, others: Sequence[Backend], accepts: Accepts) -> Backend | None:
        if self._may_move(error):
            for backend in others:
                if accepts(backend) and await backend.has_model(self.spec):
                    return backend
        return None

    def _may_move(self, error: LlmspellError) -> bool:
        if isinstance(error, ModelNotFound):
            return True  # it was there when the route was made
        return self.fallback and not isinstance(error, InvalidRequest | Draining)


class ModelRouter:
    """Knows the backends, and the operator's aliases."""

    def __init__(
        self,
        backends: Sequence[Backend],
        aliases: Mapping[str, str],
        config: RoutingConfig | None = None,
        fetcher: ModelFetcher | None = None,
    ) -> None:
        """Take the backends.

        Args:
            backends: in any order; ``config`` says which comes first.
            aliases: as ``{alias: spec}``.
            config: the section ``[routing]``.
            fetcher: gets what requests name and nobody has; without one they are refused.

        Raises:
            ConfigurationError: an alias does not stand for a model spec.

        """
        config = config or RoutingConfig()
        self._backends = tuple(sorted(backends, key=lambda backend: backend.name is not config.prefer))
        self._fallback = config.fallback
        self._fetcher = fetcher
        self._aliases = {alias: _check_alias(alias, target, aliases) for alias, target in aliases.items()}

    def spec(self, text: str) -> ModelSpec:
        """Return the spec that a text is or, as an alias, stands for.

        Raises:
            InvalidModelSpec: the text is neither an alias nor a spec.

        """
        return self._aliases.get(text) or parse_model_spec(text)

    async def route(self, text: str, *, may_fetch: bool = False) -> Route:
        """Find the backend for a spec or alias: the one it names, else the first that has the model.

        With ``may_fetch`` a model that nobody has, and that can be downloaded, has a route, too.

        Raises:
            InvalidModelSpec: the text is neither an alias nor a spec.
            ModelNotFound: no backend has the model; the message names the closest known ones.
            LlmspellError: the backend that had the model is down.

        """
        spec = self.spec(text)
        candidates = self._candidates(spec)
        for index, backend in enumerate(candidates):
            if await backend.has_model(spec):
                return Route(spec, (backend, *candidates[index + 1 :]), self._fallback)
        for backend in candidates:  # the request is about to fail, so it may as well wait for a moment
            if await backend.look_again() and await backend.has_model(spec):
                return Route(spec, (backend,), self._fallback)
        for backend in candidates:
            if (refusal := backend.refusal(spec)) is not None:
                raise refusal
        if may_fetch and self._fetcher is not None and (name := await self._fetcher.fetching_backend(spec)) is not None:
            fetching = tuple(backend for backend in candidates if backend.name is name)
            if fetching:
                return Route(spec, fetching, fallback=False, fetch=Fetch(self._fetcher, spec))
        raise ModelNotFound(await self._not_found(text, spec), param="model")

    async def models(self) -> Sequence[ListedModel]:
        """List the models of all backends, each under an id that ``route`` leads back to it."""
        listed: list[ListedModel] = []
        taken: set[str] = set()  # in lower case, as Ollama does not tell cases apart
        cards = await asyncio.gather(*(backend.models() for backend in self._backends))
        for card in chain.from_iterable(cards):
            names = {name.lower() for name in equivalent_names(card.model)}
            suffix = f"@{card.backend.value}" if names & taken else ""
            taken.add(card.model.lower())
            listed.append(ListedModel(f"local/{card.model}{suffix}", card))
        return tuple(listed)

    async def model(self, text: str) -> ListedModel:
        """Describe the model that a spec or alias selects.

        Raises:
            InvalidModelSpec: the text is neither an alias nor a spec.
            ModelNotFound: no backend has the model.
            LlmspellError: the backend that had the model is down.

        """
        route = await self.route(text)
        card = await route.backend.model(route.spec.model)
        if card is None:
            raise ModelNotFound(await self._not_found(text, route.spec), param="model")
        first = await self.route(f"local/{card.model}")
        suffix = "" if first.backend is route.backend else f"@{card.backend.value}"
        return ListedModel(f"local/{card.model}{suffix}", card)

    def preloaded(self) -> Mapping[str, PreloadedModel]:
        """Return the models that must have been in memory before the server is ready, by their specs."""
        preloaded = chain.from_iterable(backend.preloaded() for backend in self._backends)
        return {f"local/{model.card.model}": model for model in preloaded}

    def _candidates(self, spec: ModelSpec) -> Sequence[Backend]:
        if spec.backend is None:
            return self._backends
        forced = [backend for backend in self._backends if backend.name is spec.backend]
        if not forced:
            raise ModelNotFound(
                f"The model {str(spec)!r} asks for the backend {spec.backend.value}, which is not configured here. "
                f"Leave the backend out, or use one of: {', '.join(backend.name.value for backend in self._backends)}.",
                param="model",
            )
        return forced

    async def _not_found(self, text: str, spec: ModelSpec) -> str:
        ids = {listed.card.model: listed.id for listed in await self.models()}
        known = list(ids)[:_MAX_COMPARED]
        close = get_close_matches(spec.model, known, n=_MAX_SUGGESTIONS, cutoff=0.5)
        close_aliases = get_close_matches(text, self._aliases, n=1, cutoff=0.5)
        names = list(dict.fromkeys(chain((ids[model] for model in close), close_aliases)))
        hint = f" Did you mean {', '.join(names)}?" if names else ""
        return f"The model {text!r} does not exist here.{hint} {_how_to_get(spec)}"


async def _open(backend: Backend, request: ChatRequest) -> tuple[EventStream, list[Event]]:
    stream = await backend.chat(request)
    try:
        early: list[Event] = []
        async for batch in stream:
            early.extend(batch)
            if not all(isinstance(event, Started) for event in batch):
                break
    except BaseException:
        await stream.aclose()
        raise
    failure = next((event.error for event in early if isinstance(event, Failed)), None)
    if failure is not None:
        await stream.aclose()
        raise failure
    return stream, early


def _how_to_get(spec: ModelSpec) -> str:
    pull = f"`llmspell model pull {spec}`"
    if is_hugging_face(spec.name) or spec.backend is not None:
        return f"Download it with {pull}. GET /v1/models lists what can be served."
    return (
        f"GET /v1/models lists what can be served; download the model with {pull}, or start the server with "
        f"--model FILE.gguf to add one."
    )


def _check_alias(alias: str, target: str, aliases: Mapping[str, str]) -> ModelSpec:
    if not alias.strip():
        raise ConfigurationError("An alias in [aliases] has no name.")
    if target in aliases:
        raise ConfigurationError(f"The alias {alias!r} stands for {target!r}, which is an alias itself; name a model.")
    try:
        return parse_model_spec(target)
    except InvalidModelSpec as error:
        raise ConfigurationError(f"The alias {alias!r} does not stand for a model: {error.message}") from error
