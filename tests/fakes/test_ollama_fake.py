"""The stand-in and, where there is one, a real daemon: what holds for both.

``LLMSPELL_TEST_OLLAMA_URL`` and ``LLMSPELL_TEST_OLLAMA_MODEL`` name a daemon and a model of it that can chat and has a
chat template of its own; what holds for the stand-in is then asked of it as well.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fakes.client import CITY, PIXEL, WEATHER, Client, text_of
from fakes.described import complaints
from fakes.ollama import Body, Call, FakeModel, FakeOllama, Reply

URL, MODEL = "LLMSPELL_TEST_OLLAMA_URL", "LLMSPELL_TEST_OLLAMA_MODEL"
REAL_URL, REAL_MODEL = os.environ.get(URL, ""), os.environ.get(MODEL, "")  # tests do not see the developer's variables

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
JSON_TYPE = "application/json; charset=utf-8"


def speaker(body: Body) -> Reply:
    return Reply(calls=[Call("weather", {"city": "Paris"})] if "weather" in str(body.get("messages")) else ())


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    model = FakeModel("demo", ("tools", "completion"), listed=("completion",))  # its template is read for requests only
    with FakeOllama(model, reply=speaker) as daemon:
        yield daemon


@pytest.fixture(params=["fake", "real"])
def ollama(request: pytest.FixtureRequest, fake: FakeOllama) -> Iterator[Client]:
    url, model = fake.url, "demo"
    if request.param == "real":
        url, model = REAL_URL, REAL_MODEL
        if not (url and model):
            pytest.skip(f"{URL} and {MODEL} name no daemon")
    with httpx.Client(base_url=url, timeout=120) as http:
        yield Client(http, model.removesuffix(":latest"))


def test_says_that_it_runs(ollama: Client) -> None:
    response = ollama.http.get("/")
    assert (response.text, response.headers["content-type"]) == ("Ollama is running", "text/plain; charset=utf-8")
    assert ollama.http.head("/").status_code == 200
    assert set(ollama.http.get("/api/version").json()) == {"version"}


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [("GET", "/api/nothing", 404, "404 page not found"), ("GET", "/api/chat", 405, "405 method not allowed")],
)
def test_other_paths_and_methods(ollama: Client, method: str, path: str, status: int, text: str) -> None:
    response = ollama.http.request(method, path)
    assert (response.status_code, response.text) == (status, text)
    assert response.headers["content-type"] == "text/plain"


@pytest.mark.parametrize("headers", [{"Host": "evil.example.com"}, {"Origin": "http://evil.example.com"}])
def test_strangers_are_not_served(ollama: Client, headers: dict[str, str]) -> None:
    response = ollama.http.get("/api/version", headers=headers)
    assert (response.status_code, response.content) == (403, b"")
    assert "content-type" not in response.headers


def test_lists_its_models(ollama: Client) -> None:
    response = ollama.http.get("/api/tags")
    assert response.headers["content-type"] == JSON_TYPE
    rows = {row["name"]: row for row in response.json()["models"]}
    row = rows[f"{ollama.model}:latest"]
    assert set(row) == {"name", "model", "modified_at", "size", "digest", "details", "capabilities"}
    assert row["model"] == row["name"]
    described = {"parent_model", "format", "family", "families", "parameter_size", "quantization_level"}
    assert set(row["details"]) == described | {"context_length", "embedding_length"}


def test_shows_a_model(ollama: Client) -> None:
    shown = ollama.post("/api/show", {"model": ollama.model.upper()}).json()
    expected = {"modelfile", "template", "details", "model_info", "tensors", "capabilities", "modified_at"}
    assert expected <= set(shown) <= expected | {"parameters"}
    assert "completion" in shown["capabilities"]
    assert shown["model_info"][f"{shown['details']['family']}.context_length"] > 0


def test_a_whole_answer(ollama: Client) -> None:
    answer = ollama.chat()
    described = {"model", "created_at", "message", "done", "done_reason", "total_duration", "load_duration"}
    counts = {"prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"}
    assert set(answer) == described | counts
    assert (answer["model"], answer["done"], answer["done_reason"]) == (ollama.model, True, "stop")
    assert TIME.fullmatch(answer["created_at"])
    assert set(answer["message"]) == {"role", "content"}
    assert all(isinstance(answer[name], int) and answer[name] > 0 for name in counts)


def test_a_stream(ollama: Client) -> None:
    *lines, last = ollama.lines()
    assert all(set(line) == {"model", "created_at", "message", "done"} and not line["done"] for line in lines)
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert text_of(lines) == ollama.chat()["message"]["content"]
    assert last["eval_count"] == len(lines) + 1  # the end of the turn is a token too


@pytest.mark.parametrize("num_predict", [1, 3])
def test_ends_at_the_limit(ollama: Client, num_predict: int) -> None:
    last = ollama.lines(options={"temperature": 0, "num_predict": num_predict})[-1]
    assert (last["done_reason"], last["eval_count"]) == ("length", num_predict)


def test_a_limit_of_0_is_one_of_1(ollama: Client) -> None:
    assert ollama.chat(options={"num_predict": 0})["eval_count"] == 1


def test_ends_before_a_stop_string(ollama: Client) -> None:
    text = ollama.chat()["message"]["content"]
    stop = text[6:11]
    lines = ollama.lines(options={"temperature": 0, "seed": 1, "num_predict": 40, "stop": [stop]})
    assert text_of(lines) == text[: text.find(stop)]
    assert lines[-1]["done_reason"] == "stop"


@pytest.mark.parametrize("top", [None, 0, 1, 3])
def test_log_probabilities(ollama: Client, top: int | None) -> None:
    wanted = {"logprobs": True} | ({} if top is None else {"top_logprobs": top})
    *lines, last = ollama.lines(**wanted)
    assert "logprobs" not in last
    entries = [entry for line in lines for entry in line["logprobs"]]
    assert "".join(entry["token"] for entry in entries) == text_of(lines)
    for entry in entries:
        assert set(entry) == {"token", "logprob", "bytes"} | ({"top_logprobs"} if top else set())
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry.get("top_logprobs", ())) == (top or 0)
    whole = ollama.chat(**wanted)
    assert [entry["token"] for entry in whole["logprobs"]] == [entry["token"] for entry in entries]


def test_without_logprobs_none_are_told(ollama: Client) -> None:
    assert "logprobs" not in ollama.chat(top_logprobs=2)


def test_answers_in_json(ollama: Client) -> None:
    answer = ollama.chat(format=CITY, options={"temperature": 0, "num_predict": 300})
    assert not list(complaints(json.loads(answer["message"]["content"]), CITY, {}))


def test_a_format_leaves_no_room_for_calls(ollama: Client) -> None:
    answer = ollama.chat(content="What is the weather in Paris?", tools=[WEATHER], format=CITY)
    assert "tool_calls" not in answer["message"]
    assert not list(complaints(json.loads(answer["message"]["content"]), CITY, {}))


def test_calls_a_tool_with_its_last_line(ollama: Client) -> None:
    more = {"content": "What is the weather in Paris?", "tools": [WEATHER]}
    *lines, last = ollama.lines(**more, options={"temperature": 0, "num_predict": 100})
    if "tool_calls" not in last["message"]:
        pytest.skip("the model calls no tool")
    (call,) = last["message"]["tool_calls"]
    assert (lines, last["done_reason"], set(call)) == ([], "stop", {"id", "function"})
    assert call["function"] == {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}
    limits = {"temperature": 0, "num_predict": last["eval_count"] - 1}  # all but the end of the turn
    whole = ollama.chat(**more, options=limits)
    assert (whole["done_reason"], len(whole["message"]["tool_calls"])) == ("length", 1)
    cut = ollama.post("/api/chat", ollama.body(**more) | {"options": {"temperature": 0, "num_predict": 12}})  # type: ignore[arg-type]
    text = 'llama-server returned invalid tool call arguments for "weather": unexpected end of JSON input'
    assert (cut.status_code, cut.json()) == (500, {"error": text})


def test_goes_on_where_the_assistant_left_off(ollama: Client) -> None:
    begun = [*ollama.body()["messages"], {"role": "assistant", "content": "The capital of"}]
    assert ollama.chat(messages=begun)["message"]["content"].startswith("The capital of")
    response = ollama.post("/api/chat", ollama.body(messages=[*begun, begun[-1]]))
    assert response.status_code == 400
    assert "Cannot have 2 or more assistant messages at the end of the list." in response.json()["error"]


@pytest.mark.parametrize("name", ["{0}:latest", "library/{0}", "registry.ollama.ai/library/{0}:latest", " {0} "])
def test_a_model_has_several_names(ollama: Client, name: str) -> None:
    asked = name.format(ollama.model.upper())
    assert ollama.chat(model=asked)["model"] == asked


REFUSED: list[tuple[str, object, int, str]] = [
    ("/api/chat", {"model": "nope", "messages": []}, 404, "model 'nope' not found"),
    ("/api/generate", {"model": "nope"}, 404, "model 'nope' not found"),
    ("/api/show", {"model": "nope"}, 404, "model 'nope:latest' not found"),
    ("/api/chat", {}, 400, "model is required"),
    ("/api/show", {}, 400, "model is required"),
    ("/api/generate", {}, 404, "model '' not found"),
    ("/api/chat", {"model": "a b//c"}, 400, "invalid model name"),
    ("/api/chat", {"model": "x:local:cloud"}, 400, 'use either :local or :cloud, not both: "x:local:cloud"'),
    ("/api/chat", [], 400, "json: cannot unmarshal array into Go value of type api.ChatRequest"),
    (
        "/api/chat",
        {"messages": "hi"},
        400,
        "json: cannot unmarshal string into Go struct field ChatRequest.messages of type []api.Message",
    ),
    (
        "/api/chat",
        {"messages": [{"content": [{"type": "text"}]}]},
        400,
        "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string",
    ),
    (
        "/api/chat",
        {"stream": "no"},
        400,
        "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool",
    ),
    (
        "/api/chat",
        {"options": []},
        400,
        "json: cannot unmarshal array into Go struct field ChatRequest.options of type map[string]interface {}",
    ),
    (
        "/api/chat",
        {"tools": {"a": 1}},
        400,
        "json: cannot unmarshal object into Go struct field ChatRequest.tools of type api.Tools",
    ),
    ("/api/chat", {"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ("/api/chat", {"keep_alive": "abc"}, 400, 'time: invalid duration "abc"'),
    ("/api/chat", {"keep_alive": "300"}, 400, 'time: missing unit in duration "300"'),
    ("/api/chat", {"keep_alive": True}, 400, "Unsupported type: 'bool'"),
    (
        "/api/chat",
        {"think": "yes"},
        400,
        'invalid think value: "yes" (must be "high", "medium", "low", "max", true, or false)',
    ),
    ("/api/chat", {"messages": [{"images": ["%%%"]}]}, 400, "illegal base64 data at input byte 0"),
    (
        "/api/chat",
        {"messages": [{"images": [f"data:image/png;base64,{PIXEL}"]}]},
        400,
        "illegal base64 data at input byte 4",
    ),
    (
        "/api/chat",
        {"messages": [{"tool_calls": [{"function": {"name": "f", "arguments": '{"a":1}'}}]}]},
        400,
        "Value looks like object, but can't find closing '}' symbol",
    ),
]


@pytest.mark.parametrize(("path", "body", "status", "text"), REFUSED)
def test_refusals(ollama: Client, path: str, body: object, status: int, text: str) -> None:
    response = ollama.post(path, body)
    assert (response.status_code, response.json()) == (status, {"error": text})
    assert response.headers["content-type"] == JSON_TYPE


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "missing request body"),
        (b"{nope", "invalid character 'n' looking for beginning of object key string"),
        (b'{"model":x}', "invalid character 'x' looking for beginning of value"),
        (b'{"model":"demo"', "unexpected EOF"),
    ],
)
def test_what_is_no_json(ollama: Client, raw: bytes, text: str) -> None:
    response = ollama.http.post("/api/chat", content=raw)
    assert (response.status_code, response.json()) == (400, {"error": text})


@pytest.mark.parametrize(
    ("more", "status", "text"),
    [
        ({"think": True}, 400, '"{model}" does not support thinking'),
        ({"options": {"num_ctx": "512"}}, 500, 'option "num_ctx" must be of type integer'),
        ({"options": {"temperature": "hot"}}, 500, 'option "temperature" must be of type float32'),
        ({"options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
        ({"options": {"stop": [5]}}, 500, 'option "stop" must be of an array of strings'),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_of_the_model(ollama: Client, more: dict[str, Any], status: int, text: str, stream: bool) -> None:  # noqa: FBT001
    response = ollama.post("/api/chat", ollama.body() | more | {"stream": stream})
    assert (response.status_code, response.json()) == (status, {"error": text.format(model=ollama.model)})
    assert response.headers["content-type"] == JSON_TYPE


LATE: list[tuple[dict[str, Any], int, str | dict[str, object]]] = [
    ({"format": "xml"}, 500, r'invalid format: "\"xml\""; expected "json" or a valid JSON Schema object'),
    ({"format": 5}, 500, 'invalid format: "5"; expected "json" or a valid JSON Schema object'),
    (
        {"messages": [{"role": "user", "content": "x", "images": [PIXEL]}]},
        500,
        {
            "code": 500,
            "message": "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            "type": "server_error",
        },
    ),
    (
        {"options": {"repeat_penalty": 0}},
        400,
        {
            "code": 400,
            "message": "Failed to initialize samplers: penalty_repeat must be finite and greater than 0",
            "type": "invalid_request_error",
        },
    ),
    (
        {"tools": [WEATHER], "logprobs": True},
        400,
        {"code": 400, "message": "logprobs is not supported with tools + stream", "type": "invalid_request_error"},
    ),
    (
        {"format": {"type": "nonsense"}},
        400,
        {
            "code": 400,
            "message": "Unable to generate parser for this template. Automatic parser generation failed: "
            "JSON schema error at #: unrecognized type nonsense",
            "type": "invalid_request_error",
        },
    ),
]


@pytest.mark.parametrize(("more", "status", "expected"), LATE)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_of_the_runner(
    ollama: Client,
    more: dict[str, Any],
    status: int,
    expected: str | dict[str, object],
    stream: bool,  # noqa: FBT001
) -> None:
    response = ollama.post("/api/chat", ollama.body() | more | {"stream": stream})
    error = response.json()["error"]
    told = error if isinstance(expected, str) else json.loads(error)["error"]
    assert (response.status_code, told) == (status, expected)
    assert response.headers["content-type"] == ("application/json" if stream else JSON_TYPE)
    assert ("content-length" in response.headers) is not stream


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_a_prompt_that_does_not_fit(ollama: Client, truncate: bool, shift: bool) -> None:  # noqa: FBT001
    more = {"truncate": truncate, "shift": shift, "options": {"num_ctx": 256, "num_predict": 4}}
    response = ollama.post("/api/chat", ollama.body("The capital of France is Paris. " * 100) | more)
    assert response.status_code == 400
    error = json.loads(response.json()["error"])["error"]
    assert error["n_prompt_tokens"] > error["n_ctx"] == 256
    text = f"request ({error['n_prompt_tokens']} tokens) exceeds the available context size (256 tokens), "
    assert error["message"] == text + "try increasing it"
    assert (error["type"], error["code"]) == ("exceed_context_size_error", 400)


def test_messages_that_do_not_fit_are_left_out(ollama: Client) -> None:
    old = [{"role": "user", "content": "The capital of France is Paris. " * 10}] * 10
    more = {"messages": [*old, *ollama.body()["messages"]], "shift": False}
    options = {"num_ctx": 256, "num_predict": 4}
    assert ollama.chat(**more, truncate=True, options=options)["prompt_eval_count"] < 256
    assert ollama.post("/api/chat", ollama.body() | more | {"truncate": False, "options": options}).status_code == 400


def test_loads_and_unloads(ollama: Client) -> None:
    def running() -> list[str]:
        return [row["name"] for row in ollama.http.get("/api/ps").json()["models"]]

    empties: dict[str, dict[str, object]] = {"/api/generate": {}, "/api/chat": {"messages": []}}
    for path, empty in empties.items():
        loaded = ollama.post(path, {"model": ollama.model, "keep_alive": "1h30m"} | empty).json()
        assert (loaded["done"], loaded["done_reason"]) == (True, "load")
        assert f"{ollama.model}:latest" in running()
        unloaded = ollama.post(path, {"model": ollama.model, "keep_alive": 0} | empty).json()
        assert (unloaded["done"], unloaded["done_reason"]) == (True, "unload")
        assert set(unloaded) == {"model", "created_at", "done", "done_reason"} | (
            {"message"} if empty else {"response"}
        )


def test_says_what_runs(ollama: Client) -> None:
    ollama.chat(options={"num_ctx": 512, "num_predict": 1})
    row = next(row for row in ollama.http.get("/api/ps").json()["models"] if row["name"] == f"{ollama.model}:latest")
    expected = {"name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length"}
    assert (set(row), row["context_length"]) == (expected, 512)


def test_generates(ollama: Client) -> None:
    body = {"model": ollama.model, "prompt": "What is the capital of France?", "options": {"temperature": 0}}
    lines = [json.loads(line) for line in ollama.post("/api/generate", body).text.splitlines()]
    whole = ollama.post("/api/generate", body | {"stream": False}).json()
    assert "".join(line["response"] for line in lines) == whole["response"]
    assert set(lines[0]) == {"model", "created_at", "response", "done"}
    assert isinstance(lines[-1]["context"], list)
