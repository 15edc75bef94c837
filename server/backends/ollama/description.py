"""What the daemon says of one model in answer to ``/api/show``. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PARAMETER = re.compile(r"(\w+)\s+(.+)")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model in the daemon's words; ``None`` where it does not say.

    Attributes:
        architecture: as ``llama``.
        name: what its maker calls it.
        licence: its name, else the text of its licences.
        template: its prompt template, in Go's language, or the Jinja source of its file.
        system: the system message that it brings along.
        parameters: the defaults that it brings along; several values of one, as of ``stop``, in a tuple.
        context_length: tokens that it was trained for.
        capabilities: ``completion``, ``tools``, ``vision``, ….
        num_parameters: as ``8.0B``.
        quantization: as ``Q4_K_M``.

    """

    architecture: str | None
    name: str | None
    licence: str | None
    template: str | None
    system: str | None
    parameters: Mapping[str, object]
    context_length: int | None
    capabilities: tuple[str, ...] | None
    num_parameters: str | None
    quantization: str | None


def read_description(answer: Mapping[str, Any]) -> ModelDescription:
    """Read the daemon's answer; what is of the wrong type counts as not said."""
    information, details = (_object(answer.get(key)) for key in ("model_info", "details"))
    architecture = text(information.get("general.architecture"))
    return ModelDescription(
        architecture=architecture or text(details.get("family")),
        name=text(information.get("general.name")) or text(information.get("general.basename")),
        licence=text(information.get("general.license")) or text(answer.get("license")),
        template=text(answer.get("template")),
        system=text(answer.get("system")),
        parameters=_parameters(text(answer.get("parameters")) or ""),
        context_length=positive(information.get(f"{architecture}.context_length")),
        capabilities=strings(answer.get("capabilities")),
        num_parameters=text(details.get("parameter_size")),
        quantization=text(details.get("quantization_level")),
    )


def _parameters(lines: str) -> Mapping[str, object]:
    """Read lines of a name and a value as Go writes it (``%#v``)."""
    found: dict[str, list[object]] = {}
    for line in lines.splitlines():
        if match := _PARAMETER.fullmatch(line.strip()):
            found.setdefault(match[1], []).append(_value(match[2].strip()))
    return {name: values[0] if len(values) == 1 else tuple(values) for name, values in found.items()}


def _value(written: str) -> object:
    if _INTEGER.fullmatch(written):
        return int(written)
    if written in {"true", "false"}:
        return written == "true"
    try:
        return float(written) if written[:1] != '"' else json.loads(written)
    except ValueError:  # Go escapes some characters as JSON does not
        return written.strip('"')


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def text(value: object) -> str | None:
    """Return a text that says something."""
    return value if isinstance(value, str) and value.strip() else None


def positive(value: object) -> int | None:
    """Return a whole number above 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def strings(values: object) -> tuple[str, ...] | None:
    """Return the texts in a list that is not empty."""
    return tuple(str(value) for value in values) if isinstance(values, list) and values else None
