"""Walking through the schemas within a JSON Schema. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import cast
from urllib.parse import unquote

Path = tuple[str | int, ...]

_ONE = (
    "items",
    "additionalProperties",
    "additionalItems",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
    "contentSchema",
)
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "dependentSchemas")
DEFINITIONS = ("$defs", "definitions")


def places(schema: Mapping[str, object], *, definitions: bool = True) -> Iterator[tuple[Path, object]]:
    """Yield the schemas directly within a schema, and where they are."""
    for keyword, value in schema.items():
        if keyword in _LISTED and isinstance(value, list):
            for index, each in enumerate(value):
                yield (keyword, index), each
        elif (keyword in _NAMED or (definitions and keyword in DEFINITIONS)) and isinstance(value, Mapping):
            for name, each in value.items():
                yield (keyword, name), each
        elif keyword in _ONE:
            yield (keyword,), value


def mapped(schema: Mapping[str, object], change: Callable[[object, Path], object], path: Path) -> dict[str, object]:
    """Return a schema whose direct subschemas are changed; ``change`` gets each, and where it is in the whole."""
    changed = dict(schema)
    for keyword, value in schema.items():
        if keyword in _LISTED and isinstance(value, list):
            changed[keyword] = [change(each, (*path, keyword, index)) for index, each in enumerate(value)]
        elif keyword in (*_NAMED, *DEFINITIONS) and isinstance(value, Mapping):
            changed[keyword] = {name: change(each, (*path, keyword, name)) for name, each in value.items()}
        elif keyword in _ONE:
            changed[keyword] = change(value, (*path, keyword))
    return changed


def target_of(reference: str, root: Mapping[str, object]) -> Path | None:
    """Return where a reference points to; ``None`` where that is not told by its path, or there is nothing."""
    document, _, fragment = reference.partition("#")
    if document or (fragment and not fragment.startswith("/")):
        return None
    here: object = root
    path: list[str | int] = []
    for escaped in fragment.split("/")[1:]:
        step = unquote(escaped).replace("~1", "/").replace("~0", "~")
        if isinstance(here, Mapping) and step in here:
            here = here[step]
            path.append(step)
        elif isinstance(here, list) and step.isdecimal() and int(step) < len(here):
            here = here[int(step)]
            path.append(int(step))
        else:
            return None
    return tuple(path)


def with_portable_references(root: Mapping[str, object]) -> Mapping[str, object]:
    """Return the same schema with all references to definitions, so that its parts can be taken out with these.

    What a reference such as ``#`` or ``#/properties/a`` points into becomes a definition: the whole.
    """
    name = "whole"
    defined = root.get("$defs")
    while isinstance(defined, Mapping) and name in defined:
        name += "_"
    has_moved = False

    def moved(schema: object, path: Path) -> object:
        nonlocal has_moved
        if not isinstance(schema, Mapping):
            return schema
        changed = mapped(schema, moved, path)
        reference = changed.get("$ref")
        target = target_of(reference, root) if isinstance(reference, str) else None
        if isinstance(reference, str) and target is not None and not (len(target) > 1 and target[0] in DEFINITIONS):
            changed["$ref"] = f"#/$defs/{name}{reference.removeprefix('#')}"
            has_moved = True
        return changed

    changed = cast("Mapping[str, object]", moved(root, ()))
    if not has_moved:
        return root
    whole = {key: value for key, value in changed.items() if key not in DEFINITIONS}
    definitions = cast("Mapping[str, object]", changed.get("$defs", {}))
    return {**changed, "$defs": {**definitions, name: whole}}


def at(root: object, path: Path) -> object:
    """Return what is at a place.

    Raises:
        KeyError, IndexError, TypeError: there is no such place.

    """
    for step in path:
        root = root[step]  # type: ignore[index]
    return root


def replaced(root: object, path: Path, new: object) -> object:
    """Return a document with something else at a place."""
    if not path:
        return new
    step, *rest = path
    changed = replaced(root[step], tuple(rest), new)  # type: ignore[index]
    if isinstance(root, list):
        return [changed if index == step else each for index, each in enumerate(root)]
    if isinstance(root, Mapping):
        return {key: changed if key == step else value for key, value in root.items()}
    raise TypeError(step)


def written(path: Path) -> str:
    """Write a place for people: ``$.properties.city``."""
    return "".join(
        f"[{step}]"
        if isinstance(step, int)
        else f".{step}"
        if step.replace("$", "_").replace("-", "_").isidentifier()
        else f"['{step}']"
        for step in ("$", *path)
    ).removeprefix(".")
