"""Validating answers that nothing has held to their schema while they were generated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Never

import jsonschema_rs

from server.core.errors import InvalidRequest
from server.grammar.expansion import num_looks
from server.grammar.probe import LINEAR_PATTERNS, brief
from server.grammar.recent import Recent
from server.grammar.schema import schema_text

_MOST_KNOWN = 256
_MOST_KNOWN_LEN = 8 << 20
_MOST_LOOKS = 1 << 18  # some hundredths of a second

_known = Recent[jsonschema_rs.Validator](most=_MOST_KNOWN, most_size=_MOST_KNOWN_LEN)


def check_validatable(schema: Mapping[str, object], *, param: str) -> None:
    """Look whether answers can be validated; blocking, but for schemas that were asked for lately.

    Raises:
        InvalidRequest: it is not a JSON Schema, refers to others, has patterns that take more than linear time, or
            definitions that are used so often, one within the other, that it would take too long.

    """
    _validator(schema, param)


def validate(text: str, schema: Mapping[str, object]) -> str | None:
    """Return what is wrong with an answer, ``None`` if it is JSON that the schema describes. Nothing is fetched.

    Raises:
        InvalidRequest: answers cannot be validated with this schema.

    """
    validator = _validator(schema, "schema")
    try:
        value = json.loads(text, parse_float=_number, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({brief(str(error))})"
    try:
        validator.validate(value)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        return brief(getattr(error, "message", str(error)))
    return None


def _validator(schema: Mapping[str, object], param: str) -> jsonschema_rs.Validator:
    text = schema_text(schema, param=param)
    return _known.get(text, lambda: _compiled(text, param))


def _compiled(text: str, param: str) -> jsonschema_rs.Validator:
    schema = json.loads(text)
    try:
        takes_too_long = num_looks(schema) > _MOST_LOOKS
    except RecursionError:
        takes_too_long = True
    if takes_too_long:
        raise InvalidRequest(
            f"{param}: validating answers with this schema would take too long: definitions in it refer to others too "
            "often, one within the other. Make it simpler.",
            param=param,
        )
    try:
        return jsonschema_rs.validator_for(
            schema,
            validate_formats=True,
            offline=True,
            pattern_options=LINEAR_PATTERNS,
        )
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        reason = brief(getattr(error, "message", str(error)))
        raise InvalidRequest(
            f"{param}: answers cannot be validated with this schema: {reason}.", param=param
        ) from error


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"{brief(text)} is too large a number") from error


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is no value of JSON")
