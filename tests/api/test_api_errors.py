from __future__ import annotations

import json

import pytest

from server.api.errors import error_response, field_path, status_and_type
from server.core import errors as core


def all_errors(base: type[core.LlmspellError] = core.LlmspellError) -> list[type[core.LlmspellError]]:
    return [base, *(error for sub in base.__subclasses__() for error in all_errors(sub))]


EXPECTED = {
    core.LlmspellError: 500,
    core.InvalidRequest: 400,
    core.UnsupportedParameter: 400,
    core.ContextLengthExceeded: 400,
    core.InvalidModelSpec: 400,
    core.Forbidden: 403,
    core.LocalOnly: 403,
    core.ModelNotFound: 404,
    core.ModelInUse: 409,
    core.RequestTooLarge: 413,
    core.QueueFull: 429,
    core.Unavailable: 503,
    core.ModelLoadingFailed: 503,
    core.InsufficientMemory: 503,
    core.Draining: 503,
    core.BackendError: 502,
    core.NoFreeCells: 502,
    core.InvalidOutput: 502,
    core.TimedOut: 504,
    core.PullFailed: 502,
    core.HubUnreachable: 502,
    core.HubDenied: 403,
    core.HubBusy: 503,
    core.ChecksumMismatch: 502,
    core.CannotStore: 507,
    core.DiskFull: 507,
    core.ServerUnreachable: 500,
    core.ConfigurationError: 500,
}


@pytest.mark.parametrize("error", [error for error in all_errors() if error.__module__ == core.__name__])
def test_every_error_has_its_status(error: type[core.LlmspellError]) -> None:
    assert status_and_type(error("why"))[0] == EXPECTED[error]


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (core.QueueFull("", retry_after=0.2), {"retry-after": "1", "retry-after-ms": "200"}),
        (core.QueueFull(""), {}),
        (core.Draining("", retry_after=5), {"retry-after": "5", "retry-after-ms": "5000"}),
        (core.ModelLoadingFailed(""), {"x-should-retry": "false", "retry-after": "60"}),
        (core.InsufficientMemory(""), {"x-should-retry": "false", "retry-after": "60"}),
        (core.InsufficientMemory("", retry_after=1.5), {"retry-after": "2", "retry-after-ms": "1500"}),
        (core.TimedOut(""), {}),
        (core.TimedOut("", retry_after=10), {"retry-after": "10", "retry-after-ms": "10000"}),
        (core.LocalOnly(""), {}),
        (core.LlmspellError(""), {"x-should-retry": "false"}),
        (core.BackendError(""), {}),
        (core.InvalidRequest(""), {}),
    ],
)
def test_says_when_a_retry_can_help(error: core.LlmspellError, headers: dict[str, str]) -> None:
    sent = error_response(error).headers

    assert {name: sent[name] for name in sent if "retry" in name} == headers


def test_a_message_that_is_not_unicode_is_still_json() -> None:
    assert b"\\ud800" in bytes(error_response(core.ModelLoadingFailed("\ud800.gguf")).body)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (core.InsufficientMemory("full"), 503, "insufficient_memory"),
        (core.TimedOut("slow"), 504, "timeout"),
        (core.LocalOnly("remote"), 403, "local_only"),
    ],
)
def test_codes_are_part_of_the_interface(error: core.LlmspellError, status: int, code: str) -> None:
    response = error_response(error)

    assert response.status_code == status
    assert json.loads(bytes(response.body))["error"]["code"] == code


def test_paths_are_written_as_openai_does() -> None:
    assert field_path(("messages", 0, "content", "(array)", 2, "text")) == "messages[0].content[2].text"
