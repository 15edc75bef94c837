"""How many patterns of a schema one text may have to match at once. Pure.

Whether a text can match several is found out by trying, and what that takes grows exponentially with their number:
twelve patterns are minutes, in which nothing can stop llguidance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from server.core.subschemas import Path, at, places, target_of

_INNER = ("properties", "patternProperties")
_ALTERNATIVES = ("anyOf", "oneOf")


def most_at_once(root: Mapping[str, object]) -> int:
    """Return a number of patterns which is not exceeded; of those in members of ``allOf`` all are taken to meet.

    Raises:
        RecursionError: references lead too deep.

    """
    return _Count(root).of(root)


class _Count:
    def __init__(self, root: Mapping[str, object]) -> None:
        self._root = root
        self._known: dict[Path, int] = {}

    def of(self, schema: object) -> int:
        if not isinstance(schema, Mapping):
            return 0
        counts = Counter[str]()
        for (keyword, *_), each in places(schema, definitions=False):
            name, count = str(keyword), self.of(each)
            counts[name] = counts[name] + count if name == "allOf" else max(counts[name], count)
        together = sum(counts.pop(keyword, 0) for keyword in ("allOf", *_ALTERNATIVES))
        inner = sum(counts.pop(keyword, 0) for keyword in _INNER)
        return max("pattern" in schema, inner, *counts.values(), 0) + together + self._of_target(schema.get("$ref"))

    def _of_target(self, reference: object) -> int:
        path = target_of(reference, self._root) if isinstance(reference, str) else None
        if path is None:
            return 0
        if path not in self._known:
            self._known[path] = 0  # what comes back to itself adds nothing
            self._known[path] = self.of(at(self._root, path))
        return self._known[path]
