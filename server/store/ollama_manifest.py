"""What a manifest of Ollama says: which blobs make up a model, and what kind of model it is.

A manifest is a small JSON file, ``manifests/HOST/NAMESPACE/MODEL/TAG``, with a list of layers; each names a file
``blobs/sha256-HEX`` and what it is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.store.lookout import Refused

_PREFIX = "application/vnd.ollama.image."
MODEL, PROJECTOR, ADAPTER, DRAFT, TENSOR = "model", "projector", "adapter", "draft", "tensor"
TEMPLATE, SYSTEM, PARAMETERS, MESSAGES, LICENSE = "template", "system", "params", "messages", "license"
CONFIG = "configuration"
_OLD_TEMPLATE = "prompt"
_BEHAVIOUR = (PROJECTOR, ADAPTER, TEMPLATE, SYSTEM, PARAMETERS, MESSAGES)
"""Layers that make two models with the same weights different ones."""

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-:]{0,349}")
_DEFAULT_HOST, _DEFAULT_NAMESPACE = "registry.ollama.ai", "library"
_MOST_LAYERS = 100_000  # models in the safetensors format have one for each tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob of a model. ``kind`` is the last word of its media type; ``digest`` is its SHA-256 in lower case."""

    kind: str
    digest: str
    size: int

    @property
    def file_name(self) -> str:
        """Name of its file in the folder of blobs."""
        return f"sha256-{self.digest}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The layers of a model; ``config`` is the one that says what kind of model it is."""

    config: Layer | None
    layers: tuple[Layer, ...]

    def of(self, *kinds: str) -> tuple[Layer, ...]:
        """Return the layers of some kinds."""
        return tuple(layer for layer in self.layers if layer.kind in kinds)


@dataclass(frozen=True, slots=True)
class OllamaKind:
    """What the config layer says.

    Attributes:
        format: ``gguf``, or ``safetensors`` for models that only Ollama's MLX engine runs.
        family: the architecture, in Ollama's words.
        parameter_size: as ``8.0B``.
        quantization: as ``Q4_K_M``.
        renderer: the code in Ollama that makes prompts for this model; empty if a template does.
        parser: the code in Ollama that takes its answers apart.
        remote_host: where it runs, if it does not run here.

    """

    format: str = "gguf"
    family: str = ""
    parameter_size: str = ""
    quantization: str = ""
    renderer: str = ""
    parser: str = ""
    remote_host: str = ""


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model of Ollama's store: its name there, the folder of its blobs, its manifest and its kind."""

    name: str
    blobs: Path
    manifest: Manifest
    kind: OllamaKind

    @property
    def behaviour(self) -> tuple[str, ...]:
        """What distinguishes it from other models with the same weights; empty if nothing does."""
        digests = (layer.digest for layer in self.manifest.of(*_BEHAVIOUR, _OLD_TEMPLATE))
        return tuple(part for part in (*digests, self.kind.renderer, self.kind.parser) if part)

    def template_layers(self) -> tuple[Layer, ...]:
        """Return the layers with its template; the last one counts."""
        return self.manifest.of(TEMPLATE, _OLD_TEMPLATE)


def model_name(parts: Sequence[str]) -> str | None:
    """Return what Ollama calls the model of ``HOST/NAMESPACE/MODEL/TAG``; ``None`` for what it would not accept."""
    host, namespace, model, tag = parts
    if not (_HOST.fullmatch(host) and all(_PART.fullmatch(part) for part in (namespace, model, tag))):
        return None
    if "." in namespace:
        return None
    if host.lower() != _DEFAULT_HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace.lower() == _DEFAULT_NAMESPACE else f"{namespace}/{model}:{tag}"


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        Refused: it is not one, or names a blob by anything but its SHA-256.

    """
    content = parse_json(data)
    if not isinstance(content, dict) or not isinstance(content.get("layers"), list):
        raise Refused("is not a manifest of Ollama")
    if len(content["layers"]) > _MOST_LAYERS:
        raise Refused(f"is not a manifest of Ollama: it has {len(content['layers'])} layers")
    config = content.get("config")
    return Manifest(
        replace(_layer(config), kind=CONFIG) if isinstance(config, dict) and config.get("digest") else None,
        tuple(_layer(layer) for layer in content["layers"]),
    )


def _layer(content: object) -> Layer:
    if not isinstance(content, dict):
        raise Refused("is not a manifest of Ollama")
    media_type, digest, size = (content.get(key) for key in ("mediaType", "digest", "size"))
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None:
        raise Refused(f"names a blob that is none: {str(digest)[:80]!r}")
    kind = str(media_type).partition(";")[0].removeprefix(_PREFIX)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Refused(f"gives no size for the blob {digest}")
    return Layer(kind, found[1].lower(), size)


def parse_kind(data: bytes) -> OllamaKind:
    """Read a config layer; what is not text in it counts as not said.

    Raises:
        Refused: it is not one.

    """
    content = parse_json(data)
    if not isinstance(content, dict):
        raise Refused("is not a configuration of Ollama")
    return OllamaKind(
        format=_text(content, "model_format") or "gguf",
        family=_text(content, "model_family"),
        parameter_size=_text(content, "model_type"),
        quantization=_text(content, "file_type"),
        renderer=_text(content, "renderer"),
        parser=_text(content, "parser"),
        remote_host=_text(content, "remote_host") or _text(content, "remote_model"),
    )


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    return value if isinstance(value, str) else ""


def parse_json(data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Read JSON that somebody else wrote.

    Raises:
        Refused: it is no JSON.

    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Refused("is not valid JSON") from None
