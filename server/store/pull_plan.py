"""Which files of a repository make a model. Pure.

A repository holds a model in several quantizations, large ones split into shards, and for models that see or hear a
projector beside them. File names tell all that, by conventions that https://huggingface.co/docs/hub/gguf and the
tools that write the files follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from server.core.errors import InvalidRequest, ModelNotFound, PullFailed
from server.core.model_spec import DEFAULT_QUANTIZATION, DEFAULT_VARIANT, ModelSpec, is_hugging_face
from server.store.hub_listing import HubFile, HubListing, check_repository
from server.store.model_names import read_file_name, without_attachment
from server.store.recommended import RecommendedModels

FOLDER = "hf.co"
"""Where repositories of Hugging Face are, in the folder for models: a file's place reads as its spec does."""

_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf\Z", re.IGNORECASE)
_QUANTIZATION = re.compile(
    r"(?:^|[-._/])"
    r"((?:UD-)?(?:I?Q[1-8](?:_(?:[0-9]+|K|NL|XXS|XS|S|M|L|XXL|XL|P))*|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
    r"(?=[-._/]|\Z)",
    re.IGNORECASE,
)
_PROJECTOR = "mmproj"
_NO_MODELS = (_PROJECTOR, "imatrix")
_HELPERS = ("mtp-", "eagle3-", "dflash-", "dspark-")
"""How the names begin of small models that guess ahead for a large one, as llama.cpp tells them apart."""
_DYNAMIC = "UD-"
"""Unsloth's mark for quantizations that choose the precision of each layer."""
_PREFERRED = (
    DEFAULT_QUANTIZATION,
    f"{_DYNAMIC}{DEFAULT_QUANTIZATION}",
    "Q4_K_S",
    "Q4_K_L",
    "UD-Q4_K_XL",
    "IQ4_XS",
    "IQ4_NL",
    "Q4_0",
    "Q4_1",
    "Q4",
    "MXFP4",
    "MXFP4_MOE",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
    "Q3_K_M",
    "BF16",
)
"""What is taken first of quantizations with as many bits; then what is nearest to four bits by its size."""
_BITS = (4, 5, 6, 8, 3, 16, 2, 32, 1)
"""What is taken when nobody says which: the nearest to Q4_K_M that there is, more bits rather than less."""
_WITHDRAWN = re.compile(r"Q4_0_[48]_[48]\Z")
"""Layouts for some processors, which llama.cpp no longer reads."""
_PREFERRED_PROJECTORS = ("F16", "BF16", "Q8_0", "F32")
_MAX_LISTED = 30


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a spec asks for; without a quantization the one that is usual."""

    repository: str
    quantization: str | None


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model at one quantization, in the order of their shards."""

    quantization: str
    shards: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """How many bytes they have."""
        return sum(file.size for file in self.shards)


@dataclass(frozen=True, slots=True)
class PullPlan:
    """What to download for one model."""

    listing: HubListing
    model: ModelFiles
    projector: HubFile | None

    @property
    def files(self) -> tuple[HubFile, ...]:
        """All files; the one that the model is loaded by comes last, so that it is not there without the others."""
        others = self.model.shards[1:] if self.projector is None else (self.projector, *self.model.shards[1:])
        return (*others, self.model.shards[0])

    @property
    def size(self) -> int:
        """How many bytes they have."""
        return sum(file.size for file in self.files)

    def place_of(self, file: HubFile) -> PurePosixPath:
        """Return where a file goes, relative to the folder for models."""
        return PurePosixPath(FOLDER, self.listing.repository, file.path)

    @property
    def key(self) -> tuple[str, ...]:
        """What two plans have in common that ask for the same."""
        return (self.listing.repository, *(f"{file.path} {file.checksum.digest}" for file in self.files))


def find_wanted(spec: ModelSpec, quantization: str | None, recommended: RecommendedModels) -> Wanted:
    """Decide which repository a spec means: the one it names, or that of a recommended model.

    Args:
        spec: as the user wrote it; the variant of a repository is its quantization.
        quantization: what the user said besides.
        recommended: models with short names.

    Raises:
        InvalidRequest: spec and quantization say two different things, or the quantization nothing.
        ModelNotFound: the name stands for no repository.

    """
    if quantization is not None and not quantization.strip():
        raise InvalidRequest(
            f"The quantization is empty. Name one such as {DEFAULT_QUANTIZATION}, or none.", param="quantization"
        )
    if is_hugging_face(spec.name):
        return Wanted(check_repository(spec.name.partition("/")[2]), _one_of(spec.variant, quantization, spec))
    if (model := recommended.find(spec)) is not None:
        return Wanted(model.repository, quantization or model.quantization)
    model = recommended.find_by_name(spec.name)
    if model is not None and spec.variant is not None and quantization_of(f"-{spec.variant}.gguf") is not None:
        return Wanted(model.repository, _one_of(spec.variant, quantization, spec))
    closest = recommended.closest(spec.model)
    alike = f" Did you mean {' or '.join(closest)}?" if closest else ""
    raise ModelNotFound(
        f"No repository is known for {spec.model}.{alike} `llmspell model available --recommended` lists the models "
        f"with short names; any other is pulled as hf.co/owner/repository:{DEFAULT_QUANTIZATION}.",
        param="model",
    )


def _one_of(variant: str | None, quantization: str | None, spec: ModelSpec) -> str | None:
    said = None if variant is None or variant.lower() == DEFAULT_VARIANT else variant
    if said and quantization and said.lower() != quantization.lower():
        raise InvalidRequest(f"{spec} asks for {said}, and --quantization for {quantization}; keep one.", param="model")
    return said or quantization


def quantization_of(path: str) -> str | None:
    """Return the quantization that the name of a file tells, as it is usually written."""
    whole = path[: -len(".gguf")] if path.lower().endswith(".gguf") else path
    shard = _SHARD.match(path)
    stem = shard["stem"] if shard else whole
    found = _QUANTIZATION.findall(stem)
    return str(found[-1]).upper().replace("FP16", "F16").replace("FP32", "F32") if found else None


def models_in(listing: HubListing) -> tuple[ModelFiles, ...]:
    """Return what a repository offers, smallest first; shards together, incomplete models left out."""
    groups: dict[str, list[HubFile]] = {}
    for file in _model_files(listing):
        shard = _SHARD.match(file.path)
        groups.setdefault(f"{shard['stem']}/{shard['count']}" if shard else file.path, []).append(file)
    models = [
        ModelFiles(quantization_of(files[0].path) or "", tuple(sorted(files, key=lambda file: file.path)))
        for files in groups.values()
    ]
    return tuple(sorted((model for model in models if not missing_shards(model)), key=lambda model: model.size))


def missing_shards(model: ModelFiles) -> tuple[int, ...]:
    """Return the numbers of the shards that a model lacks."""
    first = _SHARD.match(model.shards[0].path)
    if first is None:
        return ()
    there = {int(shard["index"]) for file in model.shards if (shard := _SHARD.match(file.path))}
    return tuple(index for index in range(1, int(first["count"]) + 1) if index not in there)


def plan_pull(listing: HubListing, quantization: str | None = None, *, with_projector: bool = True) -> PullPlan:
    """Decide what to download.

    Args:
        listing: what the repository holds.
        quantization: which one, as its name is written in files, or the name of a file; without it Q4_K_M, or what is
            nearest to it.
        with_projector: whether the projector of a multimodal model is taken along.

    Raises:
        ModelNotFound: the repository has no such files.
        PullFailed: several models fit, or one that lacks shards.

    """
    models = models_in(listing)
    if not models:
        raise ModelNotFound(_nothing_there(listing), param="model")
    if quantization is None or quantization.lower() == DEFAULT_VARIANT:
        model = _default(models, listing)
    else:
        model = _wanted(models, quantization, listing)
    return PullPlan(listing, model, _projector(listing, model) if with_projector else None)


def _model_files(listing: HubListing) -> Iterable[HubFile]:
    return (file for file in listing.files if _is_model(file.name.lower()))


def _is_model(name: str) -> bool:
    return not any(word in name for word in _NO_MODELS) and not name.startswith(_HELPERS)


def _nothing_there(listing: HubListing) -> str:
    if any(_model_files(listing)):
        return f"The models in {listing.repository} lack shards, so that none can be used. Choose another repository."
    return (
        f"{listing.repository} has no GGUF files that llama.cpp could load. Look for a repository whose name ends in "
        "-GGUF."
    )


def _default(models: tuple[ModelFiles, ...], listing: HubListing) -> ModelFiles:
    nearest = min(models, key=_distance_from_default)
    return _only([model for model in models if model.quantization == nearest.quantization], listing)


def _distance_from_default(model: ModelFiles) -> tuple[int, int, int]:
    number = re.search("[0-9]+", model.quantization)
    bits = 0 if number is None or _WITHDRAWN.match(model.quantization) else int(number[0])
    order = _PREFERRED.index(model.quantization) if model.quantization in _PREFERRED else len(_PREFERRED)
    return (_BITS.index(bits) if bits in _BITS else len(_BITS), order, model.size if bits > 4 else -model.size)


def _wanted(models: tuple[ModelFiles, ...], wanted: str, listing: HubListing) -> ModelFiles:
    name = wanted.lower()
    by_name = [model for model in models if name in _file_names(model)]
    names = (name, f"{_DYNAMIC}{name}".lower())
    by_quantization = ([model for model in models if model.quantization.lower() == each] for each in names)
    if fitting := by_name or next((found for found in by_quantization if found), []):
        return _only(fitting, listing)
    raise ModelNotFound(
        f"{listing.repository} has no {wanted}. It has {_offer(models)}; choose one with "
        f"`llmspell model pull hf.co/{listing.repository}:QUANTIZATION`.",
        param="model",
    )


def _file_names(model: ModelFiles) -> set[str]:
    first = model.shards[0]
    names = {first.path.lower(), first.name.lower(), _stem(model).lower()}
    return names | {name.removesuffix(".gguf") for name in names}


def _stem(model: ModelFiles) -> str:
    path = model.shards[0].path
    shard = _SHARD.match(path)
    return shard["stem"] if shard else path[: -len(".gguf")]


def _only(models: list[ModelFiles], listing: HubListing) -> ModelFiles:
    """Return the one model that is left, as a whole file if it is there both whole and in shards."""
    if len({_stem(model) for model in models}) == 1:
        return min(models, key=lambda model: len(model.shards))
    names = ", ".join(model.shards[0].name for model in models[:_MAX_LISTED])
    raise PullFailed(
        f"{listing.repository} has several models that this could mean: {names}. Name one file: "
        f"`llmspell model pull hf.co/{listing.repository}:{models[0].shards[0].name}`.",
        param="model",
    )


def _offer(models: tuple[ModelFiles, ...]) -> str:
    offered = [f"{model.quantization or model.shards[0].name} ({in_gigabytes(model.size)})" for model in models]
    more = f" and {len(offered) - _MAX_LISTED} more" if len(offered) > _MAX_LISTED else ""
    return ", ".join(offered[:_MAX_LISTED]) + more


def in_gigabytes(size: int) -> str:
    """Write a size for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _projector(listing: HubListing, model: ModelFiles) -> HubFile | None:
    """Choose the projector: one that bears the model's name, or that of no other model of the repository.

    It is in the model's own folder or above it; the nearest one, preferably in F16, as it is used.
    """
    path = PurePosixPath(model.shards[0].path)
    own = _base(path.name)
    others = {_base(file.name) for file in _model_files(listing)} - {own, ""}
    fitting = [
        file
        for file in listing.files
        if _PROJECTOR in file.name.lower()
        and path.parent.is_relative_to(PurePosixPath(file.path).parent)
        and _base(file.name) not in others
    ]
    ranks = {quantization: rank for rank, quantization in enumerate(_PREFERRED_PROJECTORS)}
    return min(
        fitting,
        key=lambda file: (
            _base(file.name) != own,
            _base(file.name) != "",
            -len(PurePosixPath(file.path).parts),
            ranks.get(quantization_of(file.path) or "", len(ranks)),
            file.path,
        ),
        default=None,
    )


def _base(name: str) -> str:
    """Return what the name of a file says of the model itself; nothing for names as converters write them."""
    told = read_file_name(name)
    return "" if told is None else without_attachment(told.base).lower()
