"""Reading templates in Go's template language, as far as Ollama's chat templates use it.

Only what has a plain meaning in every template is read; everything else is ``Untranslatable``, with words that say what
it is. The language is described at https://pkg.go.dev/text/template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_MOST_CHARACTERS = 1 << 20
_MOST_TOKENS = 50_000
_DEEPEST = 40
_SPACE = " \t\r\n"

_COMMENT = re.compile(r"\{\{(?:-\s+)?/\*")
_TRIMMED_START = re.compile(r"\{\{-(?=\s)")
_TRIMMED_END = re.compile(r"\s-\Z")
_INSIDE = re.compile(r"""(?P<end>\}\})|"(?:[^"\\\n]|\\.)*"|`[^`]*`|[^"`}]+|\}""")
"""What an action consists of: texts, which may hold brackets of actions, and everything else."""
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    |(?P<number>-?[0-9]{1,9}(?![\w.]))
    |(?P<operand>\$\w*(?:\.[A-Za-z_]\w*)*|(?:\.[A-Za-z_]\w*)+|\.(?![\w.]))
    |(?P<word>[A-Za-z_]\w*)
    |(?P<sign>:=|=|\(|\)|\||,)
    )""",
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-7][0-9a-fA-F]|.)", re.DOTALL)


class Untranslatable(Exception):
    """A template uses something that cannot be translated; the text says what."""


@dataclass(frozen=True, slots=True)
class Text:
    """Text between actions, and text in quotes."""

    text: str


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number, or a truth value."""

    value: int | bool | None


@dataclass(frozen=True, slots=True)
class Operand:
    """A variable or the dot, and fields of it: ``$message.Content`` or ``.Content``; the dot has no variable."""

    variable: str | None
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Access:
    """Fields of a value in brackets: ``(index .Messages 0).Role``."""

    value: Expression
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A function and its arguments."""

    function: str
    arguments: tuple[Expression, ...]


Expression = Text | Number | Operand | Access | Call


@dataclass(frozen=True, slots=True)
class Show:
    """Print a value."""

    value: Expression


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a variable a value; ``is_new`` if it is declared here."""

    variable: str
    value: Expression
    is_new: bool


@dataclass(frozen=True, slots=True)
class If:
    """A choice; with ``with``, the dot is the condition's value in ``then``."""

    condition: Expression
    then: tuple[Node, ...]
    otherwise: tuple[Node, ...]
    is_with: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """A loop, in which the dot is each item; ``variables`` are those for the key and the item, as far as named."""

    items: Expression
    variables: tuple[str, ...]
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Jump:
    """``break`` or ``continue``."""

    word: str


Node = Text | Show | Assign | If | Range | Jump


def walk(nodes: Iterable[Node]) -> Iterator[Node]:
    """Return all nodes, those inside others included."""
    for node in nodes:
        yield node
        if isinstance(node, If):
            yield from walk((*node.then, *node.otherwise))
        elif isinstance(node, Range):
            yield from walk((*node.body, *node.otherwise))


def parse_go_template(source: str) -> tuple[Node, ...]:
    """Read a template.

    Raises:
        Untranslatable: it is none, or uses what is not read here.

    """
    if len(source) > _MOST_CHARACTERS:
        raise Untranslatable(f"is longer than {_MOST_CHARACTERS} characters")
    parser = _Parser(_pieces(source))
    nodes, end = parser.nodes(0)
    if end:
        raise Untranslatable(f"has {{{{ {end} }}}} without a beginning")
    return nodes


@dataclass(frozen=True, slots=True)
class _Token:
    """A word of an action; ``is_glued`` if no space is before it."""

    kind: str
    text: str
    is_glued: bool = False


_Piece = str | tuple[_Token, ...]


def _pieces(source: str) -> list[_Piece]:
    """Divide a template into text and the tokens of actions; white space that actions trim is gone."""
    pieces: list[_Piece] = []
    position, trims, num_tokens = 0, False, 0
    while (start := source.find("{{", position)) >= 0:
        end = _action_end(source, start)
        trimmed_start, action = _TRIMMED_START.match(source, start), source[start + 2 : end - 2]
        text = source[position:start].lstrip(_SPACE) if trims else source[position:start]
        pieces.append(text.rstrip(_SPACE) if trimmed_start else text)
        trims = _TRIMMED_END.search(action) is not None
        if not _COMMENT.match(source, start):
            tokens = tuple(_tokens(action[bool(trimmed_start) : len(action) - trims]))
            num_tokens += len(tokens)
            pieces.append(tokens)
        position = end
    if num_tokens > _MOST_TOKENS:
        raise Untranslatable(f"has more than {_MOST_TOKENS} words")
    pieces.append(source[position:].lstrip(_SPACE) if trims else source[position:])
    return pieces


def _action_end(source: str, start: int) -> int:
    """Return where an action ends, which is not at brackets inside its texts and comments."""
    position = start + 2
    if comment := _COMMENT.match(source, start):
        position = source.find("*/", comment.end()) + 2
        if position < 2:
            raise Untranslatable("has a comment that does not end")
    while found := _INSIDE.match(source, position):
        position = found.end()
        if found["end"]:
            return position
    raise Untranslatable("has an action that does not end")


def _tokens(body: str) -> Iterator[_Token]:
    position, end = 0, len(body.rstrip())
    while position < end:
        found = _TOKEN.match(body, position)
        if found is None or found.lastgroup is None:
            raise Untranslatable(f"uses {body[position:].strip()[:20]!r}")
        yield _Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup) == position)
        position = found.end()


class _Parser:
    """Reads pieces one after the other."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = pieces
        self._position = 0

    def nodes(self, depth: int) -> tuple[tuple[Node, ...], str]:
        """Read up to an ``end``, an ``else`` or the end; returns that word, with the rest of its action put back."""
        if depth > _DEEPEST:
            raise Untranslatable(f"is more than {_DEEPEST} blocks deep")
        nodes: list[Node] = []
        while self._position < len(self._pieces):
            piece = self._pieces[self._position]
            if isinstance(piece, str):
                nodes += [Text(piece)] if piece else []
                self._position += 1
                continue
            if not piece:
                raise Untranslatable("has an empty action")
            word = piece[0].text if piece[0].kind == "word" else ""
            if word in ("end", "else"):
                return tuple(nodes), word
            self._position += 1
            nodes.append(self._node(word, piece, depth))
        return tuple(nodes), ""

    def _node(self, word: str, tokens: tuple[_Token, ...], depth: int) -> Node:
        if word in ("if", "with"):
            return self._if(word, tokens[1:], depth)
        if word == "range":
            return self._range(tokens[1:], depth)
        if word in ("break", "continue") and len(tokens) == 1:
            return Jump(word)
        if word in ("define", "template", "block"):
            raise Untranslatable(f"uses {{{{ {word} }}}}")
        if len(tokens) > 2 and tokens[1].kind == "sign" and tokens[1].text in (":=", "="):
            return Assign(_variable(tokens[0]), _expression(tokens[2:]), is_new=tokens[1].text == ":=")
        return Show(_expression(tokens))

    def _if(self, word: str, tokens: tuple[_Token, ...], depth: int) -> If:
        condition = _expression(tokens)
        then, end = self.nodes(depth + 1)
        otherwise: tuple[Node, ...] = ()
        rest = self._word(end, word)
        if end == "else" and rest:
            if rest[0].kind != "word" or rest[0].text not in ("if", "with"):
                raise Untranslatable("has an else with something after it")
            # an `else if` ends with the same `end` as its `if`
            otherwise = (self._if(rest[0].text, rest[1:], depth + 1),)
        elif end == "else":
            otherwise, end = self.nodes(depth + 1)
            self._end(end, word)
        return If(condition, then, otherwise, word == "with")

    def _range(self, tokens: tuple[_Token, ...], depth: int) -> Range:
        variables: tuple[str, ...] = ()
        signs = [token.text for token in tokens]
        if ":=" in signs:
            at = signs.index(":=")
            variables = tuple(_variable(token) for token in tokens[:at:2])
            if len(variables) > 2 or signs[1:at:2] != [","] * (len(variables) - 1):
                raise Untranslatable("has a range that cannot be read")
            tokens = tokens[at + 1 :]
        items = _expression(tokens)
        body, end = self.nodes(depth + 1)
        otherwise: tuple[Node, ...] = ()
        if self._word(end, "range"):
            raise Untranslatable("has an else with something after it")
        if end == "else":
            otherwise, end = self.nodes(depth + 1)
            self._end(end, "range")
        return Range(items, variables, body, otherwise)

    def _word(self, end: str, word: str) -> tuple[_Token, ...]:
        """Take the action that ended a block; returns what comes after its word."""
        if not end:
            raise Untranslatable(f"has {{{{ {word} }}}} without an end")
        piece = self._pieces[self._position]
        self._position += 1
        return piece[1:] if isinstance(piece, tuple) else ()

    def _end(self, end: str, word: str) -> None:
        if end != "end" or self._word(end, word):
            raise Untranslatable(f"has {{{{ {word} }}}} without an end")


def _variable(token: _Token) -> str:
    if token.kind != "operand" or not re.fullmatch(r"\$\w+", token.text):
        raise Untranslatable(f"gives a value to {token.text!r}")
    return token.text[1:]


def _expression(tokens: Sequence[_Token]) -> Expression:
    """Read a pipeline: what is before a ``|`` is the last argument of what comes after it."""
    reader = _Expressions(tokens)
    value = reader.pipeline(0)
    reader.finish()
    return value


class _Expressions:
    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._position = 0

    def finish(self) -> None:
        if self._position < len(self._tokens):
            raise Untranslatable(f"uses {self._tokens[self._position].text!r} in an unknown way")

    def pipeline(self, depth: int) -> Expression:
        if depth > _DEEPEST:
            raise Untranslatable(f"has more than {_DEEPEST} brackets")
        value = self._command((), depth)
        while self._takes("|"):
            value = self._command((value,), depth)
        return value

    def _command(self, piped: tuple[Expression, ...], depth: int) -> Expression:
        token = self._next()
        if token.kind == "word" and token.text not in ("true", "false", "nil"):
            arguments: list[Expression] = []
            while not self._is_over():
                arguments.append(self._argument(self._next(), depth))
            return Call(token.text, (*arguments, *piped))
        if piped:
            raise Untranslatable("has a pipe into something that is no function")
        return self._argument(token, depth)

    def _argument(self, token: _Token, depth: int) -> Expression:
        if token.text == "(" and token.kind == "sign":
            value = self.pipeline(depth + 1)
            if not self._takes(")"):
                raise Untranslatable("has a bracket that does not close")
            return self._access(value)
        if token.kind == "text":
            return Text(_unquoted(token.text))
        if token.kind == "number":
            return Number(int(token.text))
        if token.kind == "operand":
            return _operand(token.text)
        if token.kind == "word" and token.text in ("true", "false", "nil"):
            return Number({"true": True, "false": False, "nil": None}[token.text])
        if token.kind == "word":
            return Call(token.text, ())
        raise Untranslatable(f"uses {token.text!r} in an unknown way")

    def _is_over(self) -> bool:
        """Whether the command ends here."""
        if self._position >= len(self._tokens):
            return True
        token = self._tokens[self._position]
        return token.kind == "sign" and token.text in (")", "|")

    def _access(self, value: Expression) -> Expression:
        """Read fields that follow a bracket without a space; with one they would be another argument."""
        if self._position < len(self._tokens):
            token = self._tokens[self._position]
            if token.is_glued and token.kind == "operand" and token.text.startswith("."):
                self._position += 1
                return Access(value, _operand(token.text).fields)
        return value

    def _next(self) -> _Token:
        if self._position >= len(self._tokens):
            raise Untranslatable("has an action with something missing")
        self._position += 1
        return self._tokens[self._position - 1]

    def _takes(self, sign: str) -> bool:
        if self._position >= len(self._tokens):
            return False
        token = self._tokens[self._position]
        is_there = token.kind == "sign" and token.text == sign
        self._position += is_there
        return is_there


def _operand(text: str) -> Operand:
    head, *fields = text.split(".")
    return Operand(head[1:] if head else None, tuple(field for field in fields if field))


def _unquoted(text: str) -> str:
    if text[0] == "`":
        return text[1:-1].replace("\r", "")
    return _ESCAPE.sub(_unescaped, text[1:-1])


def _unescaped(found: re.Match[str]) -> str:
    escape = found[1]
    character = chr(int(escape[1:], 16)) if len(escape) > 1 else _ESCAPES.get(escape)
    if character is None or "\ud800" <= character <= "\udfff":
        raise Untranslatable(f"uses \\{escape} in a text")
    return character
