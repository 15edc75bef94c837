"""Every error this project raises on purpose, as one tree.

::

    LlmspellError
    ├── InvalidRequest              the request itself is wrong
    │   ├── UnsupportedParameter
    │   ├── ContextLengthExceeded
    │   └── InvalidModelSpec
    ├── Forbidden                   the client may not do that
    │   └── LocalOnly
    ├── ModelNotFound
    ├── ModelInUse                  it cannot be deleted now
    ├── RequestTooLarge
    ├── QueueFull                   try again later
    ├── Unavailable
    │   ├── ModelLoadingFailed
    │   ├── InsufficientMemory
    │   └── Draining
    ├── BackendError                a model or daemon behind this server failed
    │   ├── NoFreeCells
    │   └── InvalidOutput           it answered, but not in the form that the request demands
    ├── TimedOut
    ├── PullFailed                  a model could not be downloaded
    │   ├── HubUnreachable
    │   ├── HubDenied
    │   ├── HubBusy
    │   ├── ChecksumMismatch
    │   └── CannotStore
    │       └── DiskFull
    ├── ServerUnreachable           for clients of this server: it is not there; never reaches HTTP
    └── ConfigurationError          the operator's files or flags are wrong; never reaches HTTP

``server.api.errors`` maps each class to its HTTP status; messages tell the reader what to do next.
"""

from __future__ import annotations


class LlmspellError(Exception):
    """Base of all errors; ``code`` is the machine-readable OpenAI error code."""

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        """Create an error.

        Args:
            message: what happened and what to do about it, for the person who sent the request.
            param: path of the offending request field, as OpenAI writes it (``messages[0].content``).
            retry_after: seconds after which the same request may succeed.

        """
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(LlmspellError):
    """A value in the request is wrong."""

    code = "invalid_value"


class UnsupportedParameter(InvalidRequest):
    """A parameter that the chosen backend cannot honour."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or prompt and ``max_tokens`` together, do not fit the model's context."""

    code = "context_length_exceeded"


class InvalidModelSpec(InvalidRequest):
    """``model`` does not follow the grammar of model specs."""

    code = "invalid_model_spec"

    def __init__(self, message: str) -> None:
        """Create an error about the ``model`` field."""
        super().__init__(message, param="model")


class Forbidden(LlmspellError):
    """The client may not do what it asks for."""

    code = "forbidden"


class LocalOnly(Forbidden):
    """Only clients on this machine may do that."""

    code = "local_only"


class ModelNotFound(LlmspellError):
    """No backend has the model."""

    code = "model_not_found"


class ModelInUse(LlmspellError):
    """The model cannot be deleted while requests use it."""

    code = "model_in_use"


class RequestTooLarge(LlmspellError):
    """The request body exceeds the configured limit."""

    code = "request_too_large"


class QueueFull(LlmspellError):
    """The model's waiting queue is full."""

    code = "queue_full"


class Unavailable(LlmspellError):
    """The server cannot serve the model right now."""


class ModelLoadingFailed(Unavailable):
    """The model file could not be loaded."""

    code = "model_loading_failed"


class InsufficientMemory(Unavailable):
    """The model does not fit into memory."""

    code = "insufficient_memory"


class Draining(Unavailable):
    """The server is shutting down."""

    code = "draining"


class BackendError(LlmspellError):
    """A backend failed while it served the request."""

    code = "backend_error"


class NoFreeCells(BackendError):
    """The KV cache has no room for a batch, of which nothing was computed."""


class InvalidOutput(BackendError):
    """The model's answer does not have the form that the request demands; it is withheld or taken back."""

    code = "invalid_output"


class TimedOut(LlmspellError):
    """The request took longer than it may."""

    code = "timeout"


class PullFailed(LlmspellError):
    """A model could not be downloaded."""

    code = "pull_failed"


class HubUnreachable(PullFailed):
    """The hub that models come from does not answer, fails, or keeps breaking off."""

    code = "hub_unreachable"


class HubDenied(PullFailed):
    """The hub does not give out the model to whoever asks: it is private or gated, or the token is wrong."""

    code = "hub_denied"


class HubBusy(PullFailed):
    """The hub limits how often it is asked."""

    code = "hub_busy"


class ChecksumMismatch(PullFailed):
    """What was downloaded is not what the hub describes; it is deleted."""

    code = "checksum_mismatch"


class CannotStore(PullFailed):
    """The folder for models cannot be written to."""

    code = "cannot_store"


class DiskFull(CannotStore):
    """There is no room on the disk for the model."""

    code = "disk_full"


class ServerUnreachable(LlmspellError):
    """No llmspell server answers at an address, or it broke off within an answer."""

    code = "server_unreachable"


class ConfigurationError(LlmspellError):
    """The configuration cannot be used; shown to the operator at start."""

    code = "invalid_configuration"
