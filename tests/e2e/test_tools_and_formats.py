"""Tools, structured output and reasoning by the official client's own helpers, the same for both backends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

import openai
import pytest
from demo_model.template import CHAT_TEMPLATE
from fakes.ollama import Call, FakeModel, FakeOllama, Reply
from openai import pydantic_function_tool
from openai.types.chat import ParsedChatCompletion
from pydantic import BaseModel, Field
from serving import Server, Site, text_of, using_ollama

from server.cli.serve import demo_model_path

PARIS = "What is the capital of France?"
WEATHER = "What is the weather in Paris?"
TWO_CITIES = "What is the weather in Paris and Rome?"
SUNNY = "sunny, 21 degrees"
ROOM = 400
LLAMACPP, OLLAMA = "llamacpp", "ollama"

_OPENED = "{{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
THINKING_TEMPLATE = CHAT_TEMPLATE.removesuffix(_OPENED) + (
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is not defined or enable_thinking %}{{- '<think>\\n' }}{%- endif %}"
    "{%- endif %}"
)
"""That of the demo model, for one that thinks: the prompt opens its thoughts. It does not know how to close them."""

CONFIGURATION = """
[models."local/demo"]
path = {demo}

[models."local/thinker"]
path = {demo}
chat_template = {template}
context_length = 1024
max_sequences = 2

[models."local/thinker-hidden"]
path = {demo}
chat_template = {template}
context_length = 1024
max_sequences = 2
reasoning = "hide"

[models."local/thinker-raw"]
path = {demo}
chat_template = {template}
context_length = 1024
max_sequences = 2
reasoning = "raw"

[models."local/spell-thinker-hidden"]
reasoning = "hide"

[models."local/spell-thinker-raw"]
reasoning = "raw"
"""


# --- what is asked for ---

Word = Annotated[str, Field(max_length=16)]


class Sky(StrEnum):
    SUNNY = "sunny"
    RAINY = "rainy"


class Place(BaseModel):
    city: Word
    country: Word | None


class Hour(BaseModel):
    hour: Annotated[int, Field(ge=0, le=23)]
    sky: Sky


class Forecast(BaseModel):
    kind: Literal["forecast"]
    place: Place
    hours: Annotated[list[Hour], Field(min_length=1, max_length=2)]
    is_certain: bool


class Excuse(BaseModel):
    kind: Literal["excuse"]
    reason: Word


class Either(BaseModel):
    result: Forecast | Excuse


class GetWeather(BaseModel):
    city: Word


class GetTime(BaseModel):
    city: Word
    precision: Literal["minutes", "seconds"]


STRICT_TOOLS: list[Any] = [
    pydantic_function_tool(GetWeather, name="get_weather", description="Get the weather"),
    pydantic_function_tool(GetTime, name="get_time", description="Get the time"),
]
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 16}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get the weather", "parameters": CITY},
}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def described(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


# --- who is asked ---


def call_for_weather(body: Mapping[str, Any]) -> Reply:
    """Call for each city that is asked for, as the demo model does."""
    asked = str(body["messages"][-1]["content"])
    return Reply(calls=[Call("get_weather", {"city": city}) for city in ("Paris", "Rome") if city in asked])


@pytest.fixture(scope="module")
def daemon() -> Iterator[FakeOllama]:
    thinks = ("completion", "tools", "thinking")
    with FakeOllama(
        FakeModel("spell", ("completion", "tools"), reply=call_for_weather),
        *(FakeModel(name, thinks) for name in ("spell-thinker", "spell-thinker-hidden", "spell-thinker-raw")),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def server(daemon: FakeOllama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model that calls tools, and models that think, on each backend."""
    home = tmp_path_factory.mktemp("home")
    (home / "thinking.jinja").write_text(THINKING_TEMPLATE, encoding="utf-8")
    paths = {"demo": json.dumps(str(demo_model_path())), "template": '"thinking.jinja"'}
    (home / "config.toml").write_text(CONFIGURATION.format(**paths), encoding="utf-8")
    # with one thread a busy machine does not make it wait for the other
    variables = using_ollama(daemon.url, LLMSPELL_LLAMACPP__THREADS="1")
    with Server("--config", str(home / "config.toml"), home=home, variables=variables) as running:
        yield running
        assert running.failures == []


@pytest.fixture(params=[LLAMACPP, OLLAMA])
def site(server: Server, request: pytest.FixtureRequest) -> Site:
    """A model of each backend in turn."""
    if request.param == LLAMACPP:
        return Site(LLAMACPP, server, "local/demo@llamacpp", thinking="local/thinker@llamacpp")
    return Site(OLLAMA, server, "local/spell@ollama", thinking="local/spell-thinker@ollama")


def thinker(site: Site, kind: str = "") -> dict[str, Any]:
    """Parameters for a model that thinks, and then answers.

    The demo model does not come to an end of its thoughts by itself, but of its answer. The daemon takes no budget.
    """
    name, _, backend = str(site.thinking).partition("@")
    budget = {"thinking_budget": 2} if site.backend == LLAMACPP else {}
    return {"model": f"{name}{kind}@{backend}", "max_tokens": ROOM, **budget}


def parse(site: Site, content: str, form: Any, *, stream: bool, **more: object) -> ParsedChatCompletion[Any]:  # noqa: ANN401
    """Let the client ask for an instance of a class, and make it one."""
    body = site.for_sdk(content, **({"max_tokens": ROOM} | more))
    with site.server.client() as client:
        if not stream:
            return client.chat.completions.parse(**body, response_format=form)
        with client.chat.completions.stream(**body, response_format=form) as events:
            return events.get_final_completion()


def call(site: Site, content: str = WEATHER, *, stream: bool, **more: object) -> Any:  # noqa: ANN401
    """Let the client ask for calls of tools, and parse their arguments."""
    body = site.for_sdk(content, **({"tools": STRICT_TOOLS, "max_tokens": ROOM} | more))
    with site.server.client() as client:
        if not stream:
            return client.chat.completions.parse(**body).choices[0]
        with client.chat.completions.stream(**body) as events:
            return events.get_final_completion().choices[0]


STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


# --- structured output ---


@STREAMED
@pytest.mark.parametrize("form", [Forecast, Either, Place, Hour])
def test_pydantic_models(site: Site, form: type[BaseModel], *, stream: bool) -> None:
    answer = parse(site, WEATHER, form, stream=stream).choices[0]
    assert isinstance(answer.message.parsed, form)
    assert answer.finish_reason == "stop"
    assert answer.message.content
    assert form.model_validate_json(answer.message.content) == answer.message.parsed


def test_several_choices_of_one_form(site: Site) -> None:
    answer = parse(site, WEATHER, Forecast, stream=False, n=3, temperature=1, seed=3)
    assert all(isinstance(choice.message.parsed, Forecast) for choice in answer.choices)


@STREAMED
def test_an_answer_that_is_cut_off_says_so(site: Site, *, stream: bool) -> None:
    with pytest.raises(openai.LengthFinishReasonError) as cut:
        parse(site, WEATHER, Forecast, stream=stream, max_tokens=3)
    assert cut.value.completion.choices[0].message.content
    assert cut.value.completion.usage is None or cut.value.completion.usage.completion_tokens == 3


TREE = {"properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}, "required": ["next"], "type": "object"}
COLOURS = [f"colour {number}" for number in range(5000)]


@pytest.mark.parametrize("schema", [TREE, {"enum": COLOURS}], ids=["recursive", "5000 values"])
def test_unusual_schemas(site: Site, schema: dict[str, Any]) -> None:
    answer = site.ask(PARIS, response_format=described(schema), max_tokens=ROOM)
    if answer.choices[0].finish_reason == "stop":  # a tree may grow for ever
        value = json.loads(text_of(answer))
        assert "next" in value if schema is TREE else value in COLOURS


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 2},
        {"const": {"a": [1, None]}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"], "$defs": {"a": {"const": 5}}},
    ],
)
def test_schemas_of_other_things_than_objects(site: Site, schema: dict[str, Any]) -> None:
    content = text_of(site.ask(PARIS, response_format=described(schema), max_tokens=ROOM))
    value = json.loads(content)
    if "const" in schema:
        assert value == schema["const"]
    elif schema["type"] == "object":
        assert value["a"] == 5
    else:
        assert [each in {"a", "b"} for each in value] == [True, True]


def test_any_json_object(site: Site) -> None:
    answer = site.ask("Say hello in JSON", response_format={"type": "json_object"}, max_tokens=60)
    content = text_of(answer)
    assert content.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":  # a small model may go on for ever
        assert isinstance(json.loads(content), dict)


def test_one_of_several_texts(site: Site) -> None:
    choices = ["Paris", "the capital of Italy", 'with "quotes"']
    assert text_of(site.ask(PARIS, guided_choice=choices)) in choices


@pytest.mark.parametrize(
    ("extension", "expected"),
    [
        ({"guided_regex": "[A-Z]{2}-[0-9]{4}"}, "[A-Z]{2}-[0-9]{4}"),
        ({"grammar": 'root ::= word " " word\nword ::= "ab" | "c" [d-f]+ "!"'}, "(ab|c[d-f]+!) (ab|c[d-f]+!)"),
    ],
)
def test_grammars(site: Site, extension: dict[str, str], expected: str) -> None:
    (name,) = extension
    if site.backend == OLLAMA:
        assert refusal(site, extension)[:2] == ("unsupported_parameter", name)
        return
    answer = site.ask(PARIS, **extension, max_tokens=60)
    assert answer.choices[0].finish_reason == "length" or re.fullmatch(expected, text_of(answer))
    assert text_of(answer)


# --- tools ---


@STREAMED
@pytest.mark.parametrize("choice", ["auto", "required", named("get_weather"), named("get_time")])
def test_calls(site: Site, choice: Any, *, stream: bool) -> None:  # noqa: ANN401
    answer = call(site, tool_choice=choice, stream=stream)
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None or not answer.message.content.strip()
    for each in answer.message.tool_calls:
        assert each.id
        if isinstance(choice, dict):
            assert each.function.name == choice["function"]["name"]
        expected = {"get_weather": GetWeather, "get_time": GetTime}[each.function.name]
        assert isinstance(each.function.parsed_arguments, expected)
    if choice == "auto":
        assert json.loads(answer.message.tool_calls[0].function.arguments) == {"city": "Paris"}


def test_arguments_come_in_pieces_that_fit_together(site: Site) -> None:
    body = site.for_sdk(WEATHER, tools=STRICT_TOOLS, tool_choice="required")
    with site.server.client() as client, client.chat.completions.stream(**body) as stream:
        events = list(stream)
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert "".join(event.arguments_delta for event in deltas) == done.arguments
    assert json.loads(done.arguments)


def test_what_the_model_says_without_a_reason_to_call(site: Site) -> None:
    answer = site.ask(PARIS.replace("France", "Italy"), tools=[TOOL])
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert text_of(answer)


def test_no_calls(site: Site) -> None:
    kinds: list[dict[str, Any]] = [{"tools": [TOOL], "tool_choice": "none"}, {"tools": []}, {}]
    for asked in kinds:
        answer = site.ask(WEATHER, **asked)
        assert answer.choices[0].message.tool_calls is None
        assert text_of(answer)


@STREAMED
def test_calls_at_the_same_time(site: Site, *, stream: bool) -> None:
    several = call(site, TWO_CITIES, stream=stream).message.tool_calls
    assert [json.loads(each.function.arguments) for each in several] == [{"city": "Paris"}, {"city": "Rome"}]
    assert len({each.id for each in several}) == 2
    one = call(site, TWO_CITIES, stream=stream, parallel_tool_calls=False).message.tool_calls
    assert [json.loads(each.function.arguments) for each in one] == [{"city": "Paris"}]


def test_only_some_tools_are_allowed(site: Site) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("get_time")]}}
    (made,) = call(site, tool_choice=choice, stream=False, parallel_tool_calls=False).message.tool_calls
    assert isinstance(made.function.parsed_arguments, GetTime)


def test_a_tool_without_parameters(site: Site) -> None:
    tool = {"type": "function", "function": {"name": "get_news"}}
    message: Any = site.ask(WEATHER, tools=[tool], tool_choice="required").choices[0].message
    (made,) = message.tool_calls
    assert made.function.name == "get_news"
    assert isinstance(json.loads(made.function.arguments), dict)


@STREAMED
def test_an_agent(site: Site, *, stream: bool) -> None:
    """Ask, call, result, answer."""
    messages: list[Any] = [{"role": "user", "content": WEATHER}]
    called = []
    while True:
        message = call(site, messages=messages, tools=STRICT_TOOLS, stream=stream).message
        messages.append(message)
        if not message.tool_calls:
            break
        assert len(messages) < 9, messages
        for each in message.tool_calls:
            called.append(each.function.parsed_arguments)
            messages.append({"role": "tool", "tool_call_id": each.id, "content": SUNNY})
    assert called == [GetWeather(city="Paris")]
    assert SUNNY in message.content


@STREAMED
@pytest.mark.parametrize("question", [WEATHER, PARIS])
def test_a_call_or_a_form(site: Site, question: str, *, stream: bool) -> None:
    """With both, the model decides; whatever it says has one of the two forms."""
    message = parse(site, question, Place, tools=STRICT_TOOLS, stream=stream).choices[0].message
    if message.tool_calls:
        assert isinstance(message.tool_calls[0].function.parsed_arguments, GetWeather | GetTime)
    else:
        assert isinstance(message.parsed, Place)


def test_results_in_any_order(site: Site) -> None:
    calls = [
        {
            "id": f"c{city}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": json.dumps({"city": city})},
        }
        for city in ("Paris", "Rome")
    ]
    results = [
        {"role": "tool", "tool_call_id": "cRome", "content": "rainy, 9 degrees"},
        {"role": "tool", "tool_call_id": "cParis", "content": SUNNY},
    ]
    messages = [{"role": "user", "content": TWO_CITIES}, {"role": "assistant", "tool_calls": calls}, *results]
    answer = text_of(site.ask("", messages=messages, tools=[TOOL]))
    if site.backend == LLAMACPP:
        assert "Paris: sunny" in answer
        assert "Rome: rainy" in answer
    else:
        assert SUNNY in answer  # the last one


# --- reasoning ---


def test_thoughts_are_apart(site: Site) -> None:
    answer = site.ask(PARIS, **thinker(site))
    message = answer.choices[0].message
    extra = message.model_extra or {}
    assert extra["reasoning"] == extra["reasoning_content"] != ""
    assert "think>" not in str(message.content) + extra["reasoning"]
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert 0 < (details.reasoning_tokens or 0) <= answer.usage.completion_tokens
    deltas = [choice.delta for chunk in site.stream(PARIS, **thinker(site)) for choice in chunk.choices]
    for name in ("reasoning", "reasoning_content"):
        assert "".join((delta.model_extra or {}).get(name, "") for delta in deltas) == extra["reasoning"]
    assert "".join(delta.content or "" for delta in deltas) == (message.content or "")


def test_thoughts_that_the_operator_hides(site: Site) -> None:
    message = site.ask(PARIS, **thinker(site, "-hidden")).choices[0].message
    assert not {"reasoning", "reasoning_content"} & (message.model_extra or {}).keys()
    assert "think>" not in str(message.content)


def test_thoughts_that_the_operator_leaves_where_they_are(site: Site) -> None:
    message = site.ask(PARIS, **thinker(site, "-raw")).choices[0].message
    assert not {"reasoning", "reasoning_content"} & (message.model_extra or {}).keys()
    assert "</think>" in str(message.content)


@pytest.mark.parametrize(
    "asked", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}], ids=str
)
def test_models_can_be_told_not_to_think(site: Site, asked: dict[str, Any]) -> None:
    answer = site.ask(PARIS, model=site.thinking, max_tokens=ROOM, **asked)
    message = answer.choices[0].message
    assert not {"reasoning", "reasoning_content"} & (message.model_extra or {}).keys()
    assert text_of(answer)


def test_a_form_begins_after_the_thoughts(site: Site) -> None:
    message = parse(site, WEATHER, Place, stream=False, **thinker(site)).choices[0].message
    assert isinstance(message.parsed, Place)
    assert (message.model_extra or {})["reasoning"]


@STREAMED
def test_a_call_comes_after_the_thoughts(site: Site, *, stream: bool) -> None:
    answer = call(site, tool_choice=named("get_time"), stream=stream, **thinker(site))
    assert (answer.message.model_extra or {})["reasoning"]
    (made,) = answer.message.tool_calls
    assert isinstance(made.function.parsed_arguments, GetTime)


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_a_budget_ends_the_thoughts(site: Site, budget: int) -> None:
    asked = {"model": site.thinking, "thinking_budget": budget, "max_tokens": ROOM}
    if site.backend == OLLAMA:
        assert refusal(site, asked)[:2] == ("unsupported_parameter", "thinking_budget")
        return
    usage = site.ask(PARIS, **asked).usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert (usage.completion_tokens_details.reasoning_tokens or 0) <= budget + len(
        "\n</think>\n\n"
    )  # counts as thought


# --- what is refused ---


def refusal(site: Site, asked: dict[str, Any]) -> tuple[str, str, str]:
    """Code, parameter and message of the refusal of a request, whether it is for a stream or not."""
    replies = [site.post(WEATHER, stream=stream, **asked) for stream in (False, True)]
    assert [reply.status_code for reply in replies] == [400, 400], replies[0].text
    first, second = (reply.json()["error"] for reply in replies)
    assert first == second
    return first["code"], first["param"], first["message"]


def said(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": WEATHER}, *messages]}


def made(arguments: str = "{}", call_id: str = "a") -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def function(**more: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **more}}


FAR_AWAY = {"$ref": "https://example.com/schema.json"}
ANSWER_SCHEMA = "response_format.json_schema.schema"
FIRST_ARGUMENTS = "tools[0].function.parameters"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "functions": ({"functions": [{"name": "f"}]}, "functions", "'tools'"),
    "function_call": ({"function_call": {"name": "f"}}, "function_call", "'tool_choice'"),
    "the role function": (said({"role": "function", "name": "f", "content": "5"}), "messages[1].role", "'tool'"),
    "an absent function": ({"tools": [TOOL], "tool_choice": named("launch")}, "tool_choice", "'launch'"),
    "no functions": ({"tool_choice": "required"}, "tool_choice", "'tools'"),
    "twice the same": ({"tools": [TOOL, TOOL]}, "tools[1]", "'get_weather'"),
    "a name with spaces": ({"tools": [function(name="get weather")]}, "tools[0].function.name", "name"),
    "arguments that are a list": (
        {"tools": [function(parameters={"type": "array"})]},
        "tools[0].function.parameters.type",
        '"object"',
    ),
    "a form twice": (
        {"response_format": {"type": "json_object"}, "guided_choice": ["a"]},
        "guided_choice",
        "'response_format'",
    ),
    "not a schema": ({"response_format": described({"type": "thing"})}, ANSWER_SCHEMA, "type"),
    "an unenforceable keyword": (
        {"response_format": described({"type": "object", "propertyNames": {"maxLength": 3}})},
        ANSWER_SCHEMA,
        "propertyNames",
    ),
    "an unenforceable keyword of arguments": (
        {
            "tools": [function(strict=True, parameters={"properties": {"a": {"not": {"type": "string"}}}})],
            "tool_choice": "required",
        },
        FIRST_ARGUMENTS,
        "not",
    ),
    "a pattern that looks around": (
        {"response_format": described({"type": "string", "pattern": "^(?=a).*$"})},
        ANSWER_SCHEMA,
        "pattern",
    ),
    "a contradiction": (
        {"response_format": described({"type": "integer", "minimum": 5, "maximum": 3})},
        ANSWER_SCHEMA,
        "no value",
    ),
    "a schema of a megabyte": ({"response_format": described({"title": "x" * 2**20})}, ANSWER_SCHEMA, "bytes"),
    "a schema elsewhere": ({"response_format": described(FAR_AWAY)}, ANSWER_SCHEMA, "$ref"),
    "a result without a call": (
        said({"role": "tool", "tool_call_id": "a", "content": "5"}),
        "messages[1].tool_call_id",
        "tool_calls",
    ),
    "a call without a result": (said(made(), {"role": "user", "content": "And?"}), "messages[2]", "'a'"),
    "arguments that are no JSON": (
        said(made('{"city": "Par'), {"role": "tool", "tool_call_id": "a", "content": "5"}),
        "messages[1].tool_calls[0].function.arguments",
        "JSON",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_name_what_is_wrong(site: Site, kind: str) -> None:
    asked, param, hint = REFUSED[kind]
    _, named_param, message = refusal(site, asked)
    assert named_param == param
    assert hint in message


def test_the_server_goes_on(site: Site) -> None:
    assert text_of(site.ask(PARIS, max_tokens=20))
