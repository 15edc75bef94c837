"""What can be found out about a model file without loading it. Blocking, and reads no more than headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from server.chat.template import CHATML
from server.chat.template_facts import template_facts
from server.core.errors import LlmspellError, ModelLoadingFailed
from server.core.library import InstalledModel, ModelDetails, PredictedMemory
from server.pool.config import ModelConfig
from server.pool.material import Material, material_of
from server.store.context_shape import ContextShape
from server.store.footprint import predict_footprint
from server.store.gguf import read_gguf_header
from server.store.gguf_header import GgufHeader
from server.store.model_files import FoundModel
from server.store.ollama_store import read_details
from server.store.ollama_template import TemplateSource

_CONTEXT_LENGTHS = (2048, 8192, 32_768)
_LONGEST_CONTEXT = 1 << 31
_MOST_LICENCE_LEN = 200
_MOST_TEMPLATE_BYTES = 4 << 20
_OF_ENCODERS = {"clip.has_vision_encoder": "vision", "clip.has_audio_encoder": "audio"}


@dataclass(frozen=True, slots=True)
class _Template:
    """Where the chat template comes from, its Jinja text, and what is to be said about it."""

    source: str | None
    text: str | None = None
    notes: tuple[str, ...] = ()


def details_of(
    installed: InstalledModel, found: FoundModel, config: ModelConfig | None, files: Sequence[Path]
) -> ModelDetails:
    """Find out about a model what its files say.

    Args:
        installed: what is known already.
        found: its files.
        config: what the configuration says of it.
        files: where its weights are.

    """
    try:
        if installed.problem is not None and not found.files:
            raise ModelLoadingFailed(installed.problem)
        header, *parts = [read_gguf_header(file.path) for file in found.files]
        return _details(installed, found, config, header, parts, tuple(files))
    except LlmspellError as error:
        problem = installed.problem or error.message
        known = replace(installed, problem=problem)
        return ModelDetails(known, files=tuple(files), projectors=found.projectors)


def _details(
    installed: InstalledModel,
    found: FoundModel,
    config: ModelConfig | None,
    header: GgufHeader,
    parts: Sequence[GgufHeader],
    files: tuple[Path, ...],
) -> ModelDetails:
    material = material_of(found)
    template = _template(material, header, config)
    abilities = () if template.text is None else template_facts(template.text)
    encoders, complaints = _encoders(found.projectors)
    return ModelDetails(
        installed=replace(installed, capabilities=_capabilities(header, template, abilities, encoders)),
        architecture=header.architecture or None,
        name=header.name,
        licence=header.text("general.license") or _licence(found),
        template=template.source,
        template_capabilities=abilities,
        files=files,
        projectors=found.projectors,
        system=material.defaults.system,
        defaults=_defaults(material),
        memory=tuple(_memory(header, parts)),
        notes=(*template.notes, *_notes(material), *complaints),
    )


def _template(material: Material, header: GgufHeader, config: ModelConfig | None) -> _Template:
    if config is not None and config.chat_template:
        return _configured_template(Path(config.chat_template))
    choice = material.choose_template(header.chat_template)
    notes = () if choice.note is None else (choice.note,)
    match choice.source:
        case TemplateSource.FILE:
            return _Template("file", header.chat_template, notes)
        case TemplateSource.MANIFEST:
            return _Template("manifest", choice.jinja, notes)
        case TemplateSource.NONE:
            return _Template(None, None, notes) if notes else _Template("default", CHATML)


def _configured_template(path: Path) -> _Template:
    try:
        with path.open("rb") as file:
            return _Template("config", file.read(_MOST_TEMPLATE_BYTES).decode("utf-8", "replace"))
    except OSError as error:
        return _Template("config", None, (f"the configured chat_template {path} cannot be read: {error.strerror}",))


def _defaults(material: Material) -> Mapping[str, object]:
    """Return what requests get that do not say otherwise, by the names of their parameters."""
    defaults: dict[str, object] = dict(material.defaults.sampling)
    if material.defaults.max_tokens is not None:
        defaults["max_tokens"] = material.defaults.max_tokens
    if material.defaults.stop:
        defaults["stop"] = list(material.defaults.stop)
    if material.context_length is not None:
        defaults["context_length"] = material.context_length
    return defaults


def _notes(material: Material) -> Iterator[str]:
    yield from material.notes
    if material.defaults.messages:
        yield f"every conversation begins with {len(material.defaults.messages)} messages of its own"


def _licence(found: FoundModel) -> str | None:
    """Return the beginning of the licence that a manifest of Ollama brings along."""
    licences = read_details(found.ollama).licenses if found.ollama is not None else ()
    lines = (line.strip() for text in licences for line in text.splitlines())
    first = next((line for line in lines if line), None)
    return None if first is None else first[:_MOST_LICENCE_LEN]


def _encoders(projectors: Sequence[Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what the encoders take in, and what is wrong with them."""
    kinds: list[str] = []
    complaints: list[str] = []
    for path in projectors:
        try:
            header = read_gguf_header(path)
        except ModelLoadingFailed as error:
            complaints.append(f"its projector cannot be used: {error.message}")
            continue
        said = [kind for key, kind in _OF_ENCODERS.items() if header.metadata.get(key) is True]
        kinds += said or ["vision"]
    return tuple(dict.fromkeys(kinds)), tuple(complaints)


def _capabilities(
    header: GgufHeader, template: _Template, abilities: Sequence[str], encoders: Sequence[str]
) -> tuple[str, ...]:
    if header.of_architecture("pooling_type") and not header.chat_template:
        return ("embedding",)
    can_chat = ("chat",) if template.source is not None else ()
    of_template = tuple(each for each in ("tools", "thinking") if each in abilities)
    return (*can_chat, *of_template, *encoders)


def _memory(header: GgufHeader, parts: Sequence[GgufHeader]) -> Iterator[PredictedMemory]:
    trained = header.context_length or 0
    lengths = {each for each in _CONTEXT_LENGTHS if not trained or each <= trained}
    if 0 < trained <= _LONGEST_CONTEXT:
        lengths.add(trained)
    for length in sorted(lengths):
        # weights in one place: rearranged for a processor they take as much instead, and no more
        shape = ContextShape(length, repacked=frozenset())
        yield PredictedMemory(length, predict_footprint(header, shape, parts).total_cpu)
