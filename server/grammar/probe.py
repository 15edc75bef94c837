"""Asking llguidance whether something can be enforced, without a vocabulary: some tenths of a millisecond."""

from __future__ import annotations

import json
from functools import lru_cache

import jsonschema_rs
from llguidance import LLMatcher, LLParserLimits

LIMITS = LLParserLimits(
    # an object with 5,000 optional properties; what takes too long for other reasons, a matcher gives up
    max_items_in_row=20_000,
    max_lexer_states=50_000,  # of 1 to 2 kB, for every sequence
    verbose_errors=False,
)

_LONGEST_MESSAGE = 300


def complaint_about_grammar(grammar: str) -> str | None:
    """Return why a grammar cannot be used; ``None`` if it can."""
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar, None, limits=LIMITS)
    # a warning says that something is ignored
    return messages[0] if is_wrong or messages else None


def complaint_about_schema(schema: object) -> str | None:
    """Return why a JSON Schema cannot be enforced; ``None`` if it can."""
    text = json.dumps(schema, ensure_ascii=False)
    complaint = complaint_about_grammar(f'{{"grammars": [{{"json_schema": {text}}}]}}')
    return None if complaint is None else brief(complaint)


# patterns come from clients: this engine matches in linear time, and refuses what it cannot
LINEAR_PATTERNS = jsonschema_rs.RegexOptions(size_limit=10 << 20)


@lru_cache(maxsize=1024)
def is_pattern_too_large(pattern: str) -> bool:
    """Whether a pattern that can be enforced needs too much memory: ``((a{1000}){1000}){1000}``, say.

    llguidance would take it, and force a million characters.
    """
    try:
        jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=LINEAR_PATTERNS, offline=True)
    except jsonschema_rs.ValidationError:
        return True
    return False


def brief(message: str) -> str:
    """Return what a library's error message says in one line: the rest shows where, or tells its own state."""
    first, *others = message.strip().splitlines() or [""]
    if first.endswith(":") and others:
        first = f"{first} {others[-1].removeprefix('error: ')}"
    return first if len(first) <= _LONGEST_MESSAGE else first[:_LONGEST_MESSAGE] + "…"
