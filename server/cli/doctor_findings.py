"""What ``llmspell doctor`` found out, and what follows from all of it together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from server import __version__


class Status(StrEnum):
    """How well a part of the installation does."""

    OK = "ok"
    NOTE = "note"
    """It works; there is something to know about it."""
    WARNING = "warning"
    """It works worse than it could, or not in every case."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at, in a word or two.
        status: how well it does.
        summary: what was found, in a line.
        details: more of that, line by line.
        advice: what to do about it, the most important first; each is a sentence or a command to run.
        is_required: whether the server cannot start when this has failed.
        can_answer: whether models could answer by means of this alone.

    """

    check: str
    status: Status
    summary: str
    details: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    is_required: bool = False
    can_answer: bool = False


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order in which they are shown."""

    findings: tuple[Finding, ...]

    @property
    def can_serve(self) -> bool:
        """Whether the server can start, and has something that answers."""
        stopped = any(each.is_required and each.status is Status.FAILED for each in self.findings)
        return not stopped and any(each.can_answer for each in self.findings)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do, each thing once, the most important first."""
        ranked = sorted(self.findings, key=_urgency)
        return tuple(dict.fromkeys(line for finding in ranked for line in finding.advice))

    def to_json(self) -> dict[str, object]:
        """Build the document of ``--json``."""
        return {
            "object": "diagnosis",
            "version": __version__,
            "can_serve": self.can_serve,
            "findings": [_finding_json(each) for each in self.findings],
            "advice": list(self.advice),
        }


def printable(text: str) -> str:
    """Return a text as it can be shown: names of files and words of servers may hold anything."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def worst(statuses: Sequence[Status]) -> Status:
    """Return the worst of them; of none, that all is well."""
    return max(statuses, key=list(Status).index, default=Status.OK)


def _urgency(finding: Finding) -> tuple[bool, int]:
    return not (finding.is_required and finding.status is Status.FAILED), -list(Status).index(finding.status)


def _finding_json(finding: Finding) -> dict[str, object]:
    return {
        "check": finding.check,
        "status": finding.status.value,
        "summary": finding.summary,
        "details": list(finding.details),
        "advice": list(finding.advice),
    }
