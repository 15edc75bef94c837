"""A stand-in for the Ollama daemon: a real HTTP server that tests script and benchmarks load.

In a test::

    with FakeOllama(FakeModel("demo")) as daemon:
        daemon.on(Cut(after=2), path="/api/chat")
        ...
        daemon.wait_for(lambda: daemon.num_running == 0)

As a process: ``python -m fakes.ollama --port 11434``, with ``tests`` on the path, or ``python tests/fakes``. A process
is scripted over ``/_fake/``, see ``control.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Self

from fakes.catalogue import Catalogue, FakeModel, Name, many_models
from fakes.control import Control
from fakes.daemon import Daemon, Manner
from fakes.records import PATIENCE, Recorded, Records
from fakes.script import (
    Action,
    Answer,
    Body,
    Call,
    CloseIdle,
    Cut,
    Garbage,
    Insert,
    Pause,
    Reframe,
    Reply,
    Rule,
    Speaker,
    error_line,
)
from fakes.wire import Connection

__all__ = [
    "DEFAULT_MODELS",
    "Action",
    "Answer",
    "Body",
    "Call",
    "CloseIdle",
    "Cut",
    "FakeModel",
    "FakeOllama",
    "Garbage",
    "Insert",
    "Manner",
    "Pause",
    "Recorded",
    "Reframe",
    "Reply",
    "Rule",
    "error_line",
]

DEFAULT_MODELS = (
    FakeModel("demo", ("completion",)),
    FakeModel("demo-tools", ("completion", "tools")),
    FakeModel("demo-think", ("completion", "tools", "thinking")),
    FakeModel("demo-vision", ("completion", "vision")),
    FakeModel("demo-embed", ("embedding",)),
)


class FakeOllama:
    """The stand-in, on a loop in a thread of its own; a context manager.

    Everything here may be called from any thread. ``manner`` are the fields of ``Manner``.
    """

    def __init__(
        self,
        *models: FakeModel,
        port: int = 0,
        num_models: int = 0,
        reply: Reply | Speaker | None = None,
        record_limit: int | None = None,
        offered: Iterable[FakeModel] = (),
        **manner: Any,  # noqa: ANN401
    ) -> None:
        """Without models it has ``DEFAULT_MODELS``; ``num_models`` adds that many more. ``offered`` can be pulled."""
        self.port = port
        self.records = Records(record_limit)
        self._catalogue = Catalogue((*(models or DEFAULT_MODELS), *many_models(num_models)))
        self._daemon = Daemon(self._catalogue, Manner(**manner), self.records, reply or Reply(), offered)
        self._daemon.control = Control(self).handle
        self._connections: set[Connection] = set()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; after a ``stop`` on the same port as before, with no model loaded."""
        started = threading.Event()
        failures: list[OSError] = []

        def run() -> None:
            try:
                asyncio.run(self.serve(started.set))
            except OSError as error:
                failures.append(error)
                started.set()

        self._thread = threading.Thread(target=run, name="stand-in for Ollama", daemon=True)
        self._thread.start()
        assert started.wait(PATIENCE), "the stand-in does not start"
        if failures:
            raise failures[0]

    def stop(self) -> None:
        """Stop listening and cut all connections."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(PATIENCE)
            self._thread = None
        if self.records.failures:
            raise self.records.failures.pop()

    async def serve(self, started: Callable[[], object]) -> None:
        """Serve on the running loop until stopped."""
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._daemon.memory.clear()
        for rule in self._daemon.rules:
            rule.renew()

        def connect() -> Connection:
            return Connection(self.records, self._daemon.answer, self._connections)

        server = await self._loop.create_server(connect, "127.0.0.1", self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        started()
        await self._stopped.wait()
        server.close()
        for connection in list(self._connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # for the connections to learn of it
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    def on(
        self,
        action: Action,
        *,
        path: str | None = None,
        model: str | None = None,
        reused: bool | None = None,
        skip: int = 0,
        times: int | None = 1,
    ) -> Rule:
        """Do this to requests that match; ``times=None`` keeps doing it. Rules apply together, in their order."""
        return self.add_rule(Rule(action, path, model, reused, skip, times))

    def add_rule(self, rule: Rule) -> Rule:
        """Have this rule as well."""
        rule.post = self._post
        rule.model = None if rule.model is None else Name.parse(rule.model).key
        self._daemon.rules = [*self._daemon.rules, rule]
        return rule

    def remove(self, rule: Rule) -> None:
        """Let the requests in its pauses go on, and match no more."""
        self._daemon.rules = [kept for kept in self._daemon.rules if kept is not rule]
        rule.release()

    def clear_rules(self) -> None:
        for rule in self._daemon.rules:
            self.remove(rule)

    def say(self, reply: Reply | Speaker) -> None:
        """Answer with this from now on; models with a reply of their own keep it."""
        self._daemon.reply = reply

    def add_model(self, model: FakeModel) -> None:
        """Have this model from now on, in place of one of its name."""
        self._post(lambda: self._catalogue.add(model))

    def offer(self, model: FakeModel) -> None:
        """Have this model to be pulled from now on."""
        self._post(lambda: self._daemon.registry.offer(model))

    def remove_model(self, name: str) -> None:
        """Have this model no more, in memory neither."""
        self._post(lambda: self._catalogue.remove(name))
        self.unload(name)

    def unload(self, name: str) -> None:
        """Drop the model from memory, as an operator does it with another client."""
        self._post(lambda: self._daemon.memory.unload(Name.parse(name).key))

    def close_connections(self, *, idle_only: bool = True) -> None:
        """Close the connections now: those that wait for a request, or all."""
        self._post(lambda: self._close(idle_only=idle_only))

    @property
    def loaded(self) -> list[str]:
        """The models in memory."""
        return self._daemon.memory.names

    @property
    def requests(self) -> list[Recorded]:
        """All requests so far."""
        return self.records.requests

    @property
    def chats(self) -> list[Recorded]:
        """The requests to ``/api/chat`` so far."""
        return [request for request in self.requests if request.path == "/api/chat"]

    @property
    def num_running(self) -> int:
        """Chats and generations that are being answered."""
        return self.records.num_running

    def wait_for(self, predicate: Callable[[], object], what: str = "it", timeout: float = PATIENCE) -> None:
        """Wait until the predicate holds; it is asked again at every request, line, end and disconnect."""
        self.records.wait_for(predicate, what, timeout)

    def _close(self, *, idle_only: bool) -> None:
        for connection in list(self._connections):
            if not (idle_only and connection.answering):
                connection.transport.close()

    def _post(self, act: Callable[[], object]) -> None:
        """Do it on the stand-in's thread, and wait for it."""
        if self._thread is None or threading.current_thread() is self._thread:
            act()
            return
        done = threading.Event()

        def run() -> None:
            try:
                act()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(PATIENCE), "the stand-in hangs"


def main(arguments: list[str] | None = None) -> None:
    """Run the stand-in as a process; it says where it listens on standard output."""
    parser = argparse.ArgumentParser(description="A stand-in for the Ollama daemon.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", action="append", default=[], metavar="NAME[=CAPABILITY,...]")
    parser.add_argument("--offer", action="append", default=[], metavar="NAME", help="a model that can be pulled")
    parser.add_argument("--pull-interval", type=float, default=0.0, help="seconds between the lines of a pull")
    parser.add_argument("--num-models", type=int, default=0, help="this many more models")
    parser.add_argument("--tokens", type=int, help="length of each reply (default: it repeats the last message)")
    parser.add_argument("--tokens-per-second", type=float, default=0.0, help="of each stream (default: all at once)")
    parser.add_argument("--parallel", type=int, help="requests that a model works on at once")
    parser.add_argument("--num-ctx", type=int, default=4096)
    parser.add_argument("--older", action="store_true", help="a daemon whose list lacks capabilities")
    options = parser.parse_args(arguments)
    reply = None if options.tokens is None else Reply(tokens=[" word"] * options.tokens)
    daemon = FakeOllama(
        *(_model(text) for text in options.model),
        port=options.port,
        num_models=options.num_models,
        reply=reply,
        record_limit=1000,
        tokens_per_second=options.tokens_per_second,
        parallel=options.parallel,
        num_ctx=options.num_ctx,
        older=options.older,
        offered=[_model(text) for text in options.offer],
        pull_interval=options.pull_interval,
    )
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        run: Callable[..., None] = asyncio.run
    else:
        run = uvloop.run
    with suppress(KeyboardInterrupt):
        run(daemon.serve(lambda: print(daemon.url, flush=True)))  # noqa: T201


def _model(text: str) -> FakeModel:
    name, _, capabilities = text.partition("=")
    return FakeModel(name, tuple(capabilities.split(",")) if capabilities else ("completion",))


if __name__ == "__main__":
    main()
