"""Grammars for whole answers, put together piece by piece, in llguidance's variant of Lark. Pure text.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from server.chat.answer_format import ControlToken, LarkFormat
from server.core.request import (
    ChoiceFormat,
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
)

_ANY = r"/(.|\n)*/"
_SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""One line, as models write the arguments of calls."""
_BOUNDED_SPACE = {"whitespace_pattern": "( |\\n {0,24})?"}
"""On one line or indented; without a bound a small model may write white space for ever."""


class LarkGrammar:
    """Rules so far. Methods return expressions that other rules are made of."""

    def __init__(self, markers: Iterable[str], control_token: ControlToken) -> None:
        """Start with no rules.

        Args:
            markers: texts that are control tokens in some vocabularies.
            control_token: tells which are in this one.

        """
        self._ids = {marker: token for marker in markers if (token := control_token(marker)) is not None}
        self._marker = re.compile("|".join(re.escape(each) for each in sorted(self._ids, key=len, reverse=True)))
        self._rules: list[str] = []
        self._names: dict[str, str] = {}
        self._side: list[dict[str, str]] = []

    def rule(self, expression: str, *, is_lazy: bool = False) -> str:
        """Give an expression a name, which stands for it; equal ones share it."""
        key = f"lazy {expression}" if is_lazy else expression
        if key not in self._names:
            self._names[key] = name = f"r{len(self._names)}"
            self._rules.append(f"{name}{'[lazy]' if is_lazy else ''}: {expression}")
        return self._names[key]

    def literal(self, text: str) -> str:
        """Return an expression for exactly this text; markers in it are control tokens where the vocabulary says so."""
        if not self._ids:
            return quoted(text)
        pieces, position = [], 0
        for found in self._marker.finditer(text):
            pieces += [quoted(text[position : found.start()]), f"<[{self._ids[found[0]]}]>"]
            position = found.end()
        pieces.append(quoted(text[position:]))
        return " ".join(piece for piece in pieces if piece != '""') or '""'

    def any_text(self, *, without: str = "") -> str:
        """Return an expression for any text without control tokens, the empty one too.

        Where the marker ``without`` is written with control tokens, nothing stands for it that is written without them.
        """
        if not self._ids or not self._marker.search(without):
            self._names.setdefault("any text", "ANY_TEXT")
            return "ANY_TEXT"
        return self.terminal(f"{_ANY} & ~/(.|\\n)*{_in_slashes(re.escape(without))}(.|\\n)*/")

    def through(self, marker: str) -> str:
        """Return an expression for any text up to a marker, and for the marker; parts of it may be control tokens."""
        control = self._marker.search(marker) if self._ids else None
        if control is None:
            return self.rule(f"{self.any_text()} {quoted(marker)}", is_lazy=True)
        text, before = self.any_text(without=marker), marker[: control.start()]
        if before:
            # text ends where a control token begins: what is plain of the marker before that is the end of the text
            text = self.terminal(f"{text} & ({_ANY} {quoted(before)})")
        return f"{text} {self.literal(marker[control.start() :])}"

    def json(self, schema: Mapping[str, object], *, is_indented: bool = False) -> str:
        """Return an expression for the JSON values that a schema describes, on one line unless they are indented."""
        return self.rule(f"%json {_dumped({**schema, 'x-guidance': _BOUNDED_SPACE if is_indented else _SEPARATORS})}")

    def choice(self, texts: Iterable[str]) -> str:
        """Return an expression for one of several texts."""
        return self.rule(" | ".join(self.literal(text) for text in texts))

    def separated(self, members: Sequence[tuple[str, bool]], separator: str) -> str:
        """Return an expression for things in their order with a separator between those that are there.

        The flag of each says whether it has to be; if none has to, all may be missing.
        """
        following = ""
        firsts: list[str] = []
        for member, is_required in reversed(members):
            if is_required:
                firsts = []
            firsts.append(sequence([member, following]))
            after = f"{quoted(separator)} {member}"
            following = self.rule(sequence([after if is_required else f"({after})?", following]))
        if not firsts:
            return ""
        is_optional = not any(is_required for _, is_required in members)
        return f"({' | '.join(reversed(firsts))})" + ("?" if is_optional else "")

    def content(self, wanted: ResponseFormat | LarkFormat) -> str:
        """Return an expression for content in the form that a request demands."""
        match wanted:
            case JsonObjectFormat():
                return self.rule(f"%json {_dumped({'type': 'object', 'x-guidance': _BOUNDED_SPACE})}")
            case JsonSchemaFormat(schema):
                return self.rule(f"%json {_dumped({**schema, 'x-guidance': _BOUNDED_SPACE})}")
            case RegexFormat(pattern):
                return self.terminal(f"/{_in_slashes(pattern)}/")
            case ChoiceFormat(choices):
                return self.rule(" | ".join(quoted(each) for each in choices))
            case LarkFormat(grammar):
                self._side.append({"name": "content", "lark_grammar": grammar})
                return "@content"
            case GrammarFormat():
                raise TypeError("a grammar in GBNF has to be translated before it is put into another one")

    def build(self, start: str) -> str:
        """Return the grammar whose texts ``start`` describes."""
        any_text = [f"ANY_TEXT: {_ANY}"] if "any text" in self._names else []
        text = "\n".join(["%llguidance {}", f"start: {start}", *self._rules, *any_text]) + "\n"
        if not self._side:
            return text
        return json.dumps({"grammars": [{"name": "answer", "lark_grammar": text}, *self._side]})

    def terminal(self, expression: str) -> str:
        """Give a regular expression, or texts and regular expressions in a row, a name."""
        name = self._names.setdefault(expression, f"T{len(self._names)}")
        rule = f"{name}: {expression}"
        if rule not in self._rules:
            self._rules.append(rule)
        return name


def quoted(text: str) -> str:
    """Write a text as a string of Lark."""
    return json.dumps(text, ensure_ascii=False)


def sequence(expressions: Sequence[str]) -> str:
    """Return an expression for one thing after another; empty texts are left out."""
    return " ".join(each for each in expressions if each not in {"", '""'})


def _dumped(schema: Mapping[str, object]) -> str:
    return json.dumps(schema, ensure_ascii=False)


def _in_slashes(pattern: str) -> str:
    """Write a regular expression so that it can stand between slashes."""
    return re.sub(r"\\.|/", lambda found: "\\/" if found[0] == "/" else found[0], pattern, flags=re.DOTALL).replace(
        "\n", "\\n"
    )
