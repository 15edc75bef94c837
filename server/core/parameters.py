"""What a backend does with the parameters of a chat request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Treatment(StrEnum):
    """What becomes of a parameter."""

    MAPPED = "mapped"
    """The backend has it; it is passed on."""
    EMULATED = "emulated"
    """The backend does not have it; this server does the same by other means."""
    LISTED = "listed"
    """It has no effect, and the response says so in ``x-llmspell-ignored``."""
    REFUSED = "refused"
    """The request is refused with ``unsupported_parameter``."""


@dataclass(frozen=True, slots=True)
class ParameterSupport:
    """The treatment of one parameter; ``note`` says how or why, for the documentation."""

    treatment: Treatment
    note: str = ""


def mapped(note: str = "") -> ParameterSupport:
    """Describe a parameter that the backend has."""
    return ParameterSupport(Treatment.MAPPED, note)


def emulated(note: str) -> ParameterSupport:
    """Describe a parameter that this server adds to the backend."""
    return ParameterSupport(Treatment.EMULATED, note)


def listed(note: str) -> ParameterSupport:
    """Describe a parameter without effect."""
    return ParameterSupport(Treatment.LISTED, note)


def refused(note: str = "") -> ParameterSupport:
    """Describe a parameter that cannot be honoured."""
    return ParameterSupport(Treatment.REFUSED, note)
