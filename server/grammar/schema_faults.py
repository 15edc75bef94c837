"""Finding the keyword that makes a schema unenforceable, whatever the library that enforces can and cannot do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from server.core.subschemas import DEFINITIONS, Path, at, mapped, places, replaced, target_of

_ALTERNATIVES = {"anyOf", "oneOf"}
_LAST_SUSPECTS = ("type", "properties", "items", "required")
STRUCTURE = frozenset(_LAST_SUSPECTS)
"""Keywords that everybody can enforce, and that are at fault only beside others."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a schema.

    Attributes:
        path: the smallest schema within it that is.
        keywords: those whose removal helps; empty if it does not.
        reason: what the library says of that schema.

    """

    path: Path
    keywords: tuple[str, ...]
    reason: str


def find_fault(schema: Mapping[str, object], complaint_about: Callable[[object], str | None]) -> Fault:
    """Narrow a fault down.

    Args:
        schema: about which there is a complaint.
        complaint_about: says why a schema cannot be enforced; ``None`` if it can.

    """
    return _Search(complaint_about).find(schema)


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A schema about which there is a complaint, and the smallest one in it that is known to be at fault.

    ``place`` is where it is in ``root``, from which alternatives have been taken away; ``path`` is where it was.
    """

    root: Mapping[str, object]
    place: Path
    path: Path

    @property
    def schema(self) -> object:
        return at(self.root, self.place)

    def with_schema(self, schema: object) -> object:
        return replaced(self.root, self.place, schema)


class _Search:
    def __init__(self, complaint_about: Callable[[object], str | None]) -> None:
        self._complaint_about = complaint_about

    def find(self, root: Mapping[str, object]) -> Fault:
        suspect = _Suspect(root, (), ())
        visited = {suspect.path}
        while (closer := self._closer(suspect)) is not None and closer.path not in visited:
            suspect = closer
            visited.add(suspect.path)
        reason = self._complaint_about(suspect.root) or "it cannot be enforced"
        return Fault(suspect.path, tuple(self._culprits(suspect)), reason)

    def _closer(self, suspect: _Suspect) -> _Suspect | None:
        """Go on to a schema within the suspected one that is at fault alone; ``None`` if it is the one itself."""
        here = suspect.schema
        if not isinstance(here, Mapping):
            return None
        inner = [place for place, _ in places(here, definitions=False)]
        if inner and not self._complains(suspect, here, []) and (place := self._one_of(inner, suspect, here)):
            root = cast("Mapping[str, object]", suspect.with_schema(_isolated(here, [place])))
            new_place = (place[0], 0) if place[0] in _ALTERNATIVES else place
            return _Suspect(root, (*suspect.place, *new_place), (*suspect.path, *place))
        reference = here.get("$ref")
        target = target_of(reference, suspect.root) if isinstance(reference, str) else None
        if target and self._complaint_about(replaced(suspect.root, target, new=True)) is None:
            return _Suspect(suspect.root, target, target)
        return None

    def _one_of(self, inner: Sequence[Path], suspect: _Suspect, here: Mapping[str, object]) -> Path | None:
        """Return the place of a schema that is at fault without the others; ``None`` if it takes several."""
        while len(inner) > 1:
            half = len(inner) // 2
            for part in (inner[:half], inner[half:]):
                if self._complains(suspect, here, part):
                    inner = part
                    break
            else:
                return None
        return inner[0] if self._complains(suspect, here, inner) else None

    def _complains(self, suspect: _Suspect, here: Mapping[str, object], kept: Collection[Path]) -> bool:
        return self._complaint_about(suspect.with_schema(_isolated(here, kept))) is not None

    def _culprits(self, suspect: _Suspect) -> Iterator[str]:
        """Yield the keywords that have to go, all of them."""
        here = suspect.schema
        if not isinstance(here, Mapping):
            return
        kept, removed = dict(here), list[str]()
        for keyword in sorted((str(key) for key in here if key not in DEFINITIONS), key=_LAST_SUSPECTS.__contains__):
            del kept[keyword]
            removed.append(keyword)
            if self._complaint_about(suspect.with_schema(kept)) is None:
                break
        else:
            return
        for keyword in removed:
            with_it = {**kept, keyword: here[keyword]}
            if self._complaint_about(suspect.with_schema(with_it)) is not None:
                yield keyword
            else:
                kept = with_it


def _isolated(schema: Mapping[str, object], kept: Collection[Path]) -> dict[str, object]:
    """Return a schema in which those within it demand nothing, but for some; of alternatives only those are left."""
    chosen = frozenset(kept)
    isolated = mapped(schema, lambda each, place: each if place in chosen or place[0] in DEFINITIONS else True, ())
    for keyword in _ALTERNATIVES & schema.keys():
        isolated[keyword] = [at(schema, place) for place in kept if place[0] == keyword] or [True]
    return isolated
