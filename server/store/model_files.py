"""From the files in folders to models: parts of split models together, projectors beside what they belong to."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from server.store.lookout import FileState, Lookout, Refused, is_folder, real_folder
from server.store.model_names import FileName, names_in_folder, names_in_repository, read_file_name, without_attachment
from server.store.ollama_manifest import OllamaModel
from server.store.places import Place, Source

_LEAST_BYTES = 24
"""The first fields of a GGUF file."""
_PROJECTOR_ORDER = ("F16", "BF16", "Q8_0", "F32")
_HUB_FOLDER = "hf.co"
_SHA256_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model in one place.

    Attributes:
        source: whose place it is.
        names: what it may be called, the best name first.
        path: the file that llama.cpp opens: the first one of a split model.
        files: all files of the weights that are there; a link's state is that of its target.
        projectors: files with the image or audio encoder.
        digest: SHA-256 of the weights, if the place says it.
        problem: why it cannot be used, as far as can be known without opening it.
        ollama: what a manifest of Ollama says.

    """

    source: Source
    names: tuple[str, ...]
    path: Path
    files: tuple[FileState, ...]
    projectors: tuple[Path, ...] = ()
    digest: str | None = None
    problem: str | None = None
    ollama: OllamaModel | None = None


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file whose name says that it holds a model, or a part of one."""

    path: Path
    name: FileName
    state: FileState | None
    problem: str | None


Namer = Callable[[ModelFile], tuple[str, ...]]


def scan_folder(place: Place, lookout: Lookout) -> list[FoundModel]:
    """List the models in our own folder, a configured one, or LM Studio's.

    Links out of our own folder are refused. In the other ones they are followed, because people and programs use them
    to have a model in two places.
    """
    root = real_folder(place.path)
    if place.source is Source.FOLDER and not is_folder(root):
        lookout.complain(place.path, "is no folder that can be read; correct model_dirs in the configuration")
    inside = root if place.source is Source.OWN else None
    repositories: dict[tuple[str, ...], list[ModelFile]] = {}
    models: list[FoundModel] = []
    for directory, entries in lookout.walk(root):
        files = list(model_files(directory, entries, lookout, inside))
        if home := _repository(place.source, directory.relative_to(root)):
            repositories.setdefault(home, []).extend(files)
        else:
            models += models_of(place.source, files, _folder_namer(root))
    for home, files in repositories.items():
        models += models_of(place.source, files, _repository_namer(root.joinpath(*home)), together=True)
    return models


def _repository(source: Source, relative: PurePath) -> tuple[str, ...]:
    """Return the part of a path that names a repository of Hugging Face; empty if none does."""
    parts = relative.parts
    if source is Source.LM_STUDIO and len(parts) >= 2:
        return parts[:2]
    return parts[:3] if source is not Source.LM_STUDIO and len(parts) >= 3 and parts[0] == _HUB_FOLDER else ()


def _folder_namer(root: Path) -> Namer:
    return lambda file: names_in_folder(file.path.relative_to(root), file.name, root.name)


def _repository_namer(home: Path) -> Namer:
    return lambda file: names_in_repository(home.parent.name, home.name, file.path.relative_to(home), file.name)


def model_files(
    directory: Path, entries: Iterable[os.DirEntry[str]], lookout: Lookout, inside: Path | None
) -> Iterator[ModelFile]:
    """Find the files among the entries of a folder that hold a model by their name."""
    for entry in entries:
        name = read_file_name(entry.name)
        if name is None:
            continue
        path = directory / entry.name
        try:
            state = lookout.file(path, inside)
        except Refused as refusal:
            yield ModelFile(path, name, None, str(refusal))
            continue
        problem = f"has {state.size} bytes, which is no model" if state.size < _LEAST_BYTES else None
        yield ModelFile(path, name, state, problem)


def models_of(
    source: Source, files: Sequence[ModelFile], namer: Namer, *, together: bool = False
) -> Iterator[FoundModel]:
    """Put the files of one folder, or of one repository, together to models.

    Args:
        source: whose place it is in.
        files: the files.
        namer: gives a model its names.
        together: whether they are one model, in several quantizations.

    """
    projectors = [file for file in files if file.name.attachment == "mmproj" and file.problem is None]
    groups: dict[tuple[Path, str, int], list[ModelFile]] = {}
    for file in files:
        if file.name.attachment is None:
            groups.setdefault((file.path.parent, file.name.stem, file.name.count), []).append(file)
    bases = {group[0].name.base.lower() for group in groups.values()}
    for group in groups.values():
        own = projector_for(group[0], projectors, is_only=together or len(bases) == 1)
        yield _model(source, sorted(group, key=lambda file: file.name.number), namer, own)


def _model(source: Source, group: Sequence[ModelFile], namer: Namer, projector: ModelFile | None) -> FoundModel:
    first = group[0]
    return FoundModel(
        source=source,
        names=namer(first),
        path=first.path,
        files=tuple(file.state for file in group if file.state is not None),
        projectors=(projector.path,) if projector else (),
        digest=_digest(first.state) if first.name.count == 1 else None,
        problem=_problem(group),
    )


def _digest(state: FileState | None) -> str | None:
    """Return what the name of a blob says: the caches of Hugging Face and Ollama name files by their SHA-256."""
    name = state.path.name.removeprefix("sha256-").lower() if state else ""
    return name if _SHA256_NAME.fullmatch(name) else None


def _problem(group: Sequence[ModelFile]) -> str | None:
    for file in group:
        if file.problem is not None:
            return f"{file.path.name} {file.problem}"
    count = group[0].name.count
    if missing := sorted(set(range(1, count + 1)) - {file.name.number for file in group}):
        stem = group[0].name.stem
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"is incomplete: {stem}-{missing[0]:05}-of-{count:05}.gguf{others} of its {count} files is missing"
    return None


def projector_for(model: ModelFile, projectors: Sequence[ModelFile], *, is_only: bool) -> ModelFile | None:
    """Choose the projector that belongs to a model.

    It is one that bears the model's name; or any, where the files are those of one model only. Of several, the nearest
    one, in the model's folder or in one above it; of these the one in 16 bits: encoders are small, and lose most from
    quantization.
    """
    base = model.name.base.lower()
    named = [each for each in projectors if without_attachment(each.name.base).lower() == base]
    nameless = [each for each in projectors if not without_attachment(each.name.base)]
    candidates = named or (nameless or list(projectors) if is_only else [])
    return min(
        candidates, key=lambda each: (_distance(model, each), _precision(each.name), each.path.name), default=None
    )


def _distance(model: ModelFile, projector: ModelFile) -> int:
    """Return how many folders above a model a projector is; far away if it is not above it."""
    folders = list(model.path.parents)
    return folders.index(projector.path.parent) if projector.path.parent in folders else len(folders)


def _precision(name: FileName) -> int:
    order = _PROJECTOR_ORDER
    return order.index(name.quantization) if name.quantization in order else len(order)
