"""Whether the values that a schema describes ever end. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from server.core.subschemas import Path, at, places, target_of


def endless_definition(root: Mapping[str, object]) -> Path | None:
    """Return the place of a schema that requires itself, so that no value of it ends; ``None`` if there is none.

    A grammar would not notice, and have the model go on for ever. Schemas with ends are found from the ends: one has
    values if what it needs has.
    """
    targets = {path: at(root, path) for path in _reachable(root)}
    finite: set[Path] = set()
    while found := {path for path in targets.keys() - finite if _Ends(root, frozenset(finite)).has(targets[path])}:
        finite |= found
    return min(targets.keys() - finite, key=lambda path: [*map(str, path)], default=None)


def _reachable(root: Mapping[str, object]) -> set[Path]:
    """Return the places of the schema itself and of what it refers to, directly or not."""
    reached: set[Path] = set()
    waiting: list[Path] = [()]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += _references(at(root, path), root)
    return reached


def _references(schema: object, root: Mapping[str, object]) -> Iterator[Path]:
    if not isinstance(schema, Mapping):
        return
    reference = schema.get("$ref")
    if isinstance(reference, str) and (target := target_of(reference, root)) is not None:
        yield target
    for _, each in places(schema, definitions=False):
        yield from _references(each, root)


class _Ends:
    """Tells which schemas may have a value, and one that ends, if those at some places do. In doubt they have."""

    def __init__(self, root: Mapping[str, object], finite: frozenset[Path]) -> None:
        self._root = root
        self._finite = finite

    def has(self, schema: object) -> bool:
        if not isinstance(schema, Mapping):
            return schema is not False
        reference = schema.get("$ref")
        if isinstance(reference, str):
            target = target_of(reference, self._root)
            if target is not None and target not in self._finite:
                return False
        if "const" in schema or "enum" in schema:
            return True
        alternatives = [schema[keyword] for keyword in ("anyOf", "oneOf") if schema.get(keyword)]
        return (
            self._all(_list(schema.get("allOf")))
            and all(any(map(self.has, _list(each))) for each in alternatives)
            and self._all(self._needed(schema))
        )

    def _all(self, schemas: Iterable[object]) -> bool:
        return all(map(self.has, schemas))

    def _needed(self, schema: Mapping[str, object]) -> Iterator[object]:
        """Yield the schemas of what every value consists of."""
        if schema.get("type") == "object":
            properties = schema.get("properties")
            if isinstance(properties, Mapping):
                yield from (properties[name] for name in _list(schema.get("required")) if name in properties)
        if schema.get("type") == "array":
            least, first = schema.get("minItems", 0), _list(schema.get("prefixItems"))
            if isinstance(least, int):
                yield from first[:least]
                if least > len(first):
                    yield schema.get("items")


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
