"""Grammars and regular expressions that clients write, checked."""

from __future__ import annotations

import re

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from server.core.errors import InvalidRequest
from server.grammar.probe import brief, complaint_about_grammar, is_pattern_too_large

_LONGEST = 128 << 10
_ESCAPED = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)
_FIRST_BEYOND_ASCII = 0x80


def lark_of_gbnf(text: str, *, param: str = "grammar") -> str:
    """Translate a grammar in llama.cpp's GBNF into llguidance's variant of Lark.

    https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md

    Raises:
        InvalidRequest: it is not GBNF, or too long.

    """
    if len(text) > _LONGEST:
        raise InvalidRequest(f"{param}: the grammar has more than {_LONGEST} characters.", param=param)
    try:
        lark = gbnf_to_lark(_ESCAPED.sub(_unescaped, text))
    except RecursionError as error:
        raise InvalidRequest(f"{param}: the grammar is nested too deeply.", param=param) from error
    except Exception as error:  # that is what the translation raises
        raise InvalidRequest(f"{param}: this is not a grammar in GBNF: {brief(str(error))}.", param=param) from error
    _check(lark, "the grammar cannot be used", param)
    return lark


def _unescaped(escaped: re.Match[str]) -> str:
    """Return the character of an escape that Lark does not have, as it is."""
    code = next((int(code, 16) for code in escaped.groups() if code), 0)
    if code < _FIRST_BEYOND_ASCII:
        return f"\\x{code:02x}" if code else escaped[0]
    return chr(code)


def check_regex(pattern: str, *, param: str) -> None:
    """Look whether a regular expression can be enforced: there is no look-around, and there are no back references.

    Raises:
        InvalidRequest: it cannot be, or is not one.

    """
    if len(pattern) > _LONGEST:
        raise InvalidRequest(f"{param}: the pattern has more than {_LONGEST} characters.", param=param)
    _check(LLMatcher.grammar_from_regex(pattern), "the pattern cannot be enforced", param)
    if is_pattern_too_large(pattern):
        raise InvalidRequest(f"{param}: the pattern is too large. Allow less repetition.", param=param)


def _check(grammar: str, what: str, param: str) -> None:
    if (complaint := complaint_about_grammar(grammar)) is not None:
        raise InvalidRequest(f"{param}: {what}: {brief(' '.join(complaint.split()))}", param=param)
