"""How often schemas within a schema are looked at for one value: definitions that are used twice double that. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from server.core.subschemas import Path, at, places, target_of

_OF_CHILDREN = frozenset(
    {"properties", "patternProperties", "additionalProperties", "items", "prefixItems", "additionalItems"}
    | {"contains", "propertyNames", "unevaluatedProperties", "unevaluatedItems"}
)
"""Keywords of which at most one schema counts for each part of a value."""
_OTHER_REFERENCES = ("$dynamicRef", "$recursiveRef")


def num_looks(root: Mapping[str, object]) -> int:
    """Return how many schemas a validator may look at for one part of a value, before any of them repeats itself.

    Raises:
        RecursionError: references lead too deep.

    """
    return _Count(root).of(root) << _num_unplaced(root, root)  # each may double what is looked at


class _Count:
    def __init__(self, root: Mapping[str, object]) -> None:
        self._root = root
        self._known: dict[Path, int] = {}

    def of(self, schema: object) -> int:
        if not isinstance(schema, Mapping):
            return 1
        for_children = Counter[str]()
        here = 1 + self._of_target(schema.get("$ref"))
        for (keyword, *_), each in places(schema, definitions=False):
            name, count = str(keyword), self.of(each)
            if name in _OF_CHILDREN:
                for_children[name] = max(for_children[name], count)
            else:
                here += count
        return here + for_children.total()

    def _of_target(self, reference: object) -> int:
        path = target_of(reference, self._root) if isinstance(reference, str) else None
        if path is None:
            return 0
        if path not in self._known:
            self._known[path] = 1  # a value ends where a recursive schema does
            self._known[path] = self.of(at(self._root, path))
        return self._known[path]


def _num_unplaced(value: object, root: Mapping[str, object]) -> int:
    """Count references by anchors and identifiers, of which nothing here tells where they lead."""
    if isinstance(value, list):
        return sum(_num_unplaced(each, root) for each in value)
    if not isinstance(value, Mapping):
        return 0
    reference = value.get("$ref")
    is_unplaced = isinstance(reference, str) and target_of(reference, root) is None
    others = sum(keyword in value for keyword in _OTHER_REFERENCES)
    return is_unplaced + others + sum(_num_unplaced(each, root) for each in value.values())
