"""Writing a schema so that llguidance enforces what it means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from server.core.subschemas import Path, mapped, written
from server.grammar.formats import PATTERNS
from server.grammar.probe import complaint_about_schema

_NEWEST_DRAFTS = {None, "https://json-schema.org/draft/2020-12/schema"}
_LARGEST_BOUND = 10**18
"""Larger ones cannot be turned into patterns; a narrower range is as good."""
_LARGEST_EXACT = 2**53
_ANNOTATIONS = {"title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"}


class Unenforceable(Exception):
    """A schema cannot be enforced, or has no values."""

    def __init__(self, reason: str) -> None:
        """Create an error; ``reason`` is for whoever wrote the schema."""
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Preparation:
    """Writes schemas so that llguidance enforces what they mean, and refuses what it would only seem to enforce."""

    is_strict: bool
    draft: str | None

    def prepare(self, schema: object, path: Path) -> object:
        """Return a schema and those within it, prepared."""
        if not isinstance(schema, Mapping):
            return schema
        kept = {key: value for key, value in schema.items() if not self._is_void(key, value)}
        for bound in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            if bound in kept:
                kept[bound] = _exact_bound(kept[bound], bound, path)
        _check_numbers(kept, path)
        _check_min_properties(kept, path)
        return mapped(self._with_pattern(kept, path), self.prepare, path)

    def _is_void(self, key: str, value: object) -> bool:
        """Whether a keyword changes nothing."""
        if key == "additionalItems":  # a keyword until 2019-09, which llguidance always heeds
            return self.draft in _NEWEST_DRAFTS
        return (
            key in _ANNOTATIONS
            or key == "x-guidance"  # options of llguidance: one of them makes it ignore keywords
            or (key == "uniqueItems" and value is False)
            or (key in {"unevaluatedProperties", "unevaluatedItems"} and value is True)
        )

    def _with_pattern(self, schema: dict[str, object], path: Path) -> dict[str, object]:
        """Return a schema whose ``format`` is a pattern, where ours is the better one, or left out."""
        name = schema.get("format")
        if not isinstance(name, str):
            return schema
        if name in PATTERNS:
            rest = {key: value for key, value in schema.items() if key != "format"}
            if "pattern" not in rest:
                return {**rest, "pattern": PATTERNS[name]}
            others = rest.get("allOf", [])
            return {**rest, "allOf": [*(others if isinstance(others, list) else []), {"pattern": PATTERNS[name]}]}
        if _is_known_format(name):
            return schema
        if self.is_strict:
            known = ", ".join(sorted({*PATTERNS, "duration", "ipv4", "ipv6", "uri", "uuid"}))
            raise Unenforceable(
                f"the keyword 'format' at {written(path)} is {name!r}, which cannot be enforced. Known are {known}; "
                f"otherwise use 'pattern', or leave 'strict' out, which makes unknown formats remarks."
            )
        return {key: value for key, value in schema.items() if key != "format"}


@lru_cache(maxsize=256)
def _is_known_format(name: str) -> bool:
    return complaint_about_schema({"type": "string", "format": name}) is None


def _exact_bound(value: object, keyword: str, path: Path) -> object:
    """Return a bound that llguidance's arithmetic, that of doubles, holds exactly; narrower where it is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    is_upper = "aximum" in keyword
    if value > _LARGEST_BOUND if is_upper else value < -_LARGEST_BOUND:
        return _LARGEST_BOUND if is_upper else -_LARGEST_BOUND
    if abs(value) > _LARGEST_BOUND:
        raise Unenforceable(f"the keyword '{keyword}' at {written(path)} is too large to be enforced.")
    if isinstance(value, float) or abs(value) <= _LARGEST_EXACT:
        return value
    nearest = float(value)
    if int(nearest) > value if is_upper else int(nearest) < value:
        nearest = math.nextafter(nearest, -math.inf if is_upper else math.inf)
    return int(nearest)


def _check_numbers(schema: Mapping[str, object], path: Path) -> None:
    for keyword in ("const", "enum"):
        if any(
            isinstance(each, int) and abs(each) > _LARGEST_EXACT
            for each in _leaves(schema.get(keyword))
            if not isinstance(each, bool)
        ):
            raise Unenforceable(
                f"the keyword '{keyword}' at {written(path)} has a number above 2^53, which cannot be enforced "
                f"exactly. Use a string."
            )


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _check_min_properties(schema: Mapping[str, object], path: Path) -> None:
    """Refuse to count properties whose names are free: a grammar cannot remember which it has seen."""
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    if isinstance(least, int) and isinstance(required, list) and least > len(set(map(str, required))) + 1:
        raise Unenforceable(
            f"the keyword 'minProperties' at {written(path)} cannot be enforced: names would have to differ. "
            f"Name the properties and list them under 'required'."
        )
