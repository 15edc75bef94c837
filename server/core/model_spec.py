"""The grammar of model specs: ``[provider "/"] name [":" variant] ["@" backend]``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from server.core.errors import InvalidModelSpec

DEFAULT_VARIANT = "latest"
DEFAULT_QUANTIZATION = "Q4_K_M"

_MAX_SPEC_LEN = 256
_HUGGING_FACE = ("hf.co/", "huggingface.co/")
_HUGGING_FACE_SLASHES = 2
# a registry may have a port: registry.example:5000/team/model
_NAME = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9.\-]*:[0-9]{1,5}/)?[A-Za-z0-9_][A-Za-z0-9._\-+ ]*(?:/[A-Za-z0-9_][A-Za-z0-9._\-+]*)*\Z"
)
_VARIANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._\-+]*\Z")


class BackendName(StrEnum):
    """A backend that can serve a model."""

    OLLAMA = "ollama"
    LLAMACPP = "llamacpp"


_PROVIDERS: dict[str, BackendName | None] = {
    "local": None,
    "ollama": BackendName.OLLAMA,
    "llamacpp": BackendName.LLAMACPP,
}
_BACKENDS = {
    "ollama": BackendName.OLLAMA,
    "llamacpp": BackendName.LLAMACPP,
    "llama.cpp": BackendName.LLAMACPP,
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A parsed spec.

    ``backend`` is ``None`` when the router is free to choose (``local/…`` and bare names).
    """

    name: str
    variant: str | None = None
    backend: BackendName | None = None

    @property
    def model(self) -> str:
        """Name and variant as a backend knows them: ``llama3.1:8b``."""
        return self.name if self.variant is None else f"{self.name}:{self.variant}"

    def __str__(self) -> str:
        suffix = "" if self.backend is None else f"@{self.backend.value}"
        return f"local/{self.model}{suffix}"


def equivalent_names(model: str) -> tuple[str, ...]:
    """Return the names (with variant) that mean the same model, the given one first.

    A missing variant is ``latest``, and for a repository of Hugging Face also its ``Q4_K_M`` file.
    """
    name, colon, variant = split_variant(model)
    default = (DEFAULT_VARIANT, DEFAULT_QUANTIZATION) if is_hugging_face(name) else (DEFAULT_VARIANT,)
    if not colon:
        return (model, *(f"{name}:{each}" for each in default))
    return (model, name) if variant in default else (model,)


def split_variant(model: str) -> tuple[str, str, str]:
    """Split ``name:variant`` into name, colon and variant; a colon before the last slash is that of a port."""
    name, colon, variant = model.rpartition(":")
    return (name, colon, variant) if colon and "/" not in variant else (model, "", "")


def is_hugging_face(name: str) -> bool:
    """Whether a model name stands for a repository on Hugging Face."""
    return name.lower().startswith(_HUGGING_FACE)


def parse_model_spec(text: str) -> ModelSpec:
    """Parse a spec as a client writes it in ``model``.

    Raises:
        InvalidModelSpec: the text does not follow the grammar, or its halves name two backends.

    """
    if not text or len(text) > _MAX_SPEC_LEN:
        raise InvalidModelSpec(f"A model spec has 1 to {_MAX_SPEC_LEN} characters; this one has {len(text)}.")
    if "://" in text:
        raise InvalidModelSpec(
            f"{text!r} is an address and not a model spec. Write hf.co/owner/repository for one of Hugging Face."
        )
    rest, forced = _split_backend(text)
    rest, provided = _split_provider(rest)
    if forced and provided and forced is not provided:
        raise InvalidModelSpec(
            f"The model spec {text!r} names two backends, {provided.value} and {forced.value}; keep one of them."
        )
    name, colon, variant = split_variant(rest)
    if not _NAME.match(name) or (colon and not _VARIANT.match(variant)):
        raise InvalidModelSpec(
            f"{text!r} is not a model spec. Write [provider/]name[:variant][@backend], for example local/llama3.1:8b."
        )
    if is_hugging_face(name) and name.count("/") != _HUGGING_FACE_SLASHES:
        raise InvalidModelSpec(f"{text!r} names no repository; write hf.co/owner/repository[:quantization].")
    return ModelSpec(name=name, variant=variant if colon else None, backend=forced or provided)


def _split_backend(text: str) -> tuple[str, BackendName | None]:
    rest, at, backend = text.rpartition("@")
    if not at:
        return text, None
    if backend not in _BACKENDS:
        raise InvalidModelSpec(f"Unknown backend {backend!r} in {text!r}; use @ollama or @llamacpp.")
    return rest, _BACKENDS[backend]


def _split_provider(text: str) -> tuple[str, BackendName | None]:
    provider, slash, rest = text.partition("/")
    if slash and provider in _PROVIDERS:
        return rest, _PROVIDERS[provider]
    return text, None
