"""What the daemon's failures mean in this project's tree of errors. Pure.

The daemon has no error codes: its sentences are what there is to go by. They are those of
https://github.com/ollama/ollama (``server/routes.go``, ``server/sched.go``, ``llm/llama_server.go``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus

import orjson

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
from server.core.request import ChatRequest, ChoiceFormat

RETRY_SECONDS = 2.0
"""When to come back to a daemon that is down or busy."""
_MAX_QUOTED_LEN = 500


def unreachable(url: str, reason: str) -> BackendError:
    """Build the error for a daemon that does not answer."""
    return BackendError(
        f"The Ollama daemon at {url} does not answer ({reason}). Start it with `ollama serve`, or set [ollama] url.",
        retry_after=RETRY_SECONDS,
    )


def elsewhere(model: str, host: str | None) -> ModelNotFound:
    """Build the error for a model that the daemon only passes on, where that is not allowed."""
    return ModelNotFound(
        f"The model {model!r} does not run on this machine: Ollama passes its requests on to {host}. "
        "Use a model that is downloaded, or set [ollama] allow_cloud_models = true.",
        param="model",
    )


def silent(seconds: float) -> TimedOut:
    """Build the error for an answer that stopped coming."""
    return TimedOut(
        f"The Ollama daemon sent nothing for {seconds:g} s; the request was given up. Loading a large model may take "
        "longer than [ollama] silence_timeout_seconds allows."
    )


def broken_off(reason: str) -> BackendError:
    """Build the error for a connection that broke during an answer."""
    return BackendError(
        f"The Ollama daemon broke off the answer ({reason}); try again.",
        retry_after=RETRY_SECONDS,
    )


def garbled(what: str) -> BackendError:
    """Build the error for an answer that does not follow the daemon's protocol."""
    return BackendError(f"What answers at the configured [ollama] url does not behave as Ollama does: {what}.")


def error_of_response(status: int, headers: Mapping[str, str], body: bytes, model: str) -> LlmspellError:
    """Turn a response that is not 200 into an error."""
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        location = headers.get("location", "nowhere")
        return garbled(f"it redirects to {location[:_MAX_QUOTED_LEN]}, so set [ollama] url to where the daemon is")
    message = message_of(body)
    if message is None:
        return garbled(f"it answers with HTTP status {status} and {_quoted(body)}")
    return error_of_message(message, status, model)


def error_of_message(message: str, status: int, model: str) -> LlmspellError:
    """Turn the daemon's sentence into an error; ``status`` is 500 for one that comes in mid-stream."""
    message = message.strip().rstrip(".")
    if status == HTTPStatus.NOT_FOUND:  # first: the sentence holds a name, and that may hold any word
        return _not_found(model, message)
    lowered = message.lower()
    for phrases, build in _MEANINGS:
        if any(phrase in lowered for phrase in phrases):
            return build(message)
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        return _busy(message)
    if status == HTTPStatus.BAD_REQUEST:
        return InvalidRequest(f"Ollama refuses the request: {message}")
    return BackendError(f"Ollama failed on the request: {message}")


def in_terms_of(request: ChatRequest, error: LlmspellError) -> LlmspellError:
    """Return the error with the parameter that the client gave, where the daemon's sentence fits several."""
    match error.param:
        case "response_format" if request.response_format is None and request.tools:
            error.param = "tools"
        case "response_format" if isinstance(request.response_format, ChoiceFormat):
            error.param = "guided_choice"
        case "reasoning_effort" if request.reasoning_effort is None and request.template_options:
            error.param = "chat_template_kwargs"
        case "max_tokens" if request.max_tokens is None:
            return InvalidOutput(
                f"{error.message} No max_tokens was given: a stop string, the end of the context or the model itself "
                "has cut the call."
            )
    return error


def message_of(body: bytes) -> str | None:
    """Return the sentence in the body of a refusal; ``None`` for a body that is none of the daemon's."""
    try:
        error = orjson.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return None
    # llama-server's own errors come through as JSON in JSON
    for _ in range(3):
        if isinstance(error, dict):
            error = error.get("error", error.get("message"))
        elif isinstance(error, str) and error.startswith("{"):
            try:
                error = orjson.loads(error)
            except ValueError:
                break
    return error[: 4 * _MAX_QUOTED_LEN] if isinstance(error, str) else None


def readable(error: object) -> str:
    """Return the sentence in the ``error`` of a line of a stream."""
    return message_of(orjson.dumps({"error": error})) or "it does not say why"


def _quoted(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return repr(text[:_MAX_QUOTED_LEN]) if text else "no body"


def _not_found(model: str, message: str) -> ModelNotFound:
    return ModelNotFound(
        f"Ollama does not have the model {model!r} ({message}). Download it with `llmspell model pull "
        f"local/{model}@ollama`.",
        param="model",
    )


def _busy(message: str) -> QueueFull:
    return QueueFull(f"Ollama is busy: {message}", retry_after=RETRY_SECONDS)


def _context(message: str) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"The prompt does not fit the model's context: {message}. Shorten the messages, or ask for a longer context "
        "with num_ctx.",
        param="messages",
    )


def _unsupported(param: str) -> Callable[[str], LlmspellError]:
    return lambda message: UnsupportedParameter(f"Ollama refuses '{param}': {message}.", param=param)


def _invalid(param: str) -> Callable[[str], LlmspellError]:
    return lambda message: InvalidRequest(f"Ollama refuses '{param}': {message}.", param=param)


_MEANINGS: tuple[tuple[tuple[str, ...], Callable[[str], LlmspellError]], ...] = (
    # first: the sentences quote the model, which may have written anything
    (
        ("produced output that does not match", "error parsing tool call", "incomplete glm tool call"),
        lambda message: InvalidOutput(f"Ollama cannot read what the model answered: {message}. Try again."),
    ),
    (
        (
            "exceeds the available context",
            "exceed_context_size",
            "longer than the context length",
            "exceeds the context length",
            "exceeds maximum context length",
            "input length exceeds",
        ),
        _context,
    ),
    (("does not support thinking", "think value", "invalid think"), _unsupported("reasoning_effort")),
    (("does not support tools",), _unsupported("tools")),
    (("logprobs is not supported",), _unsupported("logprobs")),
    (("failed to parse tools",), _invalid("tools")),
    (
        ("invalid tool call arguments",),
        lambda message: InvalidRequest(
            f"A function call ended too early at Ollama ({message}); raise max_tokens, or leave it out.",
            param="max_tokens",
        ),
    ),
    (("does not support chat", "does not support completion"), _invalid("model")),
    (
        ("does not support image", "does not support vision", "image input is not supported", "multimodal data"),
        _unsupported("messages"),
    ),
    (("mmproj", "failed to load image", "failed to decode image", "invalid image"), _invalid("messages")),
    (
        ("invalid format", "failed to parse grammar", "json schema", "json_schema", "grammar"),
        _invalid("response_format"),
    ),
    (("maximum pending requests", "server busy"), _busy),
    (
        ("requires more system memory", "out of memory", "insufficient memory", "cudamalloc failed"),
        lambda message: InsufficientMemory(f"Ollama has no memory for the model: {message}."),
    ),
    (
        (
            "unable to load model",
            "error loading model",
            "failed to load model",
            "error starting",
            "process has terminated",
            "process no longer running",
            "timed out waiting for",
        ),
        lambda message: ModelLoadingFailed(f"Ollama cannot load the model: {message}."),
    ),
)
