"""Who has how many bytes on which device, and what models that were loaded before really took."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, Self, TypeGuard

from server.core.errors import ConfigurationError

_MOST_FOOTPRINTS = 512
_JSON_VERSION = 1
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"(?P<number>[0-9]{1,18}(\.[0-9]{1,9})?)\s*(?P<unit>[a-z]*)", re.IGNORECASE)


class Ledger:
    """Bytes reserved by model and device, within a budget by device.

    A reservation is a prediction until the model is loaded, and what it really takes from then on. Reservations never
    exceed a budget; a correction can, because the memory is already taken.
    """

    def __init__(self, budgets: Mapping[str, int]) -> None:
        """Allow so many bytes on each device; a device that is not named holds nothing."""
        self._budgets = dict(budgets)
        self._reservations: dict[str, dict[str, int]] = {}

    @property
    def budgets(self) -> Mapping[str, int]:
        """Bytes that each device may hold."""
        return self._budgets

    @property
    def taken(self) -> Mapping[str, int]:
        """Bytes reserved on each device that has a budget or a reservation."""
        total = Counter(dict.fromkeys(self._budgets, 0))
        for reservation in self._reservations.values():
            total.update(reservation)
        return total

    @property
    def free(self) -> Mapping[str, int]:
        """Bytes left on each of those devices; negative where corrections exceed the budget."""
        return {device: self._budgets.get(device, 0) - num for device, num in self.taken.items()}

    def reservation(self, model: str) -> Mapping[str, int]:
        """Return the bytes that a model has on each device; none if it has no reservation."""
        return self._reservations.get(model, {})

    def reserve(self, model: str, num_bytes: Mapping[str, int]) -> None:
        """Set memory aside for a model that is going to be loaded.

        Raises:
            ValueError: the model already has some, the bytes are negative, or a device has fewer left; nothing changes.

        """
        if model in self._reservations:
            raise ValueError(f"{model} already has a reservation.")
        free = self.free
        for device, num in _checked(num_bytes).items():
            if num > max(free.get(device, 0), 0):
                raise ValueError(f"{model} needs {num} bytes on {device}, which has {free.get(device, 0)} left.")
        self._reservations[model] = dict(num_bytes)

    def correct(self, model: str, measured: Mapping[str, int]) -> None:
        """Replace a model's prediction, on all devices, by what its load really took.

        Raises:
            ValueError: the bytes are negative.
            KeyError: the model has no reservation.

        """
        _ = self._reservations[model]
        self._reservations[model] = dict(_checked(measured))

    def release(self, model: str) -> None:
        """Give back what a model has, if anything."""
        self._reservations.pop(model, None)


class Footprints:
    """What models took when they were loaded, by fingerprint.

    A fingerprint stands for everything that decides the bytes: the identity of the file and the shape of its context.
    The most recently recorded ones are kept.
    """

    def __init__(self) -> None:
        self._measured: dict[str, dict[str, int]] = {}

    def __len__(self) -> int:
        return len(self._measured)

    def record(self, fingerprint: str, measured: Mapping[str, int]) -> None:
        """Remember the bytes by device that a load took, in place of an earlier measurement.

        Raises:
            ValueError: the bytes are negative.

        """
        self._measured.pop(fingerprint, None)
        self._measured[fingerprint] = dict(_checked(measured))
        while len(self._measured) > _MOST_FOOTPRINTS:
            del self._measured[next(iter(self._measured))]

    def estimate(self, fingerprint: str, predicted: Mapping[str, int]) -> Mapping[str, int]:
        """Return what was measured if that is known, else the prediction."""
        return self._measured.get(fingerprint, predicted)

    def to_json(self) -> str:
        """Write them down, oldest first, for ``from_json``."""
        return json.dumps({"version": _JSON_VERSION, "footprints": self._measured})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote; what it cannot have written is left out, as it can be measured again."""
        footprints = cls()
        for fingerprint, measured in _recorded(text).items():
            if _is_footprint(measured):
                footprints.record(fingerprint, measured)
        return footprints


def parse_memory_size(value: object, setting: str = "memory_budget") -> int | Literal["auto"]:
    """Read a number of bytes, with or without a unit, or ``"auto"``.

    ``kB``, ``MB``, ``GB`` and ``TB`` are powers of 1000, ``KiB``, ``MiB``, ``GiB`` and ``TiB`` powers of 1024; case and
    spaces do not matter, and fractions of a byte are dropped.

    Raises:
        ConfigurationError: the value is neither; the message names the ``setting``.

    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _not_negative(value, setting)
    if not isinstance(value, str):
        raise _not_a_size(value, setting)
    text = value.strip()
    if text.lower() == "auto":
        return "auto"
    if (match := _SIZE.fullmatch(text)) is None:
        raise _not_a_size(value, setting)
    return int(Fraction(match["number"]) * _unit(match["unit"], setting))


def _unit(unit: str, setting: str) -> int:
    if (factor := _UNITS.get(unit.lower())) is None:
        raise ConfigurationError(
            f"{setting}: {unit!r} is not a unit of memory. Use B, kB, MB, GB, TB, KiB, MiB, GiB or TiB."
        )
    return factor


def _not_negative(num_bytes: int, setting: str) -> int:
    if num_bytes < 0:
        raise ConfigurationError(f"{setting} cannot be negative, but is {num_bytes}.")
    return num_bytes


def _not_a_size(value: object, setting: str) -> ConfigurationError:
    return ConfigurationError(
        f'{setting} is {value!r}, which is not a memory size. Write "12GiB", "500MB", a number of bytes or "auto".'
    )


def _checked(num_bytes: Mapping[str, int]) -> Mapping[str, int]:
    for device, num in num_bytes.items():
        if num < 0:
            raise ValueError(f"{num} bytes on {device}.")
    return num_bytes


def _recorded(text: str) -> Mapping[str, object]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict) or document.get("version") != _JSON_VERSION:
        return {}
    recorded = document.get("footprints")
    return recorded if isinstance(recorded, dict) else {}


def _is_footprint(measured: object) -> TypeGuard[Mapping[str, int]]:
    return isinstance(measured, dict) and all(type(num) is int and num >= 0 for num in measured.values())
