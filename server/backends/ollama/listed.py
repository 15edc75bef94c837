"""The daemon's models as entries of this server's lists. Pure, and imported before anything is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from server.core.errors import InvalidRequest
from server.core.library import InstalledModel, ModelDetails
from server.core.model_spec import BackendName, ModelSpec, equivalent_names, is_hugging_face
from server.core.ports import ModelState

if TYPE_CHECKING:
    from server.backends.ollama.daemon import DaemonModel
    from server.backends.ollama.description import ModelDescription

_MOST_LICENCE_LEN = 200
_CAPABILITIES = {"completion": "chat"}
_OF_TEMPLATE = {
    "system": re.compile(r"\.System\b|\.Role\b|\bsystem\b"),
    "tools": re.compile(r"\.Tools\b|\btools\b"),
    "thinking": re.compile(r"\.Think\b|\.Thinking\b|\bthinking\b|reasoning_content"),
}


def tag_to_pull(spec: ModelSpec, quantization: str | None) -> str:
    """Return the name to pull; the daemon's tags are its quantizations.

    Raises:
        InvalidRequest: a quantization is asked for beside the name.

    """
    if quantization is None or quantization.lower() == (spec.variant or "").lower():
        return spec.model
    if is_hugging_face(spec.name):
        advice = f"`llmspell model pull ollama/{spec.name}:{quantization}`"
    else:
        size = "" if spec.variant is None else f"{spec.variant}-"
        advice = (
            f"such as `llmspell model pull ollama/{spec.name}:{size}instruct-{quantization.lower()}` "
            f"(https://ollama.com/library/{spec.name}/tags lists them), or take `llamacpp/{spec.model}`"
        )
    raise InvalidRequest(
        f"Ollama's tags are its quantizations, so that {quantization} cannot be asked for besides. Name the tag: "
        f"{advice}.",
        param="quantization",
    )


def meant_by(models: Sequence[InstalledModel], name: str) -> InstalledModel | None:
    """Return the model that a name means to the daemon."""
    by_name = {model.model.lower(): model for model in models}
    return next((by_name[each.lower()] for each in equivalent_names(name) if each.lower() in by_name), None)


def installed_model(model: DaemonModel, running: Mapping[str, int | None]) -> InstalledModel:
    """Describe a model of the daemon's list; ``running`` are the names of those in memory, in lower case."""
    return InstalledModel(
        model=model.name,
        backend=BackendName.OLLAMA,
        source="daemon",
        size_bytes=model.size_bytes,
        modified=max(model.modified_at, 0),
        quantization=model.details.quantization,
        parameters=model.details.parameters,
        context_length=model.details.context_length,
        capabilities=_capabilities(model.details.capabilities),
        digest=model.digest,
        state=ModelState.WARM if model.name.lower() in running else ModelState.COLD,
    )


def _capabilities(said: tuple[str, ...] | None) -> tuple[str, ...]:
    return tuple(_CAPABILITIES.get(name, name) for name in said or ())


def model_details(model: InstalledModel, described: ModelDescription) -> ModelDetails:
    """Put together what the daemon's list says of a model and what it says when it is asked for this one."""
    known = replace(
        model,
        quantization=described.quantization or model.quantization,
        parameters=described.num_parameters or model.parameters,
        context_length=described.context_length or model.context_length,
        capabilities=_capabilities(described.capabilities) or model.capabilities,
    )
    return ModelDetails(
        installed=known,
        architecture=described.architecture,
        name=described.name,
        licence=_first_line(described.licence),
        template="daemon",
        template_capabilities=_of_template(described),
        system=described.system,
        defaults=described.parameters,
    )


def _of_template(described: ModelDescription) -> tuple[str, ...]:
    """Say what prompts can express: as the daemon says it, for much of it is code there."""
    template, said = described.template or "", described.capabilities or ()
    found = [name for name, sign in _OF_TEMPLATE.items() if name in said or sign.search(template)]
    return (*found, *(("images",) if "vision" in said else ()))


def _first_line(licence: str | None) -> str | None:
    lines = (line.strip() for line in (licence or "").splitlines())
    first = next((line for line in lines if line), None)
    return None if first is None else first[:_MOST_LICENCE_LEN]
