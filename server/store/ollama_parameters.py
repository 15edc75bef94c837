"""The parameters of an Ollama model in this server's words, and those that have no counterpart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_MOST_STOPS = 64
_NUMBERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_INTEGERS = {"top_k": "top_k", "seed": "seed", "num_predict": "max_tokens"}
_OF_THE_MACHINE = frozenset(
    {"num_gpu", "main_gpu", "num_thread", "num_batch", "use_mmap", "use_mlock", "low_vram", "numa", "f16_kv"}
)
"""How Ollama loads a model; the pool finds that out for itself."""


@dataclass(frozen=True, slots=True)
class OllamaParameters:
    """Defaults for requests to a model.

    Attributes:
        sampling: by the names of request parameters (``temperature``, ``max_tokens``, …).
        stop: strings that end an answer.
        context_length: the context that it asks for.
        ignored: parameters that change answers and have no counterpart here.

    """

    sampling: Mapping[str, float | int]
    stop: tuple[str, ...] = ()
    context_length: int | None = None
    ignored: tuple[str, ...] = ()


def parse_parameters(content: Mapping[str, object]) -> OllamaParameters:
    """Translate the content of a layer of parameters; a value of the wrong type counts as ignored."""
    sampling: dict[str, float | int] = {}
    stop: tuple[str, ...] = ()
    context_length: int | None = None
    ignored: list[str] = []
    for name, value in content.items():
        if name in _NUMBERS and (number := _number(value)) is not None:
            sampling[_NUMBERS[name]] = number
        elif name in _INTEGERS and (integer := _integer(value)) is not None:
            if integer >= 0:  # less means no limit, or a random seed: what holds anyway
                sampling[_INTEGERS[name]] = integer
        elif name == "num_ctx" and (integer := _integer(value)) is not None and integer > 0:
            context_length = integer
        elif name == "stop" and (strings := _strings(value)) is not None:
            stop = strings
        elif name not in _OF_THE_MACHINE:
            ignored.append(name[:64])
    return OllamaParameters(sampling, stop, context_length, tuple(sorted(ignored)))


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number and isinstance(value, int | float) else None


def _integer(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _strings(value: object) -> tuple[str, ...] | None:
    """Return the stop strings; Ollama writes a list, older versions wrote one string."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        return None
    return tuple(each for each in dict.fromkeys(values) if each)[:_MOST_STOPS]
