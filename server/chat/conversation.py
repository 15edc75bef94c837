"""From a conversation to the variables of a chat template, in the shape that the template can take. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from server.chat.capabilities import EFFORT_VARIABLES, REASONING_FIELDS, TemplateCapabilities
from server.chat.generic_tools import CallText, ToolTexts
from server.chat.history import call_arguments, in_call_order
from server.core.errors import InvalidRequest
from server.core.request import Message, ReasoningEffort, Role, Tool, ToolCall, ToolChoice

AsData = Callable[[str], str]
"""Makes a client's words data: control tokens in them become text."""

Entry = dict[str, object]
"""A message as templates see it."""

RESERVED = frozenset(
    {
        "messages",
        "tools",
        "add_generation_prompt",
        "bos_token",
        "eos_token",
        "raise_exception",
        "strftime_now",
        "range",
        "dict",
        "namespace",
        "cycler",
        "joiner",
        "lipsum",
    }
)
"""Variables that a request's template options may not replace."""

_SWITCHES = ("enable_thinking", "thinking")
"""What most templates, and DeepSeek's and IBM's, call whether the model thinks."""

_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_UNTRUSTED_ROLES = frozenset({Role.USER, Role.TOOL})


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is to be rendered: the parts of a ``ChatRequest`` that a prompt is made of."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    is_parallel: bool = True
    template_options: Mapping[str, object] = field(default_factory=dict)
    reasoning_effort: ReasoningEffort | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """Adapts conversations to a template.

    Attributes:
        capabilities: what the template can take.
        texts: how tools are put into words where the template does not.

    """

    capabilities: TemplateCapabilities
    texts: ToolTexts

    def variables(self, conversation: Conversation, as_data: AsData) -> dict[str, object]:
        """Return the variables that the conversation sets.

        ``as_data`` is applied to all that a client says but for the words of system and assistant.

        Raises:
            InvalidRequest: it has something that no template can take.

        """
        tools = [_wire_tool(tool, as_data) for tool in conversation.tools]
        options = {name: as_json(value, as_data) for name, value in _checked_options(conversation.template_options)}
        return {
            **self._thinking(conversation.reasoning_effort),
            **_both_switches(options),
            **options,
            "messages": _Messages(self, conversation, as_data, tools).entries(),
            "tools": (tools if self.capabilities.tools and tools else None)
            or ([] if self.capabilities.empty_tools else None),
            "add_generation_prompt": True,
        }

    def _thinking(self, effort: ReasoningEffort | None) -> dict[str, object]:
        if effort is None:
            return {}
        thinks = effort is not ReasoningEffort.NONE
        efforts = self.capabilities.efforts
        words = {name: efforts[name].get(effort.value) for name in EFFORT_VARIABLES if name in efforts}
        return {
            **dict.fromkeys(_SWITCHES, thinks),
            **{name: word for name, word in words.items() if word is not None},
        }


class _Messages:
    """Makes the messages of one prompt."""

    def __init__(self, adapter: Adapter, conversation: Conversation, as_data: AsData, tools: Sequence[Entry]) -> None:
        self._capabilities = adapter.capabilities
        self._texts = adapter.texts
        self._conversation = conversation
        self._as_data = as_data
        self._tools = tools
        is_described_here = bool(tools) and not adapter.capabilities.tools
        self._instructs = is_described_here
        in_words = is_described_here and not adapter.texts.is_native
        self._shows_calls = adapter.capabilities.calls and not in_words
        self._shows_results = adapter.capabilities.results and not in_words
        self._names: dict[str, str] = {}

    def entries(self) -> list[Entry]:
        entries = list(self._all())
        if self._instructs:
            entries = self._with_instruction(entries)
        if not self._capabilities.system:
            entries = _without_system(entries)
        if not self._capabilities.roles_in_a_row:
            entries = list(_merged(entries))
        if self._capabilities.content_parts:
            entries = [_with_parts(entry) for entry in entries]
        return entries

    def _all(self) -> Iterator[Entry]:
        messages = in_call_order(self._conversation.messages)
        position = 0
        while position < len(messages):
            message = messages[position]
            end = position + 1
            if message.tool_calls or message.role is Role.TOOL:
                while end < len(messages) and messages[end].role is Role.TOOL:
                    end += 1
                yield from self._calling(message, position, messages[position + bool(message.tool_calls) : end])
            else:
                yield self._plain(message)
            position = end

    def _plain(self, message: Message) -> Entry:
        role = message.role
        if role is Role.DEVELOPER and not self._capabilities.developer:
            role = Role.SYSTEM
        content = self._as_data(message.content) if role in _UNTRUSTED_ROLES else message.content
        entry: Entry = {"role": role.value, "content": content}
        if message.name is not None:
            entry["name"] = self._as_data(message.name)
        if message.reasoning:
            entry[self._reasoning_field] = self._as_data(message.reasoning)
        return entry

    @property
    def _reasoning_field(self) -> str:
        return self._capabilities.reasoning_field or REASONING_FIELDS[0]

    def _calling(self, message: Message, index: int, results: Sequence[Message]) -> Iterator[Entry]:
        """Yield what calls are written as, and their results."""
        calls = [
            (call, call_arguments(call, f"messages[{index}].tool_calls[{number}]"))
            for number, call in enumerate(message.tool_calls)
        ]
        self._names.update({call.id: call.name for call, _ in calls})
        if not self._shows_calls and calls:
            yield self._calls_in_words(message, calls)
        elif self._capabilities.parallel_calls or len(calls) < 2:
            yield from self._shown_calls(message, calls)
        else:
            yield from self._one_by_one(message, calls, results)
            return
        yield from self._results(results)

    def _calls_in_words(self, message: Message, calls: Sequence[tuple[ToolCall, Mapping[str, object]]]) -> Entry:
        text = self._texts.calls(
            [CallText(self._as_data(call.name), _as_object(arguments, self._as_data)) for call, arguments in calls]
        )
        entry = self._plain(message)
        entry["content"] = f"{message.content}\n{text}" if message.content else text
        return entry

    def _one_by_one(
        self, message: Message, calls: Sequence[tuple[ToolCall, Mapping[str, object]]], results: Sequence[Message]
    ) -> Iterator[Entry]:
        for number, (call, arguments) in enumerate(calls):
            first = message if number == 0 else Message(Role.ASSISTANT, "")
            yield from self._shown_calls(first, [(call, arguments)])
            yield from self._results([each for each in results if each.tool_call_id == call.id])
        ids = {call.id for call, _ in calls}
        yield from self._results([each for each in results if each.tool_call_id not in ids])

    def _shown_calls(self, message: Message, calls: Sequence[tuple[ToolCall, Mapping[str, object]]]) -> Iterator[Entry]:
        if not calls:
            return
        capabilities = self._capabilities
        entry = self._plain(message)
        if message.content and not capabilities.text_beside_calls:
            if capabilities.text_before_calls:
                yield {"role": entry["role"], "content": entry["content"]}
            entry["content"] = ""
        if entry["content"] and not capabilities.reasoning_beside_text:
            entry.pop(self._reasoning_field, None)
        if not entry["content"] and capabilities.null_content:
            entry["content"] = None
        entry["tool_calls"] = [self._wire_call(call, arguments) for call, arguments in calls]
        yield entry

    def _wire_call(self, call: ToolCall, arguments: Mapping[str, object]) -> Entry:
        given: object = _as_object(arguments, self._as_data)
        if self._capabilities.arguments_are_text:
            given = json.dumps(given, ensure_ascii=False)
        function = {"name": self._as_data(call.name), "arguments": given}
        return {"id": self._call_id(call.id), "type": "function", "function": function}

    def _call_id(self, call_id: str) -> str:
        if self._capabilities.short_ids and _SHORT_ID.fullmatch(call_id) is None:
            return hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:9]
        return self._as_data(call_id)

    def _results(self, results: Sequence[Message]) -> Iterator[Entry]:
        if results and not self._shows_results:
            texts = (self._texts.result(self._name_of(each), self._as_data(each.content)) for each in results)
            yield {"role": Role.USER.value, "content": "\n".join(texts)}
            return
        for each in results:
            entry: Entry = {"role": Role.TOOL.value, "content": self._as_data(each.content)}
            if name := self._name_of(each):
                entry["name"] = name
            if each.tool_call_id is not None:
                entry["tool_call_id"] = self._call_id(each.tool_call_id)
            yield entry

    def _name_of(self, result: Message) -> str:
        return self._as_data(result.name or self._names.get(result.tool_call_id or "", ""))

    def _with_instruction(self, entries: list[Entry]) -> list[Entry]:
        """Describe the tools in the system's first message, after what it says, or in one of their own."""
        conversation = self._conversation
        text = self._texts.instruction(
            self._tools, _choice_as_data(conversation.tool_choice, self._as_data), is_parallel=conversation.is_parallel
        )
        if entries and entries[0]["role"] in (Role.SYSTEM.value, Role.DEVELOPER.value):
            first = entries[0]
            return [{**first, "content": _joined(first["content"], text)}, *entries[1:]]
        return [{"role": Role.SYSTEM.value, "content": text}, *entries]


def _choice_as_data(choice: ToolChoice, as_data: AsData) -> ToolChoice:
    return choice if choice.name is None else ToolChoice(choice.mode, as_data(choice.name))


def as_json(value: object, as_data: AsData) -> object:
    """Copy a JSON value with each text in it made data, the names in objects included.

    Raises:
        InvalidRequest: it is no JSON value.
        RecursionError: it is nested too deeply.

    """
    if isinstance(value, str):
        return as_data(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return _as_object(value, as_data)
    if isinstance(value, list | tuple):
        return [as_json(each, as_data) for each in value]
    raise InvalidRequest(f"A value of the type {type(value).__name__} is no JSON.")


def _both_switches(options: Mapping[str, object]) -> dict[str, object]:
    """Return the names that families have for the same switch, if a client sets one of them."""
    value = next((options[name] for name in _SWITCHES if isinstance(options.get(name), bool)), None)
    return {} if value is None else dict.fromkeys(_SWITCHES, value)


def _as_object(value: Mapping[str, object], as_data: AsData) -> dict[str, object]:
    return {as_data(str(name)): as_json(each, as_data) for name, each in value.items()}


def _checked_options(options: Mapping[str, object]) -> Iterable[tuple[str, object]]:
    for name in options:
        if name in RESERVED:
            raise InvalidRequest(
                f"'{name}' is set by the server and cannot be a template option. Leave it out.",
                param=f"chat_template_kwargs.{name}",
            )
    return options.items()


def _wire_tool(tool: Tool, as_data: AsData) -> Entry:
    """Return a tool as OpenAI writes it, with all that templates look at, whether or not the client has sent it."""
    parameters: dict[str, object] = {"type": "object", "properties": {}, **tool.parameters}
    function = {"name": tool.name, "description": tool.description or "", "parameters": parameters}
    return {"type": "function", "function": _as_object(function, as_data)}


def _without_system(entries: Sequence[Entry]) -> list[Entry]:
    """Put what the system says before what the next user says, for templates that know no system."""
    kept: list[Entry] = []
    said: list[object] = []
    for entry in entries:
        if entry["role"] in (Role.SYSTEM.value, Role.DEVELOPER.value):
            said.append(entry["content"])
        elif said and entry["role"] == Role.USER.value:
            kept.append({**entry, "content": _joined(*said, entry["content"])})
            said = []
        else:
            kept.append(entry)
    if said:
        kept.append({"role": Role.USER.value, "content": _joined(*said)})
    return kept


def _merged(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Make one message of those that the same role has in a row, calls and results aside."""
    previous: Entry | None = None
    for entry in entries:
        if previous is None:
            previous = entry
        elif (
            entry["role"] == previous["role"] != Role.TOOL.value
            and "tool_calls" not in entry
            and "tool_calls" not in previous
        ):
            previous = {**previous, "content": _joined(previous["content"], entry["content"])}
        else:
            yield previous
            previous = entry
    if previous is not None:
        yield previous


def _joined(*contents: object) -> str:
    return "\n\n".join(str(content) for content in contents if content)


def _with_parts(entry: Entry) -> Entry:
    content = entry["content"]
    return {**entry, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else entry
