"""The daemon's own sentences, as it was heard to say them, and the errors that they become."""

from __future__ import annotations

import json

import pytest

from server.backends.ollama.daemon_errors import broken_off, error_of_response, readable, silent, unreachable
from server.core.errors import (
    BackendError,
    ContextLengthExceeded,
    InsufficientMemory,
    InvalidOutput,
    InvalidRequest,
    LlmspellError,
    ModelLoadingFailed,
    ModelNotFound,
    QueueFull,
    TimedOut,
    UnsupportedParameter,
)

TOO_LONG = "request (819 tokens) exceeds the available context size (256 tokens), try increasing it"
TOO_LONG_RENDERED = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the "
    "context length in settings, or use a model with a longer context length"
)
NO_VISION = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
NO_MEDIA = "Multimodal data provided, but model does not support multimodal requests."
PARSER = "Unable to generate parser for this template. Automatic parser generation failed: JSON schema error at #: "
FIELD = "Field 'json_schema': \"json_schema\": JSON schema conversion failed:\nJSON schema error at #: "
NO_PROGRAM = "error starting llama-server: llama-server binary not found (checked: /usr/lib/ollama/llama-server)"
EXITED = "llama-server process has terminated: exit status 1: error: cannot open shared object file: No such file"
EOF = "an error was encountered while running the model: unexpected EOF"
NO_PARSE = (
    "llama-server chat error: map[code:500 message:The model produced output that does not match the expected "
    "peg-native format type:server_error]"
)
GARBLED_CALL = 'error parsing tool call: raw=\'{"grammar": "out of memory\', err=unexpected end of JSON input'
BAD_CALL = 'llama-server returned invalid tool call arguments for "get_weather": unexpected end of JSON input'
BAD_TOOL = 'Failed to parse tools: Unsupported tool type: {"type":"","function":{"name":""}}; tools = [\n  {\n  }\n]'


def plain(message: str) -> bytes:
    """As Ollama itself says it."""
    return json.dumps({"error": message}).encode()


def nested(code: int, message: str, kind: str = "invalid_request_error", **more: int) -> bytes:
    """As llama-server says it: the daemon passes that on as a text."""
    return plain(json.dumps({"error": {"code": code, "message": message, "type": kind, **more}}))


SENTENCES: list[tuple[int, bytes, type[LlmspellError], str | None]] = [
    (400, nested(400, TOO_LONG, "exceed_context_size_error", n_ctx=256), ContextLengthExceeded, "messages"),
    (400, plain(TOO_LONG_RENDERED), ContextLengthExceeded, "messages"),
    (400, plain('"demo" does not support thinking'), UnsupportedParameter, "reasoning_effort"),
    (400, plain('invalid think value: "yes" (must be "high", "low")'), UnsupportedParameter, "reasoning_effort"),
    (400, plain("registry.ollama.ai/library/demo-plain:latest does not support tools"), UnsupportedParameter, "tools"),
    (400, nested(400, "logprobs is not supported with tools + stream"), UnsupportedParameter, "logprobs"),
    (500, nested(500, BAD_TOOL, "server_error"), InvalidRequest, "tools"),
    (400, plain('"demo-embed" does not support chat'), InvalidRequest, "model"),
    (500, nested(500, NO_VISION, "server_error"), UnsupportedParameter, "messages"),
    (400, nested(400, NO_MEDIA), UnsupportedParameter, "messages"),
    (
        500,
        plain('invalid format: "5"; expected "json" or a valid JSON Schema object'),
        InvalidRequest,
        "response_format",
    ),
    (400, nested(400, PARSER + "unrecognized type nonsense"), InvalidRequest, "response_format"),
    (400, nested(400, FIELD + "cannot resolve $ref #/nope, nope not found"), InvalidRequest, "response_format"),
    (503, plain("server busy, please try again.  maximum pending requests exceeded"), QueueFull, None),
    (429, plain("too many requests"), QueueFull, None),
    (500, plain("model requires more system memory (9.1 GiB) than is available (3.2 GiB)"), InsufficientMemory, None),
    (500, plain("cudaMalloc failed: out of memory"), InsufficientMemory, None),
    (500, plain("llama runner process has terminated: exit status 2"), ModelLoadingFailed, None),
    (500, plain("timed out waiting for llama runner to start - progress 0.00"), ModelLoadingFailed, None),
    (500, plain("unable to load model: /root/.ollama/models/blobs/sha256-0"), ModelLoadingFailed, None),
    (500, plain(EXITED), ModelLoadingFailed, None),
    (500, plain(NO_PROGRAM), ModelLoadingFailed, None),
    (404, plain("model 'demo' not found"), ModelNotFound, "model"),
    (404, plain('model "demo" not found, try pulling it first'), ModelNotFound, "model"),
    (404, plain("model 'grammar-json-schema:latest' not found"), ModelNotFound, "model"),
    (404, plain("model 'think value does not support tools' not found"), ModelNotFound, "model"),
    (400, plain("time: missing unit in duration"), InvalidRequest, None),
    (400, plain("invalid model name"), InvalidRequest, None),
    (400, nested(400, "Cannot have 2 or more assistant messages at the end of the list."), InvalidRequest, None),
    (400, nested(400, "penalty_repeat must be finite and greater than 0"), InvalidRequest, None),
    (500, plain('option "num_predict" must be of type integer'), BackendError, None),
    (500, plain(EOF), BackendError, None),
    (500, plain(NO_PARSE), InvalidOutput, None),
    (500, plain(GARBLED_CALL), InvalidOutput, None),
    (500, plain(BAD_CALL), InvalidRequest, "max_tokens"),
    (500, nested(500, "tools param requires --jinja flag", "server_error"), BackendError, None),
    (401, plain("unauthorized"), BackendError, None),
    (403, plain("ollama cloud is disabled: remote model is unavailable"), BackendError, None),
]


@pytest.mark.parametrize(
    ("status", "body", "kind", "param"), SENTENCES, ids=[body[10:70].decode() for _, body, *_ in SENTENCES]
)
def test_sentences(status: int, body: bytes, kind: type[LlmspellError], param: str | None) -> None:
    error = error_of_response(status, {}, body, "demo:latest")

    assert type(error) is kind
    assert error.param == param
    assert "Ollama" in error.message or kind is ContextLengthExceeded
    assert '{"error"' not in error.message


@pytest.mark.parametrize("body", [nested(400, TOO_LONG), plain(TOO_LONG)])
def test_the_sentence_is_told(body: bytes) -> None:
    message = error_of_response(400, {}, body, "demo").message

    assert TOO_LONG in message
    assert "num_ctx" in message


def test_a_missing_model_comes_with_the_command_to_get_it() -> None:
    message = error_of_response(404, {}, plain("model 'a' not found"), "a:latest").message

    assert "`llmspell model pull local/a:latest@ollama`" in message


@pytest.mark.parametrize(
    "error", [unreachable("http://a", "why"), broken_off("why"), error_of_response(503, {}, plain("server busy"), "a")]
)
def test_when_to_come_back(error: LlmspellError) -> None:
    assert error.retry_after is not None
    assert error.retry_after > 0


def test_what_the_operator_can_do() -> None:
    assert "ollama serve" in unreachable("http://a:1", "refused").message
    assert "http://a:1" in unreachable("http://a:1", "refused").message
    assert isinstance(silent(5), TimedOut)
    assert "silence_timeout_seconds" in silent(5).message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(status: int) -> None:
    error = error_of_response(status, {"location": "https://login.example/?next=" + "x" * 5000}, b"", "demo")

    assert isinstance(error, BackendError)
    assert "https://login.example/" in error.message
    assert len(error.message) < 1000
    assert "nowhere" in error_of_response(status, {}, b'{"error":"no"}', "demo").message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"404 page not found",
        b"<html><body>Bad Gateway</body></html>",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'"error"',
        b"{}",
        b'{"error":null}',
        b'{"error":5}',
        b'{"error":[]}',
        b'{"error":{}}',
        b'{"error":{"error":{"error":{"error":{"error":"deep"}}}}}',
        b"[" * 100_000,
        b'{"error"' * 20_000,
    ],
)
@pytest.mark.parametrize("status", [204, 400, 404, 500, 503])
def test_bodies_without_a_sentence(status: int, body: bytes) -> None:
    error = error_of_response(status, {}, body, "demo")

    assert type(error) is BackendError
    assert str(status) in error.message
    assert len(error.message) < 1000


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("plain", "plain"),
        ({"message": "one"}, "one"),
        ({"error": {"message": "two"}}, "two"),
        ('{"error":{"message":"text"}}', "text"),
        ("{not JSON", "{not JSON"),
        (None, "it does not say why"),
        ({}, "it does not say why"),
    ],
)
def test_errors_within_errors(error: object, sentence: str) -> None:
    assert readable(error) == sentence


def test_long_sentences_are_cut() -> None:
    assert len(error_of_response(500, {}, plain("x" * 100_000), "demo").message) < 3000
