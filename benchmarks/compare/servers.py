"""Starts and stops the servers that are compared, all with the same model, threads, slots and cells."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from compare.load import HOST, BadAnswer, ChatClient, HttpBody, http_request
from compare.prompts import user

START_TIMEOUT_SECONDS = 300.0
STOP_TIMEOUT_SECONDS = 5.0
POLL_SECONDS = 0.2
LOG_TAIL_CHARACTERS = 2000


class CannotStart(Exception):
    """A server ended at once or did not answer in time; the message says what it wrote."""


@dataclass(frozen=True)
class Resources:
    """What every server gets; ``num_cells`` are tokens of KV cache for all slots together."""

    model: Path
    threads: int
    num_slots: int
    num_cells: int
    context_len: int


@dataclass(frozen=True)
class ServerSpec:
    """How a server is started.

    ``command`` and the texts of ``files`` are templates, filled in by ``fill``. ``files`` are written to the server's
    own directory under their names.
    """

    name: str
    command: str
    files: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """A server that has answered once."""

    name: str
    chat: ChatClient
    command: str
    process_id: int


def fill(template: str, resources: Resources, port: int, directory: Path) -> str:
    """Replace ``{model}``, ``{port}``, ``{threads}``, ``{slots}``, ``{cells}``, ``{context}`` and ``{directory}``.

    Other braces stay as they are, so that JSON and TOML need no escapes.
    """
    values: Mapping[str, object] = {
        "model": resources.model,
        "port": port,
        "threads": resources.threads,
        "slots": resources.num_slots,
        "cells": resources.num_cells,
        "context": resources.context_len,
        "directory": directory,
    }
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


_MODEL = "model."


def llmspell(name: str, python: str, root: Path, settings: Mapping[str, str]) -> ServerSpec:
    """Return this project's server from a checkout.

    ``settings`` are keys of ``[llamacpp]``, or of the model's table where they begin with ``model.``; values are TOML.
    """
    of_model = {key.removeprefix(_MODEL): value for key, value in settings.items() if key.startswith(_MODEL)}
    of_pool = {key: value for key, value in settings.items() if not key.startswith(_MODEL)}
    table = {"max_sequences": "{slots}", "threads": "{threads}", **of_pool}
    model = {"kv_cells": "{cells}", "context_length": "{context}", **of_model}
    lines = [
        "[ollama]",
        "enabled = false",
        "[llamacpp]",
        *(f"{key} = {value}" for key, value in table.items()),
        '[models."local/compared"]',
        'path = "{model}"',
        "preload = true",
        *(f"{key} = {value}" for key, value in model.items()),
    ]
    return ServerSpec(
        name,
        f"{shlex.quote(python)} -m server serve --port {{port}} --log-level warning --config {{directory}}/config.toml",
        {"config.toml": "\n".join(lines) + "\n"},
        root,
        {"PYTHONPATH": str(root)},
    )


def llama_server(name: str, binary: str, flags: str) -> ServerSpec:
    """Return llama.cpp's own server; ``flags`` come last and win."""
    command = (
        f"{shlex.quote(binary)} -m {{model}} --host {HOST} --port {{port}} -np {{slots}} -c {{cells}} "
        f"--threads {{threads}} --kv-unified {flags}"
    )
    return ServerSpec(name, command.strip())


def example_server(name: str, python: str, script: Path) -> ServerSpec:
    """Return the example server of llama-cpp-python: a script that reads a JSON file."""
    config = """{
  "server": {"host": "127.0.0.1", "port": {port}},
  "model": {
    "alias": "compared", "path": "{model}", "n_ctx": {cells}, "n_seq_max": {slots},
    "n_batch": 512, "n_ubatch": 512, "threads": {threads}, "threads_batch": {threads}, "kv_unified": true,
    "max_output_tokens": {context}
  }
}
"""
    command = f"{shlex.quote(python)} {shlex.quote(str(script))} -C {{directory}}/config.json"
    return ServerSpec(name, command, {"config.json": config})


@contextmanager
def running(spec: ServerSpec, resources: Resources) -> Iterator[Server]:
    """Run a server until the block ends; yields once it has answered a question. Raises ``CannotStart``."""
    with tempfile.TemporaryDirectory() as directory, free_port() as port:
        command = fill(spec.command, resources, port, Path(directory))
        for name, text in spec.files.items():
            (Path(directory) / name).write_text(fill(text, resources, port, Path(directory)))
        log = Path(directory) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                shlex.split(command),
                cwd=spec.directory,
                env={**os.environ, **spec.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Server(spec.name, _wait_until_answering(process, port, log), command, process.pid)
        finally:
            _stop(process)


@contextmanager
def free_port() -> Iterator[int]:
    """Yield a port that was free a moment ago."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    yield port


def _wait_until_answering(process: subprocess.Popen[bytes], port: int, log: Path) -> ChatClient:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    problem = "nothing listens"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise CannotStart(f"it ended with status {process.returncode}:\n{_tail(log)}")
        try:
            return _first_answer(port)
        except (OSError, BadAnswer) as error:
            problem = str(error)
            time.sleep(POLL_SECONDS)
    raise CannotStart(f"no answer within {START_TIMEOUT_SECONDS:.0f} s ({problem}):\n{_tail(log)}")


def _first_answer(port: int) -> ChatClient:
    """Ask something, which also warms caches up, and return the client."""
    chat = ChatClient(port, _model_name(port))
    asyncio.run(chat([user("Hello")], 4, {}))
    return chat


def _model_name(port: int) -> str:
    pieces = []
    with socket.create_connection((HOST, port), timeout=10) as connection:
        connection.sendall(http_request("GET", "/v1/models"))
        while received := connection.recv(1 << 16):
            pieces.append((0.0, received))
    body = HttpBody(pieces)
    try:
        return str(json.loads(body.content)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise BadAnswer(f"status {body.status} and no list of models") from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
