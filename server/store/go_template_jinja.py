"""Ollama's chat templates as Jinja templates, which the pool renders.

What Ollama does around a template is done by the Jinja text, too: messages of the same role in a row become one, all
system messages together are ``.System``, and a template that knows only ``.Prompt`` and ``.Response`` is rendered once
for each turn, the last time up to where the answer begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from server.store.go_template import (
    Access,
    Assign,
    Call,
    Expression,
    If,
    Jump,
    Node,
    Number,
    Operand,
    Range,
    Show,
    Text,
    Untranslatable,
    parse_go_template,
    walk,
)

_COLLATED = """\
{%- set nothing = {'system': '', 'prompt': '', 'response': ''} -%}
{%- set go = namespace(messages=[], system='', systems=0, turns=[], turn=nothing) -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set go.system = go.system ~ ('\\n\\n' if go.systems else '') ~ message.content -%}
{%- set go.systems = go.systems + 1 -%}
{%- endif -%}
{%- if go.messages and go.messages[-1].role == message.role and message.role != 'tool' -%}
{%- set joined = dict(go.messages[-1], content=go.messages[-1].content ~ '\\n\\n' ~ message.content) -%}
{%- set go.messages = go.messages[:-1] + [joined] -%}
{%- else -%}
{%- set go.messages = go.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- macro go_text(value) -%}
{%- if value is string -%}{{- value -}}
{%- elif value is defined and value is not none -%}{{- value | tojson(separators=(',', ':')) -}}
{%- endif -%}
{%- endmacro -%}
"""
_TURNS = """\
{%- for message in go.messages -%}
{%- if message.role == 'system' -%}
{%- if go.turn.prompt or go.turn.response -%}
{%- set go.turns = go.turns + [go.turn] -%}
{%- set go.turn = nothing -%}
{%- endif -%}
{%- set go.turn = dict(go.turn, system=message.content) -%}
{%- elif message.role == 'user' -%}
{%- if go.turn.response -%}
{%- set go.turns = go.turns + [go.turn] -%}
{%- set go.turn = nothing -%}
{%- endif -%}
{%- set go.turn = dict(go.turn, prompt=message.content) -%}
{%- elif message.role == 'assistant' -%}
{%- set go.turn = dict(go.turn, response=message.content) -%}
{%- endif -%}
{%- endfor -%}
"""
_FIELDS = {
    "Role": "role",
    "Content": "content",
    "Thinking": "reasoning_content",
    "ToolCalls": "tool_calls",
    "ToolName": "name",
    "ToolCallID": "tool_call_id",
    "Function": "function",
    "Name": "name",
    "Arguments": "arguments",
    "Description": "description",
    "Parameters": "parameters",
    "Properties": "properties",
    "Required": "required",
    "Type": "type",
    "ID": "id",
    "Images": "images",
    "Enum": "enum",
}
_ROOT = {
    "System": "go.system",
    "Messages": "go.messages",
    "Tools": "tools",
    "Response": "''",
    "Think": "false",
    "ThinkLevel": "''",
    "IsThinkSet": "false",
    "Suffix": "''",
    "Prompt": "''",
}
_TURN = _ROOT | {"System": "turn.system", "Prompt": "turn.prompt", "Response": "turn.response"}
_MAPPINGS = frozenset({"Properties", "Arguments"})
"""Fields that a range visits by name, in alphabetical order."""
_FUNCTIONS = {
    ("not", 1): "(not {0})",
    ("ne", 2): "({0} != {1})",
    ("lt", 2): "({0} < {1})",
    ("le", 2): "({0} <= {1})",
    ("gt", 2): "({0} > {1})",
    ("ge", 2): "({0} >= {1})",
    ("len", 1): "(({0} or []) | length)",
    ("slice", 2): "{0}[{1}:]",
    ("slice", 3): "{0}[{1}:{2}]",
    ("index", 2): "{0}[{1}]",
    ("json", 1): "({0} | default(none) | tojson(separators=(',', ':')))",
    ("currentDate", 0): "strftime_now('%Y-%m-%d')",
    ("currentDate", 1): "strftime_now('%Y-%m-%d')",
}
"""Functions by name and number of arguments."""


def jinja_template(source: str) -> str:
    """Translate a template of Ollama.

    Raises:
        Untranslatable: it uses something that has no translation; the text says what.

    """
    nodes = parse_go_template(source)
    if "Messages" in set(_field_names(nodes)):
        return _COLLATED + _Translator(_ROOT).block(nodes)
    if "Response" not in set(_field_names(nodes)):
        nodes = (*nodes, Show(Operand(None, ("Response",))))
    whole, last = _Translator(_TURN).block(nodes), _Translator(_TURN).block(_Cut().nodes(nodes))
    return f"{_COLLATED}{_TURNS}{{%- for turn in go.turns -%}}{whole}{{%- endfor -%}}{{%- set turn = go.turn -%}}{last}"


def _field_names(nodes: Sequence[Node]) -> Iterator[str]:
    for node in walk(nodes):
        match node:
            case Show(value) | Assign(_, value) | If(value) | Range(value):
                yield from _fields_of(value)


def _fields_of(value: Expression) -> Iterator[str]:
    if isinstance(value, Operand):
        yield from value.fields
    elif isinstance(value, Access):
        yield from value.fields
        yield from _fields_of(value.value)
    elif isinstance(value, Call):
        for argument in value.arguments:
            yield from _fields_of(argument)


class _Cut:
    """Keeps what comes before the answer, and the answer."""

    def __init__(self) -> None:
        self._is_over = False

    def nodes(self, nodes: Sequence[Node]) -> tuple[Node, ...]:
        """Return the nodes up to the first that mentions the answer."""
        kept: list[Node] = []
        for node in nodes:
            if self._is_over:
                break
            match node:
                case If(_, then, otherwise):
                    then, otherwise = self.nodes(then), self.nodes(otherwise)
                    kept.append(replace(node, then=then, otherwise=otherwise))
                case Range(_, _, body, otherwise):
                    body, otherwise = self.nodes(body), self.nodes(otherwise)
                    kept.append(replace(node, body=body, otherwise=otherwise))
                case Show(value) | Assign(_, value):
                    self._look(value)
                    kept.append(node)
                case _:
                    kept.append(node)
        return tuple(kept)

    def _look(self, value: Expression) -> None:
        self._is_over = self._is_over or "Response" in set(_fields_of(value))


class _Translator:
    """Translates nodes; knows what the dot and each variable are called in Jinja.

    Variables are attributes of the namespace ``go``, under names of their own for each declaration, because Jinja's
    own do not outlive the loop or the choice that sets them.
    """

    def __init__(self, root: dict[str, str]) -> None:
        self._root = root
        self._dots: list[str | None] = [None]
        self._scopes: list[dict[str, str]] = [{}]
        self._num_names = 0
        self._num_loops = 0

    def block(self, nodes: Sequence[Node]) -> str:
        """Translate nodes that have a scope of their own."""
        self._scopes.append({})
        text = "".join(self._node(node) for node in nodes)
        self._scopes.pop()
        return text

    def _node(self, node: Node) -> str:
        match node:
            case Text(text) | Show(Text(text)):
                return f"{{{{- {_quoted(text)} -}}}}"
            case Show(value):
                return f"{{{{- go_text({self._value(value)}) -}}}}"
            case Assign():
                return self._assign(node)
            case If():
                return self._if(node)
            case Range():
                return self._range(node)
            case Jump():
                return self._jump(node)

    def _assign(self, node: Assign) -> str:
        value = self._value(node.value)  # which cannot use the variable that is declared here
        return _set(self._declared(node.variable) if node.is_new else self._variable(node.variable), value)

    def _jump(self, node: Jump) -> str:
        if not self._num_loops:
            raise Untranslatable(f"uses {{{{ {node.word} }}}} outside of a range")
        return f"{{%- {node.word} -%}}"

    def _if(self, node: If) -> str:
        condition = self._value(node.condition)
        if node.is_with:
            dot = self._new_name("dot")
            head = _set(dot, condition)
            self._dots.append(dot)
            then = self.block(node.then)
            self._dots.pop()
            condition = dot
        else:
            head, then = "", self.block(node.then)
        otherwise = f"{{%- else -%}}{self.block(node.otherwise)}" if node.otherwise else ""
        return f"{head}{{%- if {condition} -%}}{then}{otherwise}{{%- endif -%}}"

    def _range(self, node: Range) -> str:
        items = self._value(node.items)
        is_mapping = isinstance(node.items, Operand | Access) and not _MAPPINGS.isdisjoint(node.items.fields[-1:])
        self._num_names += 1
        item, key = f"item_{self._num_names}", f"key_{self._num_names}"
        head = f"{key}, {item} in ({items} or {{}}) | dictsort(true)" if is_mapping else f"{item} in ({items} or [])"
        self._scopes.append({})
        self._dots.append(item)
        self._num_loops += 1
        keys = [key if is_mapping else "loop.index0"] if len(node.variables) == 2 else []
        sets = "".join(
            _set(self._declared(variable), value)
            for variable, value in zip(node.variables, [*keys, item], strict=False)
            if variable != "_"
        )
        body = self.block(node.body)
        self._num_loops -= 1
        self._dots.pop()
        self._scopes.pop()
        otherwise = f"{{%- else -%}}{self.block(node.otherwise)}" if node.otherwise else ""
        return f"{{%- for {head} -%}}{sets}{body}{otherwise}{{%- endfor -%}}"

    def _value(self, value: Expression) -> str:
        match value:
            case Text(text):
                return _quoted(text)
            case Number(number):
                return str(number).lower()
            case Operand():
                return self._operand(value)
            case Access(inner, fields):
                return self._of(f"({self._value(inner)})", fields)
            case Call():
                return self._call(value)

    def _operand(self, operand: Operand) -> str:
        if operand.variable:
            return self._of(self._variable(operand.variable), operand.fields)
        dot = self._dots[-1] if operand.variable is None else None
        if dot is not None:
            return self._of(dot, operand.fields)
        if not operand.fields:
            raise Untranslatable("uses everything that is known at once")
        first, *others = operand.fields
        if first not in self._root:
            raise Untranslatable(f"uses .{first}")
        return self._of(self._root[first], others)

    @staticmethod
    def _of(value: str, fields: Sequence[str]) -> str:
        for field in fields:
            if field not in _FIELDS:
                raise Untranslatable(f"uses .{field}")
        return ".".join((value, *(_FIELDS[field] for field in fields)))

    def _call(self, call: Call) -> str:
        function, arguments = call.function, [self._value(argument) for argument in call.arguments]
        if function == "printf" and arguments:
            return self._printf(call)
        if function in ("and", "or") and arguments:
            return f"({f' {function} '.join(arguments)})"
        if function == "eq" and len(arguments) > 1:
            return f"({arguments[0]} in [{', '.join(arguments[1:])}])"
        form = _FUNCTIONS.get((function, len(arguments)))
        if form is None:
            raise Untranslatable(f"uses the function {function!r} with {len(arguments)} arguments")
        return form.format(*arguments)

    def _printf(self, call: Call) -> str:
        form, values = call.arguments[0], [self._value(argument) for argument in call.arguments[1:]]
        if not isinstance(form, Text):
            raise Untranslatable("uses printf with a format that is no text")
        first, *texts = form.text.replace("%%", "\0").replace("%d", "%s").replace("%v", "%s").split("%s")
        if len(texts) != len(values) or any("%" in text for text in (first, *texts)):
            raise Untranslatable(f"uses printf with the format {form.text!r}")
        parts = [first, *texts]
        joined = [_quoted(parts[0].replace("\0", "%"))]
        for value, text in zip(values, parts[1:], strict=True):
            joined += [f"go_text({value})", _quoted(text.replace("\0", "%"))]
        return f"({' ~ '.join(joined)})"

    def _new_name(self, name: str) -> str:
        self._num_names += 1
        return f"go.{name}_{self._num_names}"

    def _declared(self, variable: str) -> str:
        name = self._new_name(f"var_{variable}") if variable.isascii() else self._new_name("var")
        self._scopes[-1][variable] = name
        return name

    def _variable(self, variable: str) -> str:
        for scope in reversed(self._scopes):
            if variable in scope:
                return scope[variable]
        raise Untranslatable(f"uses ${variable}, which has no value")


def _set(name: str, value: str) -> str:
    return f"{{%- set {name} = {value} -%}}"


def _quoted(text: str) -> str:
    """Return text as a Jinja string, which may hold anything."""
    return "'" + text.encode("unicode_escape").decode("ascii").replace("'", "\\'") + "'"
