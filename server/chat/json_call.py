"""Calls that are one JSON object with a name and arguments: how to read them, and the grammar that makes them so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, quoted
from server.chat.scanner import Malformed, Reading, Scanner
from server.core.request import Tool


@dataclass(frozen=True, slots=True)
class JsonCall:
    """``{"name": "get_weather", "arguments": {"city": "Paris"}}``, with a family's own names of the two.

    ``other_arguments_keys`` are names that are read as well, because models confuse them.
    """

    name_key: str = "name"
    arguments_key: str = "arguments"
    other_arguments_keys: tuple[str, ...] = ("arguments", "parameters", "args")

    def read(self, scanner: Scanner, writer: AnswerWriter) -> Reading[None]:
        """Read one call; members other than name and arguments are passed over.

        Arguments are passed on as they come when the name is known by then, else at the end.

        Raises:
            Malformed: it is not a JSON object, or has no name.

        """
        yield from scanner.skip_space()
        yield from scanner.expect("{")
        name: str | None = None
        arguments: str | None = None
        is_passed_on = False
        yield from scanner.skip_space()
        while not (yield from scanner.take("}")):
            key = yield from _read_whole(scanner)
            yield from scanner.skip_space()
            yield from scanner.expect(":")
            yield from scanner.skip_space()
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
                if key == self.name_key and isinstance(value, str):
                    name = value
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

    def expression(self, grammar: LarkGrammar, tools: Sequence[Tool]) -> str:
        """Return an expression for a call of one of some functions."""
        head = f'{{"{self.name_key}": '
        calls = [
            f"{quoted(head + json.dumps(tool.name, ensure_ascii=False) + f', {json.dumps(self.arguments_key)}: ')} "
            f'{grammar.json(tool.parameters)} "}}"'
            for tool in tools
        ]
        return grammar.rule(" | ".join(calls))


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
    return json.dumps(value, ensure_ascii=False)
