"""Calls that are one JSON object with a name and arguments: how to read them, and the grammar that makes them so."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.core.request import Tool

_BESIDE_NAME = ("type", "id")
"""What may stand in a call, too."""


@dataclass(frozen=True, slots=True)
class JsonCall:
    """``{"name": "get_weather", "arguments": {"city": "Paris"}}``, with a family's own names of the two.

    Attributes:
        name_key: the member that names the function.
        arguments_key: the member that holds its arguments.
        other_arguments_keys: names that are read as well, because models confuse them.
        before_name: an expression for the members that a family writes first, such as an id; they are passed over.
        after_arguments: an expression for those that it writes last.

    """

    name_key: str = "name"
    arguments_key: str = "arguments"
    other_arguments_keys: tuple[str, ...] = ("arguments", "parameters", "args")
    before_name: str = ""
    after_arguments: str = ""

    def read(self, scanner: Scanner, writer: AnswerWriter, known: Collection[str] | None = None) -> Reading[None]:
        """Read one call; members other than name and arguments are passed over.

        Arguments are passed on as they come when the name is known by then, else at the end.

        Args:
            scanner: what is read.
            writer: where the call goes.
            known: names that make a call of an object which might be something else; ``None`` for any.

        Raises:
            Malformed: it is not a JSON object, or has no name, or none of those that are known.

        """
        yield from scanner.skip_space()
        yield from scanner.expect("{")
        name: str | None = None
        arguments: str | None = None
        is_passed_on = False
        yield from scanner.skip_space()
        while not (yield from scanner.take("}")):
            key = yield from _read_key(scanner)
            if known is not None and key not in (self.name_key, *_BESIDE_NAME, *self.other_arguments_keys):
                raise Malformed
            if key == self.arguments_key or key in self.other_arguments_keys:
                is_object = (yield from scanner.next_character()) == "{"
                if name is not None and is_object and not is_passed_on:
                    writer.begin_call(name)
                    is_passed_on = True
                    if not (yield from scanner.json_value(writer.arguments)):
                        return
                else:
                    arguments = _as_object((yield from _read_whole(scanner)))
            else:
                value = yield from _read_whole(scanner)
                if key == self.name_key:
                    name = _as_name(value, known)
            yield from scanner.skip_space()
            if not (yield from scanner.take(",")):
                yield from scanner.expect("}")
                break
            yield from scanner.skip_space()
        if name is None:
            raise Malformed
        if not is_passed_on:
            writer.begin_call(name)
            writer.arguments(arguments or "{}")
        writer.end_call()

    def read_list(self, scanner: Scanner, writer: AnswerWriter) -> Reading[None]:
        """Read calls as a JSON array, or without its brackets and commas.

        Raises:
            Malformed: what looks like a call is none.

        """
        yield from scanner.skip_space()
        yield from scanner.take("[")
        yield from scanner.skip_space()
        while (yield from scanner.next_character()) == "{":
            yield from self.read(scanner, writer)
            if writer.has_open_call:
                return
            yield from scanner.skip_space()
            yield from scanner.take(",")
            yield from scanner.skip_space()
        yield from scanner.take("]")

    def expression(self, grammar: LarkGrammar, tools: Sequence[Tool]) -> str:
        """Return an expression for a call of one of some functions."""
        calls = [
            sequence(
                [
                    quoted("{"),
                    self.before_name,
                    quoted(f'"{self.name_key}": {_dumped(tool.name)}, "{self.arguments_key}": '),
                    grammar.json(tool.parameters),
                    self.after_arguments,
                    quoted("}"),
                ]
            )
            for tool in tools
        ]
        return grammar.rule(" | ".join(calls))


def listed(call: str, plan: AnswerPlan, opening: str = "[", between: str = ", ", closing: str = "]") -> str:
    """Return an expression for a list of what an expression describes: one, or any number if that is wanted."""
    more = f"({quoted(between)} {call})*" if plan.is_parallel else ""
    return sequence([quoted(opening), call, more, quoted(closing)])


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _read_key(scanner: Scanner) -> Reading[object]:
    """Read the name of a member, through the colon behind it."""
    key = yield from _read_whole(scanner)
    yield from scanner.skip_space()
    yield from scanner.expect(":")
    yield from scanner.skip_space()
    return key


def _as_name(value: object, known: Collection[str] | None) -> str:
    if not isinstance(value, str) or (known is not None and value not in known):
        raise Malformed
    return value


def _read_whole(scanner: Scanner) -> Reading[object]:
    """Read a JSON value as a whole."""
    pieces: list[str] = []
    if not (yield from scanner.json_value(lambda text, _: pieces.append(text))):
        raise Malformed
    try:
        value: object = json.loads("".join(pieces), strict=False)
    except (ValueError, RecursionError) as error:
        raise Malformed from error
    return value


def _as_object(value: object) -> str:
    """Return arguments as JSON text: some models write the object as a string, or nothing for none."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError) as error:
            raise Malformed from error
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise Malformed
    return _dumped(value)
