"""The models of the stand-in: their names, and what the daemon says of each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fakes.script import Reply, Speaker

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_EMBEDDING = 256
_BORN = datetime(2026, 8, 21, 18, 48, 22, 403490, UTC)


@dataclass(frozen=True)
class Name:
    """A model's name in full, as ``types/model/name.go`` reads it."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Name:
        """Read a name; what is not given is the default."""
        tag = ""
        if text.rfind(":") > text.rfind("/"):
            text, _, tag = text.rpartition(":")
            tag = tag or "!MISSING!"
        host, _, rest = text.rpartition("/")
        namespace = ""
        if host or "/" in text:
            host, _, namespace = host.rpartition("/")
        return cls(host.split("://")[-1] or HOST, namespace or NAMESPACE, rest, tag or TAG)

    @property
    def is_valid(self) -> bool:
        return bool(
            _HOST.fullmatch(self.host)
            and _NAMESPACE.fullmatch(self.namespace)
            and _PART.fullmatch(self.model)
            and _PART.fullmatch(self.tag)
        )

    @property
    def key(self) -> str:
        """What two names share that mean the same model."""
        return str(self).lower()

    @property
    def shortest(self) -> str:
        """How the daemon shows the name: without its default host and namespace, but with its tag."""
        shown = f"{self.model}:{self.tag}"
        if self.host.lower() != HOST:
            return f"{self.host}/{self.namespace}/{shown}"
        return shown if self.namespace.lower() == NAMESPACE else f"{self.namespace}/{shown}"

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"


@dataclass(frozen=True)
class Reference:
    """The ``model`` of a request: a name, and whether it asks for the cloud or for this machine."""

    name: Name
    base: str
    source: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference as ``internal/modelref`` does."""
        text = text.strip()
        head, colon, suffix = text.rpartition(":")
        lower = suffix.strip().lower()
        if colon and lower in {"cloud", "local"}:
            return cls(Name.parse(head), head, lower)
        if colon and "/" not in suffix and lower.endswith("-cloud"):
            base = f"{head}:{suffix.strip()[: -len('-cloud')]}"
            return cls(Name.parse(base), base, "cloud")
        return cls(Name.parse(text), text)

    @classmethod
    def literal(cls, text: str) -> Reference:
        """Take the reference for a name, whatever its tag says."""
        return cls(Name.parse(text.strip()), text)


@dataclass(frozen=True)
class FakeModel:
    """A model the stand-in has.

    ``listed`` are the capabilities in ``/api/tags`` where they differ from what ``/api/show`` and requests find: the
    daemon reads chat templates only for the latter. ``native`` models are prompted by their own chat template: their
    tool calls come with the last line.
    """

    name: str
    capabilities: tuple[str, ...] = ("completion",)
    listed: tuple[str, ...] | None = None
    context_length: int = 8192
    size: int = 5_524_501
    family: str = "llama"
    parameter_size: str = "2.74M"
    quantization: str = "F16"
    digest: str = ""
    remote_host: str = ""
    remote_model: str = ""
    native: bool = True
    load_seconds: float = 0.0
    reply: Reply | Speaker | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.full_name.is_valid, f"no name of a model: {self.name}"

    @property
    def full_name(self) -> Name:
        return Name.parse(self.name)

    def can(self, capability: str) -> bool:
        return capability in self.capabilities

    @property
    def sha256(self) -> str:
        return self.digest or hashlib.sha256(self.full_name.key.encode()).hexdigest()


def many_models(number: int) -> list[FakeModel]:
    """As many models as asked for, of different names."""
    return [FakeModel(f"model-{index:05d}", size=1_000_000 + index) for index in range(number)]


class Catalogue:
    """The models by name, in the order in which they were added; the newest is listed first."""

    def __init__(self, models: Iterable[FakeModel] = ()) -> None:
        self._models: dict[str, FakeModel] = {}
        for model in models:
            self.add(model)

    def add(self, model: FakeModel) -> None:
        self._models[model.full_name.key] = model

    def remove(self, name: str) -> None:
        self._models.pop(Name.parse(name).key, None)

    def find(self, name: Name) -> FakeModel | None:
        return self._models.get(name.key)

    def __iter__(self) -> Iterator[FakeModel]:
        return iter(list(self._models.values()))


def tags(catalogue: Catalogue, *, older: bool) -> dict[str, Any]:
    """The body of ``/api/tags``; an ``older`` daemon tells nothing of capabilities and contexts."""
    rows = [_tags_row(model, index, older=older) for index, model in enumerate(catalogue)]
    return {"models": rows[::-1]}


def modified_at(index: int) -> str:
    """When the model of that place in the catalogue was made."""
    return (_BORN + timedelta(seconds=index)).isoformat().replace("+00:00", "Z")


def _tags_row(model: FakeModel, index: int, *, older: bool) -> dict[str, Any]:
    shown = model.full_name.shortest
    row: dict[str, Any] = {"name": shown, "model": shown}
    if model.remote_model:
        row |= {"remote_model": model.remote_model, "remote_host": model.remote_host}
    row |= {"modified_at": modified_at(index), "size": model.size, "digest": model.sha256, "details": details(model)}
    if not older:
        row["details"] |= {"context_length": model.context_length, "embedding_length": _EMBEDDING}
        row["capabilities"] = list(model.capabilities if model.listed is None else model.listed)
    return row


def details(model: FakeModel) -> dict[str, Any]:
    """The model's ``details``."""
    local = not model.remote_model
    return {
        "parent_model": "",
        "format": "gguf" if local else "",
        "family": model.family,
        "families": [model.family] if local else None,
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
    }


def show(model: FakeModel, index: int) -> dict[str, Any]:
    """The body of ``/api/show``."""
    shown = model.full_name.shortest
    answer: dict[str, Any] = {
        "modelfile": f'# Modelfile generated by "ollama show"\nFROM {shown}\nTEMPLATE {{{{ .Prompt }}}}\n'
    }
    if model.parameters:
        answer["parameters"] = "\n".join(f"{name:<30} {value}" for name, value in model.parameters.items())
    answer |= {"template": "{{ .Prompt }}", "details": details(model)}
    if model.remote_model:
        answer |= {"remote_model": model.remote_model, "remote_host": model.remote_host}
    answer["model_info"] = {
        "general.architecture": model.family,
        "general.file_type": 1,
        f"{model.family}.context_length": model.context_length,
        f"{model.family}.embedding_length": _EMBEDDING,
    }
    if not model.remote_model:
        answer["tensors"] = [{"name": "output_norm.weight", "type": "F32", "shape": [_EMBEDDING]}]
    return answer | {"capabilities": list(model.capabilities), "modified_at": modified_at(index)}
