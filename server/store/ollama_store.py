"""Models in Ollama's own store, which run in the pool straight from their blobs.

Nothing that a manifest says is trusted: blobs are found by their digest alone, must lie in the store's folder of blobs,
and must be regular files of the size that the manifest gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from server.store.lookout import FileState, Lookout, Refused, read_small, real_folder
from server.store.model_files import FoundModel
from server.store.ollama_manifest import (
    ADAPTER,
    LICENSE,
    MESSAGES,
    MODEL,
    PARAMETERS,
    PROJECTOR,
    SYSTEM,
    TENSOR,
    Layer,
    Manifest,
    OllamaKind,
    OllamaModel,
    model_name,
    parse_json,
    parse_kind,
    parse_manifest,
)
from server.store.ollama_parameters import OllamaParameters, parse_parameters
from server.store.places import Source

_MOST_MANIFEST_BYTES = 32 << 20
_MOST_TEXT_BYTES = 1 << 20
_PULL = "`ollama pull {}` fetches it again"


def scan_ollama(root: Path, lookout: Lookout) -> list[FoundModel]:
    """List the models of a store, those that cannot be used included."""
    root = real_folder(root)
    models: list[FoundModel] = []
    for host in lookout.folders(root / "manifests"):
        for namespace in lookout.folders(Path(host.path)):
            for model in lookout.folders(Path(namespace.path)):
                for tag in lookout.entries(Path(model.path)):
                    parts = (host.name, namespace.name, model.name, tag.name)
                    models += _listed(root, parts, Path(tag.path), lookout)
    return models


def _listed(root: Path, parts: tuple[str, ...], path: Path, lookout: Lookout) -> Iterator[FoundModel]:
    name = model_name(parts)
    if name is None:
        lookout.complain(path, "is not listed: its path is not the name of a model")
        return
    try:
        manifest = parse_manifest(lookout.small_file(path, root / "manifests", _MOST_MANIFEST_BYTES))
    except Refused as refusal:
        lookout.complain(path, str(refusal))
        return
    found = _found(root / "blobs", name, manifest, lookout)
    yield found if manifest.of(MODEL) else replace(found, path=path)


def _found(blobs: Path, name: str, manifest: Manifest, lookout: Lookout) -> FoundModel:
    kind, unknown = _kind(blobs, manifest, lookout)
    problem = f"{unknown}; {_PULL.format(name)}" if unknown else _unusable(manifest, kind)
    weights = manifest.of(MODEL)
    files: tuple[FileState, ...] = ()
    projectors: list[Path] = []
    try:
        if problem is None:
            files = (_blob(blobs, weights[0], lookout),)
            projectors = [_blob(blobs, layer, lookout).path for layer in manifest.of(PROJECTOR)]
    except Refused as refusal:
        problem = f"{refusal}; {_PULL.format(name)}"
    return FoundModel(
        source=Source.OLLAMA,
        names=_names(name),
        path=blobs / weights[0].file_name if weights else blobs,
        files=files,
        projectors=tuple(projectors),
        digest=weights[0].digest if len(weights) == 1 else None,
        problem=problem,
        ollama=OllamaModel(name, blobs, manifest, kind),
    )


def _names(name: str) -> tuple[str, ...]:
    long = "huggingface.co/"
    return (name, f"hf.co/{name[len(long) :]}") if name.lower().startswith(long) else (name,)


def _kind(blobs: Path, manifest: Manifest, lookout: Lookout) -> tuple[OllamaKind, str | None]:
    """Return what kind of model it is, or why that is not known."""
    layer = manifest.config
    if layer is None:
        return OllamaKind(), None
    try:
        path = _blob(blobs, layer, lookout).path
    except Refused as refusal:
        return OllamaKind(), str(refusal)
    try:
        return parse_kind(read_small(path, _MOST_TEXT_BYTES)), None
    except Refused as refusal:
        return OllamaKind(), f"its {layer.kind} {layer.file_name} {refusal}"


def _unusable(manifest: Manifest, kind: OllamaKind) -> str | None:
    """Say why the pool cannot run a model, as far as its manifest tells."""
    if kind.remote_host:
        return f"runs at {kind.remote_host} and not on this machine; use it @ollama"
    if kind.format != "gguf" or manifest.of(TENSOR):
        return f"is in the format {kind.format!r} and not GGUF; use it @ollama"
    if manifest.of(ADAPTER):
        return "has a LoRA adapter, which the pool cannot apply; use it @ollama"
    count = len(manifest.of(MODEL))
    return None if count == 1 else f"has {count} files of weights, where one is expected; use it @ollama"


def _blob(blobs: Path, layer: Layer, lookout: Lookout) -> FileState:
    """Return the state of a blob.

    Raises:
        Refused: it is not there, not what the manifest says, or a link out of the folder.

    """
    try:
        state = lookout.file(blobs / layer.file_name, blobs)
    except Refused as refusal:
        raise Refused(f"its {layer.kind} {layer.file_name} {refusal}") from None
    if state.size != layer.size:
        raise Refused(f"its {layer.kind} {layer.file_name} has {state.size} of {layer.size} bytes")
    return state


@dataclass(frozen=True, slots=True)
class OllamaDetails:
    """What the layers of a model hold besides weights.

    Attributes:
        template: the source of its template, in Go's language; ``None`` if it has none.
        system: its system message, for conversations without one.
        messages: what every conversation begins with: roles and texts.
        parameters: its defaults.
        licenses: the texts of its licences.
        problems: layers that cannot be read.

    """

    template: str | None
    system: str | None
    messages: tuple[tuple[str, str], ...]
    parameters: OllamaParameters
    licenses: tuple[str, ...]
    problems: tuple[str, ...]


def read_details(model: OllamaModel) -> OllamaDetails:
    """Read the small layers of a model; whatever cannot be read is named among the problems."""
    reader = _Details(model.blobs)
    templates, systems = (reader.texts(layers) for layers in (model.template_layers(), model.manifest.of(SYSTEM)))
    parameters = reader.json_of(model.manifest.of(PARAMETERS))
    return OllamaDetails(
        template=templates[-1] if templates else None,
        system=systems[-1] if systems else None,
        messages=_messages(reader.json_of(model.manifest.of(MESSAGES))),
        parameters=parse_parameters(parameters if isinstance(parameters, dict) else {}),
        licenses=reader.texts(model.manifest.of(LICENSE)),
        problems=tuple(reader.problems),
    )


class _Details:
    """Reads layers, and collects what is wrong with them."""

    def __init__(self, blobs: Path) -> None:
        self._blobs = blobs
        self.problems: list[str] = []

    def texts(self, layers: tuple[Layer, ...]) -> tuple[str, ...]:
        return tuple(data.decode("utf-8", "replace") for data in self._contents(layers))

    def json_of(self, layers: tuple[Layer, ...]) -> object:
        """Return the content of the last layer."""
        try:
            return parse_json([b"null", *self._contents(layers)][-1])
        except Refused as refusal:
            self.problems.append(f"its {layers[-1].kind} {layers[-1].file_name} {refusal}")
            return None

    def _contents(self, layers: tuple[Layer, ...]) -> Iterator[bytes]:
        for layer in layers:
            try:
                path = Lookout(0).file(self._blobs / layer.file_name, self._blobs).path
                yield read_small(path, _MOST_TEXT_BYTES)
            except Refused as refusal:
                self.problems.append(f"its {layer.kind} {layer.file_name} {refusal}")


def _messages(content: object) -> tuple[tuple[str, str], ...]:
    """Keep the messages that have a role and a text."""
    messages = content if isinstance(content, list) else []
    pairs = ((each.get("role"), each.get("content")) for each in messages if isinstance(each, dict))
    return tuple((role, text) for role, text in pairs if isinstance(role, str) and isinstance(text, str))
