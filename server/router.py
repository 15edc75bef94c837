"""From the text in ``model`` to the backend that serves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain

from server.core.errors import ConfigurationError, InvalidModelSpec, ModelNotFound
from server.core.model_spec import ModelSpec, parse_model_spec
from server.core.ports import Backend, ModelCard

_MAX_SUGGESTIONS = 3
_HELP = "GET /v1/models lists what can be served; start the server with --model FILE.gguf to add a model."


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model with the spec that selects it."""

    id: str
    card: ModelCard


class ModelRouter:
    """Knows the backends in order of preference, and the operator's aliases."""

    def __init__(self, backends: Sequence[Backend], aliases: Mapping[str, str]) -> None:
        """Take backends in order of preference, and aliases as ``{alias: spec}``.

        Raises:
            ConfigurationError: an alias does not stand for a model spec.

        """
        self._backends = tuple(backends)
        self._aliases = {alias: _check_alias(alias, target, aliases) for alias, target in aliases.items()}

    async def resolve(self, text: str) -> tuple[Backend, ModelSpec]:
        """Find the backend for a spec or alias: the one it names, else the first that has the model.

        Raises:
            InvalidModelSpec: the text is neither an alias nor a spec.
            ModelNotFound: no backend has the model; the message names the closest known ones.

        """
        spec = self._aliases.get(text) or parse_model_spec(text)
        for backend in self._candidates(spec):
            if await backend.has_model(spec.model):
                return backend, spec
        raise ModelNotFound(await self._not_found(text, spec), param="model")

    async def models(self) -> Sequence[ListedModel]:
        """List the models of all backends, each under an id that ``resolve`` leads back to it."""
        listed: dict[str, ListedModel] = {}
        for backend in self._backends:
            for card in await backend.models():
                plain = f"local/{card.model}"
                spec = plain if plain not in listed else f"{plain}@{backend.name.value}"
                listed[spec] = ListedModel(spec, card)
        return tuple(listed.values())

    async def model(self, text: str) -> ListedModel:
        """Describe the model that a spec or alias selects.

        Raises:
            InvalidModelSpec: the text is neither an alias nor a spec.
            ModelNotFound: no backend has the model.

        """
        backend, spec = await self.resolve(text)
        for listed in await self.models():
            if listed.card.model == spec.model and listed.card.backend is backend.name:
                return listed
        raise ModelNotFound(await self._not_found(text, spec), param="model")

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
        close = get_close_matches(spec.model, ids, n=_MAX_SUGGESTIONS, cutoff=0.5)
        close_aliases = get_close_matches(text, self._aliases, n=1, cutoff=0.5)
        names = list(dict.fromkeys(chain((ids[model] for model in close), close_aliases)))
        hint = f" Did you mean {', '.join(names)}?" if names else ""
        return f"The model {text!r} does not exist here.{hint} {_HELP}"


def _check_alias(alias: str, target: str, aliases: Mapping[str, str]) -> ModelSpec:
    if not alias.strip():
        raise ConfigurationError("An alias in [aliases] has no name.")
    if target in aliases:
        raise ConfigurationError(f"The alias {alias!r} stands for {target!r}, which is an alias itself; name a model.")
    try:
        return parse_model_spec(target)
    except InvalidModelSpec as error:
        raise ConfigurationError(f"The alias {alias!r} does not stand for a model: {error.message}") from error
