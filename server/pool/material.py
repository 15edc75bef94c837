"""What a model of the pool is made of: files, and what whoever packed them wants of requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from server.core.request import ChatRequest, Message, ReasoningOutput, Role
from server.store.model_files import FoundModel
from server.store.ollama_manifest import OllamaKind
from server.store.ollama_store import OllamaDetails, read_details
from server.store.ollama_template import TemplateChoice, TemplateSource, choose_template


@dataclass(frozen=True, slots=True)
class RequestDefaults:
    """What holds for requests that do not say otherwise.

    Attributes:
        system: the system message of conversations without one.
        messages: what every conversation begins with, after its system message.
        sampling: fields of ``SamplingParameters`` by name.
        max_tokens: most tokens of a completion.
        stop: strings that end it.
        reasoning: what becomes of thinking.

    """

    system: str | None = None
    messages: tuple[Message, ...] = ()
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    reasoning: ReasoningOutput = ReasoningOutput.SPLIT

    def applied(self, request: ChatRequest) -> ChatRequest:
        """Return the request with what it leaves open."""
        # ``parse_parameters`` has seen to the types
        sampling: dict[str, Any] = {n: each for n, each in self.sampling.items() if n not in request.given_sampling}
        return replace(
            request,
            messages=self._conversation(request.messages),
            sampling=replace(request.sampling, **sampling),
            max_tokens=self.max_tokens if request.max_tokens is None else request.max_tokens,
            stop=request.stop or self.stop,
        )

    def _conversation(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Put the model's own messages where the daemon puts them: first, but behind its own system message.

        https://github.com/ollama/ollama/blob/main/server/routes.go, ``ChatHandler``
        """
        has_system = bool(messages) and messages[0].role in {Role.SYSTEM, Role.DEVELOPER}
        system = () if has_system or not self.system else (Message(Role.SYSTEM, self.system),)
        return (*system, *self.messages, *messages)


@dataclass(frozen=True, slots=True)
class Material:
    """The files of a model, with what a manifest of Ollama says about them.

    Attributes:
        path: the GGUF file, or the first part of a split one.
        manifest_template: the manifest's chat template, in Go's language.
        kind: what Ollama says of the model; ``None`` if it is none of Ollama's.
        context_length: tokens of one sequence that whoever packed it wants; less where that does not fit.
        defaults: for its requests.
        notes: what an operator should know of it, one sentence each.

    """

    path: Path
    manifest_template: str | None = None
    kind: OllamaKind | None = None
    context_length: int | None = None
    defaults: RequestDefaults = field(default_factory=RequestDefaults)
    notes: tuple[str, ...] = ()

    def choose_template(self, file_template: str | None) -> TemplateChoice:
        """Choose between the manifest's chat template and that of the file."""
        if self.kind is None:
            return TemplateChoice(TemplateSource.FILE if file_template else TemplateSource.NONE)
        return choose_template(self.manifest_template, self.kind, file_template)


def material_of(found: FoundModel) -> Material:
    """Read what belongs to a model besides its weights; blocking."""
    if found.ollama is None:
        return Material(found.path)
    details = read_details(found.ollama)
    return Material(
        found.path,
        details.template,
        found.ollama.kind,
        details.parameters.context_length,
        _request_defaults(details),
        tuple(_notes(details)),
    )


_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "top_k": (0, 2**31 - 1),
    "repeat_penalty": (0.1, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (1, 2**31 - 1),
}
"""What requests may say, a manifest may say."""
_ROLES = frozenset(Role)


def _request_defaults(details: OllamaDetails) -> RequestDefaults:
    sampling = {name: value for name, value in details.parameters.sampling.items() if _is_allowed(name, value)}
    max_tokens = sampling.pop("max_tokens", None)
    return RequestDefaults(
        details.system,
        tuple(Message(Role(role), text) for role, text in details.messages if role in _ROLES),
        sampling,
        None if max_tokens is None else int(max_tokens),
        details.parameters.stop,
    )


def _is_allowed(name: str, value: float) -> bool:
    least, most = _RANGES[name]
    return least <= value <= most


def _notes(details: OllamaDetails) -> Iterator[str]:
    parameters = details.parameters
    wrong = [name for name, value in parameters.sampling.items() if not _is_allowed(name, value)]
    if ignored := [*parameters.ignored, *wrong]:
        yield f"its parameters {', '.join(ignored)} have no counterpart here and are ignored"
    if unknown := sorted({role for role, _ in details.messages} - _ROLES):
        yield f"its messages of {', '.join(unknown)} are ignored"
    yield from details.problems
