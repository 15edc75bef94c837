"""From file names to model names, by rules that need no look into the file (``docs/models.md`` tells them to users).

Every file has several names, the best one first. All files ask for their first name before any asks for its second, in
the order of places and paths; who comes too late for a name does without it. ``Names`` keeps that order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from server.core.errors import InvalidModelSpec
from server.core.model_spec import parse_model_spec

HUGGING_FACE = "hf.co"

_QUANTIZATION = re.compile(
    r"(?:(?P<base>.*?)[-._])?(?P<quantization>"
    r"(?:UD-)?(?:IQ[1-9]_(?:XXS|XS|S|M|NL|XL|L)|I?Q[1-9]_K(?:_(?:XXS|XS|S|M|L|XL|XXL|P))?|Q[1-9]_[01](?:_[48]_[48])?"
    r"|Q[1-9]|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))",
    re.IGNORECASE | re.DOTALL,
)
_SAME = {"FP16": "F16", "FP32": "F32"}
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.DOTALL)
_MOST_PARTS = 1000
_ATTACHMENT = re.compile(r"(?:^|[-._ ])(?P<kind>mmproj|imatrix)(?=$|[-._ ])", re.IGNORECASE)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+\-]+")
_NOT_FIRST = re.compile(r"^[^A-Za-z0-9_]+")
_GENERIC = frozenset({"", "model", "ggml-model", "gguf-model", "unsloth"})
"""Names that say nothing, which converters write; the folder's name stands for them."""


@dataclass(frozen=True, slots=True)
class FileName:
    """What the name of a ``.gguf`` file says.

    Attributes:
        stem: the name without ending and without the numbers of a split file.
        base: the stem without its quantization.
        quantization: as in ``Q4_K_M``; ``None`` if the name ends in none.
        number: which part of a split model it is, from 1; 1 for a whole file.
        count: number of files of the model.
        attachment: ``mmproj`` or ``imatrix`` for a file that is no model but belongs to one.

    """

    stem: str
    base: str
    quantization: str | None
    number: int = 1
    count: int = 1
    attachment: str | None = None


def read_file_name(name: str) -> FileName | None:
    """Take the name of a file apart; ``None`` if it does not end in ``.gguf`` or is hidden."""
    if not name.lower().endswith(".gguf") or name.startswith("."):
        return None
    stem, number, count = name[: -len(".gguf")], 1, 1
    if (split := _SPLIT.fullmatch(stem)) and 1 <= int(split["number"]) <= int(split["count"]) <= _MOST_PARTS:
        stem, number, count = split["stem"], int(split["number"]), int(split["count"])
    base, quantization = split_quantization(stem)
    attachment = found["kind"].lower() if (found := _ATTACHMENT.search(stem)) else None
    return FileName(stem, base, quantization, number, count, attachment)


def split_quantization(stem: str) -> tuple[str, str | None]:
    """Split ``Model-7B.q4_k_m`` into ``Model-7B`` and ``Q4_K_M``; ``None`` if the text ends in no quantization."""
    found = _QUANTIZATION.fullmatch(stem)
    if found is None:
        return stem, None
    quantization = found["quantization"].upper()
    return found["base"] or "", _SAME.get(quantization, quantization)


def without_attachment(base: str) -> str:
    """Return what remains of a projector's name: that of the model it belongs to, or nothing."""
    rest = _ATTACHMENT.sub("", base).strip("-._ ")
    return "" if rest.lower() in _GENERIC else rest


def usable(text: str) -> str:
    """Return a part of a name with everything replaced that a model spec cannot hold."""
    return _NOT_FIRST.sub("", _NOT_IN_NAMES.sub("-", text)).rstrip("-") or "model"


def is_model_name(name: str) -> bool:
    """Whether ``local/<name>`` is a model spec that means this name."""
    try:
        return parse_model_spec(f"local/{name}").model == name
    except InvalidModelSpec:
        return False


def names_in_folder(relative: PurePath, file: FileName, folder: str) -> tuple[str, ...]:
    """Return the names of a file in a folder of files.

    Args:
        relative: its path inside the folder.
        file: what its name says.
        folder: the folder's own name.

    """
    directories = [usable(part) for part in relative.parent.parts]
    base = file.base
    if base.lower() in _GENERIC and directories:
        base = directories.pop()
    last = _with_variant(usable(base), file.quantization)
    inside = "/".join((*directories, last))
    return _distinct((last, inside, f"{usable(folder)}/{inside}"))


def names_in_repository(owner: str, repository: str, relative: PurePath, file: FileName) -> tuple[str, ...]:
    """Return the names of a file of a repository on Hugging Face.

    The second one is the file's own name, which Ollama and the hub accept as a tag, too.
    """
    place = f"{HUGGING_FACE}/{usable(owner)}/{usable(repository)}"
    base = repository.removesuffix("-GGUF").removesuffix("-gguf") if file.base.lower() in _GENERIC else file.base
    return _distinct(
        (
            f"{place}:{file.quantization or usable(file.stem)}",
            f"{place}:{usable(relative.name)}",
            _with_variant(usable(base), file.quantization),
        )
    )


def _with_variant(name: str, variant: str | None) -> str:
    return name if variant is None else f"{name}:{variant}"


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys(names) if is_model_name(name))
