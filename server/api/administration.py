"""What an operator can find out about models and do with them, once a request may ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from server.api import local_only
from server.api.residency import model_entry, own_models, with_states
from server.api.services import services_of
from server.core.errors import InvalidRequest, LocalOnly, ModelInUse, ModelNotFound, UnsupportedParameter
from server.core.library import Deleted, InstalledModel, Loadable, ModelDetails
from server.core.model_spec import BackendName, ModelSpec
from server.core.ports import ModelState, Residency, ResidencyStatus
from server.library import ModelLibrary
from server.router import ListedModel, ModelRouter

_OF_OLLAMA = "ollama"
"""Source of the files that the daemon and this process can both run."""
_MAX_SHOWN = 64
_PASSING = frozenset({ModelState.LOADING, ModelState.DRAINING})


class Action(StrEnum):
    """What can be done with a model."""

    LOAD = "load"
    UNLOAD = "unload"
    PIN = "pin"
    UNPIN = "unpin"


@dataclass(frozen=True, slots=True)
class Administration:
    """Models and memory: those of this process, and as far as it lets us, those of the daemon."""

    residency: Residency
    router: ModelRouter
    daemon: Loadable | None

    async def find(self, text: str) -> tuple[ListedModel, ResidencyStatus]:
        """Return the model to which a request that names it would go.

        Raises:
            InvalidModelSpec: the text is neither an alias nor a spec.
            ModelNotFound: no backend has the model.
            LlmspellError: the backend that had it is down.

        """
        listed = await self.router.model(text)
        card = listed.card
        status = self.residency.status(card.model) if card.backend is BackendName.LLAMACPP else None
        return listed, status or ResidencyStatus(card.model, card.state)

    async def entries(self) -> list[dict[str, object]]:
        """Describe all models of this process."""
        listed = await self.router.models()
        return [model_entry(each, status) for each, status in own_models(listed, self.residency.statuses())]

    async def act(self, action: Action, text: str, *, force: bool) -> dict[str, object]:
        """Do something with the model that a spec or alias selects, wait until it is done, and describe it."""
        listed, status = await self.find(text)
        if listed.card.backend is BackendName.OLLAMA:
            state = await self._have_daemon(action, listed, force=force)
            return model_entry(listed, replace(status, state=state))
        await self._act_here(action, status.model, force=force)
        return model_entry(*await self.find(str(replace(self.router.spec(text), backend=BackendName.LLAMACPP))))

    async def _act_here(self, action: Action, model: str, *, force: bool) -> None:
        if action is Action.LOAD:
            await self.residency.load(model)
        elif action is Action.UNLOAD:
            await self.residency.unload(model, force=force)
        else:
            self.residency.pin(model, pinned=action is Action.PIN)

    async def _have_daemon(self, action: Action, listed: ListedModel, *, force: bool) -> ModelState:
        """Have the daemon do something; return the state that follows: what it says of states is remembered a while."""
        name = listed.card.model
        if action in (Action.PIN, Action.UNPIN):
            raise InvalidRequest(
                f"The model {listed.id!r} is one of the Ollama daemon's, which has no pins. What keeps a model in its "
                "memory is keep_alive: -1 in a request for it, or in [ollama] of the configuration for all.",
                param="model",
            )
        if self.daemon is None:
            raise InvalidRequest(
                f"The model {listed.id!r} is one of the Ollama daemon's, whose memory is not administered here; see "
                "`ollama ps` and `ollama stop`.",
                param="model",
            )
        if force:
            raise UnsupportedParameter(
                f"The model {listed.id!r} is one of the Ollama daemon's, which finishes the requests that use a model "
                "before it unloads it. Leave 'force' out.",
                param="force",
            )
        if action is Action.LOAD:
            await self.daemon.load(name)
            return ModelState.WARM
        await self.daemon.unload(name)
        return ModelState.COLD


@dataclass(frozen=True, slots=True)
class Disk:
    """The models on disk, with what is in memory of them."""

    library: ModelLibrary
    administration: Administration

    async def models(self, backend: BackendName | None) -> Sequence[InstalledModel]:
        """List them."""
        return with_states(await self.library.models(backend), self.administration.residency.statuses())

    async def details(self, text: str) -> ModelDetails:
        """Find out all about the model that a spec or alias selects.

        Raises:
            LlmspellError: there is no such model, or it cannot be found out.

        """
        details = await self.library.details(self.administration.router.spec(text))
        (installed,) = with_states([details.installed], self.administration.residency.statuses())
        return replace(details, installed=installed)

    async def delete(self, text: str) -> Deleted:
        """Delete the model that a spec or alias selects; one that nobody uses leaves the memory first.

        Raises:
            ModelInUse: requests use it or wait for it.
            LlmspellError: there is no such model, or it cannot be deleted.

        """
        spec = self.administration.router.spec(text)
        try:
            chosen = await self.library.to_delete(spec)
        except ModelNotFound:
            return await self.library.delete(spec)  # what an unfinished download has left, perhaps
        if (here := await self._runs_here(chosen, spec)) is not None:
            await self._clear_memory(here)
        return await self.library.delete(replace(spec, backend=chosen.backend))

    async def _runs_here(self, chosen: InstalledModel, spec: ModelSpec) -> InstalledModel | None:
        """Return the model as this process would run it: from the daemon's own files, too."""
        if chosen.backend is BackendName.LLAMACPP:
            return chosen
        here = await self.library.find(replace(spec, backend=BackendName.LLAMACPP))
        return here if here is not None and here.source == _OF_OLLAMA else None

    async def _clear_memory(self, model: InstalledModel) -> None:
        """See that neither the model nor a copy of it is in memory."""
        residency = self.administration.residency
        found = [residency.status(name) for name in (model.model, *model.other_names)]
        present = {status.model: status for status in found if status is not None}
        for status in present.values():
            _refuse_in_use(status)
        for status in present.values():
            if status.state is not ModelState.COLD:
                await residency.unload(status.model, force=False)
        # a request that came meanwhile has had it loaded again: it is served, and nothing is deleted
        for name in present:
            if (now := residency.status(name)) is not None:
                _refuse_in_use(now)
                if now.state is ModelState.WARM:
                    raise _in_use(now, "somebody has just had it loaded again")


def _refuse_in_use(status: ResidencyStatus) -> None:
    if status.num_leases or status.num_waiting:
        raise _in_use(status, f"{status.num_leases} requests use it, and {status.num_waiting} wait for it")
    if status.state in _PASSING:
        raise _in_use(status, f"it is {status.state.value}")


def _in_use(status: ResidencyStatus, reason: str) -> ModelInUse:
    return ModelInUse(
        f"local/{status.model} cannot be deleted now: {reason}. Try again when nobody uses it, or unload it first, "
        "with force if need be.",
        param="model",
    )


async def _administration(request: Request) -> Administration:
    services = services_of(request)
    if services.residency is None:
        raise HTTPException(404)
    client = None if request.client is None else request.client.host
    if (reason := local_only.refusal(client, request.headers.items())) is not None:
        raise LocalOnly(
            f"Only requests from the machine that the server runs on may administer it, and {reason}. Send it from "
            "there, to localhost."
        )
    return Administration(services.residency, services.router, services.daemon)


Administered = Annotated[Administration, Depends(_administration)]


async def _disk(request: Request, administration: Administered) -> Disk:
    library = services_of(request).library
    if library is None:
        raise HTTPException(404)
    return Disk(library, administration)


Stored = Annotated[Disk, Depends(_disk)]


def refuse_unknown_query(request: Request, *known: str) -> None:
    """Refuse a query parameter that would have no effect.

    Raises:
        UnsupportedParameter: there is one.

    """
    if unknown := sorted(request.query_params.keys() - set(known)):
        shown = unknown[0][:_MAX_SHOWN]
        raise UnsupportedParameter(f"Unknown parameter: {shown!r}. Leave it out.", param=shown)
