"""Short questions to the daemon: which models it has, which are in memory, what they are.

https://docs.ollama.com/api describes the endpoints.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

import httpx
import orjson

from server.backends.ollama.daemon_errors import (
    broken_off,
    error_of_response,
    garbled,
    message_of,
    silent,
    unreachable,
)
from server.backends.ollama.description import ModelDescription, positive, read_description, strings, text
from server.backends.ollama.pull_lines import pull_error
from server.core.errors import BackendError, InvalidModelSpec, LlmspellError
from server.core.model_spec import parse_model_spec

_MAX_LINE_LEN = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """What the daemon says of a model; ``None`` where it does not say.

    ``context_length`` is in tokens; ``parameters`` as ``8.0B``; ``quantization`` as ``Q4_K_M``.
    """

    context_length: int | None = None
    capabilities: tuple[str, ...] | None = None
    parameters: str | None = None
    quantization: str | None = None


@dataclass(frozen=True, slots=True)
class DaemonModel:
    """A model on the daemon's list.

    ``name`` is the daemon's own spelling, with tag; ``digest`` changes with every version; ``modified_at`` is Unix time
    in seconds; ``remote_host`` is where a cloud model runs.
    """

    name: str
    digest: str
    size_bytes: int
    modified_at: int
    details: ModelDetails
    remote_host: str | None = None


_UNREACHABLE = (httpx.HTTPError, httpx.InvalidURL, TimeoutError)


class Daemon:
    """One Ollama daemon."""

    def __init__(self, url: str, *, connect_timeout: float, answer_timeout: float) -> None:
        """Take the base URL and limits in seconds; nothing is sent yet."""
        self.url = url
        self._answer_timeout = answer_timeout
        self._connect_timeout = connect_timeout
        # the daemon is named by its operator: a proxy for the way to the internet does not lead there
        self._client = httpx.AsyncClient(
            base_url=url, timeout=httpx.Timeout(answer_timeout, connect=connect_timeout), trust_env=False
        )

    async def version(self) -> str:
        """Return the daemon's version; the cheapest way to see that it is there.

        Raises:
            LlmspellError: it does not answer.

        """
        version = text((await self._ask("GET", "/api/version")).get("version"))
        if version is None:
            raise garbled("it does not say its version")
        return version

    async def models(self) -> Sequence[DaemonModel]:
        """Return the list of its models.

        Raises:
            LlmspellError: it does not answer, or not as Ollama does.

        """
        answer = await self._ask("GET", "/api/tags")
        try:
            return [model for row in answer["models"] or () if (model := _model(row)) is not None]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise garbled(f"its list of models has no {error}") from error

    async def running(self) -> Mapping[str, int | None]:
        """Return the models in memory: their names, in lower case, and the bytes they take, if the daemon says.

        Raises:
            LlmspellError: it does not answer, or not as Ollama does.

        """
        answer = await self._ask("GET", "/api/ps")
        try:
            return {str(row["name"]).lower(): positive(row.get("size")) for row in answer["models"] or ()}
        except (KeyError, TypeError, AttributeError) as error:
            raise garbled(f"its list of running models has no {error}") from error

    async def details(self, name: str) -> ModelDetails:
        """Return what a model is.

        Raises:
            LlmspellError: there is no such model, or the daemon does not answer.

        """
        described = await self.describe(name)
        return ModelDetails(described.context_length, described.capabilities)

    async def describe(self, name: str) -> ModelDescription:
        """Return all that the daemon says of a model.

        Raises:
            LlmspellError: there is no such model, or the daemon does not answer.

        """
        return read_description(await self._ask("POST", "/api/show", {"model": name}, model=name))

    async def load(self, name: str, keep_alive: str | float | None = None) -> None:
        """Have a model loaded, however long that takes.

        Raises:
            LlmspellError: the daemon cannot load it.

        """
        # a model is loaded for shifting contexts or not, and would be loaded anew for the first chat
        body = {"model": name, "stream": False, "shift": False} | (
            {} if keep_alive is None else {"keep_alive": keep_alive}
        )
        await self._ask("POST", "/api/generate", body, model=name, is_patient=True)

    async def unload(self, name: str) -> None:
        """Have a model removed from memory; one that is not there is fine.

        Raises:
            LlmspellError: the daemon does not answer, or does not know the model.

        """
        await self._ask("POST", "/api/generate", {"model": name, "stream": False, "keep_alive": 0}, model=name)

    async def pull(self, name: str, silence_timeout: float) -> AsyncGenerator[Mapping[str, Any]]:
        """Have a model downloaded; yields what the daemon says of it, line by line.

        Closing the generator closes the connection, and that ends the download, unless another client of the daemon
        wants it, too. What has come is kept there.

        Args:
            name: the model.
            silence_timeout: how long the daemon may say nothing, in seconds.

        Raises:
            LlmspellError: while iterating; it cannot be downloaded, or the daemon does not answer.

        """
        if self._client.is_closed:
            raise unreachable(self.url, "this server is shutting down")
        timeout = httpx.Timeout(silence_timeout, connect=self._connect_timeout)
        has_begun = False
        try:
            async with self._client.stream("POST", "/api/pull", json={"model": name}, timeout=timeout) as response:
                if response.status_code != HTTPStatus.OK:
                    raise _pull_refused(response, await response.aread(), name)
                has_begun = True
                async for line in _lines(response):
                    if "error" in line:
                        raise pull_error(str(line["error"]), name)
                    yield line
        except httpx.TimeoutException as error:
            raise (silent(silence_timeout) if has_begun else unreachable(self.url, _describe(error))) from error
        except _UNREACHABLE as error:
            raise (broken_off if has_begun else self._unreachable)(_describe(error)) from error

    async def delete(self, name: str) -> None:
        """Delete a model from the daemon's disk.

        Raises:
            LlmspellError: the daemon does not answer, or does not know the model.

        """
        await self._send("DELETE", "/api/delete", {"model": name}, model=name, is_patient=True)

    def reason_of(self, error: LlmspellError) -> str:
        """Return in a few words why a question failed."""
        cause = error.__cause__
        return _describe(cause) if isinstance(cause, _UNREACHABLE) else error.message

    def is_something_else(self, error: LlmspellError) -> bool:
        """Whether a question failed because something answers, but not as Ollama does."""
        return not isinstance(error.__cause__, _UNREACHABLE)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _unreachable(self, reason: str) -> BackendError:
        return unreachable(self.url, reason)

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        model: str = "",
        is_patient: bool = False,
    ) -> dict[str, Any]:
        return _object(await self._send(method, path, body, model=model, is_patient=is_patient))

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        model: str = "",
        is_patient: bool = False,
    ) -> httpx.Response:
        """Ask; who ``is_patient`` waits as long as the daemon works on it."""
        if self._client.is_closed:
            raise unreachable(self.url, "this server is shutting down")
        limit = None if is_patient else self._answer_timeout
        try:
            # httpx has limits for the parts of an exchange, but none for the whole
            async with asyncio.timeout(limit):
                response = await self._client.request(
                    method, path, json=body, timeout=httpx.Timeout(limit, connect=self._connect_timeout)
                )
        except _UNREACHABLE as error:
            raise unreachable(self.url, _describe(error)) from error
        if response.status_code != HTTPStatus.OK:
            raise error_of_response(response.status_code, response.headers, response.content, model)
        return response


def _pull_refused(response: httpx.Response, body: bytes, model: str) -> LlmspellError:
    refusal = error_of_response(response.status_code, response.headers, body, model)
    if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return refusal
    # the sentence is that of a pull, whether the stream had begun or not
    message = message_of(body)
    return refusal if message is None else pull_error(message, model)


async def _lines(response: httpx.Response) -> AsyncGenerator[Mapping[str, Any]]:
    """Read the lines of a stream, each a JSON object."""
    rest = b""
    async for piece in response.aiter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_LINE_LEN:
            raise garbled("a line of its stream does not end")
        for line in whole:
            if line.strip():
                yield _line(line)
    if rest.strip():
        yield _line(rest)


def _line(text: bytes) -> Mapping[str, Any]:
    try:
        line = orjson.loads(text)
    except ValueError as error:
        raise garbled("a line of its stream is not JSON") from error
    if not isinstance(line, dict):
        raise garbled("a line of its stream is not a JSON object")
    return line


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = orjson.loads(response.content)
    except ValueError as error:
        raise garbled(f"its answer to {response.request.url.path} is not JSON") from error
    if not isinstance(answer, dict):
        raise garbled(f"its answer to {response.request.url.path} is not a JSON object")
    if "error" in answer:
        raise BackendError(f"Ollama failed: {answer['error']}")
    return answer


def _describe(error: BaseException) -> str:
    if isinstance(error, httpx.ConnectError):
        return "the connection is refused" if "All connection attempts failed" in str(error) else str(error)
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return "it takes too long"
    return str(error) or type(error).__name__


def _model(row: Mapping[str, Any]) -> DaemonModel | None:
    """Read a row of the list; ``None`` for a name that no spec can stand for."""
    name = row.get("model") or row.get("name")
    if not isinstance(name, str) or not _can_be_named(name):
        _log.debug("the Ollama daemon has a model that cannot be named in requests: %r", name)
        return None
    details = row.get("details")
    values = details if isinstance(details, dict) else {}
    return DaemonModel(
        name=name,
        digest=str(row.get("digest") or name),
        size_bytes=positive(row.get("size")) or 0,
        modified_at=_unix_time(row.get("modified_at")),
        details=ModelDetails(
            positive(values.get("context_length")),
            strings(row.get("capabilities")),
            text(values.get("parameter_size")),
            text(values.get("quantization_level")),
        ),
        remote_host=str(row["remote_host"]) if row.get("remote_host") else None,
    )


def _can_be_named(name: str) -> bool:
    try:
        spec = parse_model_spec(f"local/{name}")
    except InvalidModelSpec:
        return False
    return spec.model == name and spec.backend is None


def _unix_time(text: object) -> int:
    try:
        return int(datetime.fromisoformat(str(text)).timestamp())
    except (ValueError, OverflowError):
        return 0
