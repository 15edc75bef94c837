"""Checking that a JSON Schema can be enforced, to the last keyword, and writing it so that it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import cast

import jsonschema_rs

from server.core.errors import InvalidRequest
from server.core.subschemas import Path, at, places, replaced, target_of, with_portable_references, written
from server.grammar.conjunctions import most_at_once
from server.grammar.finite import endless_definition
from server.grammar.preparation import Preparation, Unenforceable
from server.grammar.probe import brief, complaint_about_schema, is_pattern_too_large
from server.grammar.recent import Recent
from server.grammar.schema_faults import STRUCTURE, find_fault

LONGEST_SCHEMA = 512 << 10
_DEEPEST = 100
_MOST_PATTERNS_AT_ONCE = 8
_MOST_KNOWN = 256
_MOST_LEFT_OUT = 16
_MOST_KNOWN_LEN = 8 << 20

_DRAFTS = {
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-04/schema",
}

_known = Recent[Mapping[str, object]](most=_MOST_KNOWN, most_size=_MOST_KNOWN_LEN)


def check_schema(schema: Mapping[str, object], *, strict: bool, param: str) -> Mapping[str, object]:
    """Return a schema in which every keyword is enforced; blocking, but for those that were asked for lately.

    It accepts no more than the one given, and less only where nobody would notice: no numbers beyond 10^18 where there
    is such a bound, no leap seconds. Annotations are left out, and so are names in ``format`` that nobody knows if it
    is not strict: for JSON Schema, they are annotations.

    Args:
        schema: what the client sent.
        strict: whether unknown names in ``format`` are refused.
        param: path of the schema in the request, for errors.

    Raises:
        InvalidRequest: it is not a schema, cannot be enforced (the message names the keyword), or has no values.

    """
    text = schema_text(schema, param=param)
    try:
        return _known.get(f"{strict} {text}", lambda: _checked(cast("Mapping[str, object]", json.loads(text)), strict))
    except Unenforceable as refused:
        raise InvalidRequest(f"{param}: {refused.reason}", param=param) from refused


def check_parameters(schema: Mapping[str, object], *, strict: bool, param: str) -> Mapping[str, object]:
    """Check the schema of a function's arguments, which are always an object; see ``check_schema``.

    Raises:
        InvalidRequest: it cannot be enforced, or describes something else.

    """
    _check_is_object(schema, param)
    return check_schema({"type": "object", **schema}, strict=strict, param=param)


def enforceable_parameters(schema: Mapping[str, object], *, param: str) -> Mapping[str, object]:
    """Return what can be enforced of the schema of a function's arguments, of which nobody demands more.

    Keywords that cannot be are left out, one after the other; in the end, arguments are any object.

    Raises:
        InvalidRequest: it is too long, too deep, or does not describe an object.

    """
    _check_is_object(schema, param)
    text = schema_text({"type": "object", **schema}, param=param)
    return _known.get(f"a part of {text}", lambda: _enforceable(json.loads(text)))


def _check_is_object(schema: Mapping[str, object], param: str) -> None:
    if schema.get("type", "object") != "object":
        raise InvalidRequest(f"{param}: the arguments of a function are an object: use 'type': 'object'.", param=param)


def schema_text(schema: Mapping[str, object], *, param: str) -> str:
    """Write a schema as JSON, in which the order of keys counts: values have that of ``properties``.

    Raises:
        InvalidRequest: it is too long, too deep, or not a JSON Schema.

    """
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"{param}: a JSON Schema is an object.", param=param)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"{param}: this cannot be written as JSON ({error}).", param=param) from error
    if len(text) > LONGEST_SCHEMA:
        raise InvalidRequest(
            f"{param}: the schema has {len(text)} characters; more than {LONGEST_SCHEMA} are not taken.", param=param
        )
    if _depth(schema) > _DEEPEST:
        raise InvalidRequest(f"{param}: the schema is nested more than {_DEEPEST} levels deep.", param=param)
    return text


def _checked(schema: Mapping[str, object], strict: bool) -> Mapping[str, object]:  # noqa: FBT001
    _check_is_schema(schema)
    preparation = Preparation(is_strict=strict, draft=_draft_of(schema))
    prepared = cast("Mapping[str, object]", preparation.prepare(schema, ()))
    _check_num_patterns(prepared)
    _check_enforceable(prepared)
    for path, pattern in _patterns(prepared, ()):
        if is_pattern_too_large(pattern):
            raise Unenforceable(f"the pattern at {written(path)} is too large to be enforced. Allow less repetition.")
    if (endless := endless_definition(prepared)) is not None:
        raise Unenforceable(f"no value satisfies the schema: what {written(endless)} requires has no end.")
    return with_portable_references(prepared)


def _check_num_patterns(schema: Mapping[str, object]) -> None:
    """Refuse so many patterns for one text that llguidance would be busy for ever."""
    if len({pattern for _, pattern in _patterns(schema, ())}) <= _MOST_PATTERNS_AT_ONCE:
        return
    try:
        num_at_once = most_at_once(schema)
    except RecursionError as error:
        raise Unenforceable("its references lead too deep. Use fewer, or fewer patterns.") from error
    if num_at_once > _MOST_PATTERNS_AT_ONCE:
        raise Unenforceable(
            f"the keyword 'allOf' makes one text match {num_at_once} patterns or formats at once; more than "
            f"{_MOST_PATTERNS_AT_ONCE} cannot be enforced. Write them as fewer."
        )


def _enforceable(schema: Mapping[str, object]) -> Mapping[str, object]:
    try:
        return _checked(schema, strict=False)
    except Unenforceable:
        return _relaxed(schema)


def _relaxed(schema: Mapping[str, object]) -> Mapping[str, object]:
    try:
        _check_is_schema(schema)
        relaxed = Preparation(is_strict=False, draft=_draft_of(schema)).prepare(schema, ())
        _check_num_patterns(cast("Mapping[str, object]", relaxed))
        for _ in range(_MOST_LEFT_OUT):
            if complaint_about_schema(relaxed) is None:
                return _checked(cast("Mapping[str, object]", relaxed), strict=False)
            fault = find_fault(cast("Mapping[str, object]", relaxed), complaint_about_schema)
            faulty = cast("Mapping[str, object]", at(relaxed, fault.path))
            # of several keywords that are at fault together, those are kept without which little is left
            leaving = {*fault.keywords} - STRUCTURE or {*fault.keywords}
            kept = {key: value for key, value in faulty.items() if key not in leaving}
            if len(kept) == len(faulty):
                break
            relaxed = replaced(relaxed, fault.path, kept)
    except Unenforceable:
        pass  # and nothing tells which keyword it is
    return {"type": "object"}


def _draft_of(schema: Mapping[str, object]) -> str | None:
    draft = schema.get("$schema")
    return draft.rstrip("#") if isinstance(draft, str) else None


def _check_is_schema(schema: Mapping[str, object]) -> None:
    draft = _draft_of(schema)
    if draft is not None and draft not in _DRAFTS:
        raise Unenforceable(
            f"'$schema' is {draft!r}, which is not known. Leave it out, or name draft 4, 6, 7, 2019-09, 2020-12"
        )
    try:
        jsonschema_rs.meta.validate(dict(schema))
    except jsonschema_rs.ValidationError as error:
        where = written(tuple(error.instance_path))
        raise Unenforceable(f"this is not a JSON Schema: at {where}, {brief(error.message)}.") from error


def _check_enforceable(schema: Mapping[str, object]) -> None:
    if complaint_about_schema(schema) is None:
        return
    fault = find_fault(schema, complaint_about_schema)
    where = written(fault.path)
    if "nsatisfiable" in fault.reason:
        raise Unenforceable(f"no value satisfies the schema: at {where}, {fault.reason}.")
    if not fault.keywords:
        raise Unenforceable(f"the schema cannot be enforced: at {where}, {fault.reason}.")
    reference = at(schema, (*fault.path, "$ref")) if fault.keywords == ("$ref",) else None
    if isinstance(reference, str) and target_of(reference, schema) is None:
        raise Unenforceable(
            f"the keyword '$ref' at {where} refers to {reference!r}, which is not in the schema. Nothing is fetched: "
            f"put it under '$defs'."
        )
    named = " and ".join(f"'{keyword}'" for keyword in fault.keywords)
    plural = "s" if len(fault.keywords) > 1 else ""
    raise Unenforceable(
        f"the keyword{plural} {named} at {where} cannot be enforced ({fault.reason}). Say it with other keywords, or "
        f"in 'description'."
    )


def _patterns(schema: object, path: Path) -> Iterator[tuple[Path, str]]:
    if not isinstance(schema, Mapping):
        return
    if isinstance(schema.get("pattern"), str):
        yield (*path, "pattern"), schema["pattern"]
    named = schema.get("patternProperties")
    if isinstance(named, Mapping):
        yield from (((*path, "patternProperties"), pattern) for pattern in named)
    for place, each in places(schema):
        yield from _patterns(each, (*path, *place))


def _depth(value: object) -> int:
    """Count levels of nesting, without going deep itself."""
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            each
            for outer in level
            for each in (outer.values() if isinstance(outer, Mapping) else outer if isinstance(outer, list) else ())
        ]
    return depth
