"""The daemon's endpoints."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fakes.catalogue import Catalogue, FakeModel, Name, Reference, show, tags
from fakes.inference import Inference, check_capabilities, messages_of
from fakes.lines import Telling, empty_answer, encode
from fakes.loading import Memory, Runner
from fakes.reading import Refused, check_options, read
from fakes.records import Records
from fakes.registry import Registry
from fakes.script import Reply, Rule, Speaker
from fakes.wire import Exchange

_ORIGINS = ("app", "file", "tauri", "vscode-webview", "vscode-file")
_LOCAL = ("localhost", "127.0.0.1", "0.0.0.0")  # names in a header, nothing to listen on


@dataclass(frozen=True)
class Manner:
    """How the stand-in behaves all the time.

    ``older`` lists models without capabilities and context lengths. ``parallel`` is how many requests a model works on
    at once (all, by default; the real daemon does one), ``max_queue`` how many more may wait. ``cloud`` is
    ``enabled``, ``disabled`` or ``signed-out``. A pull says ``pull_lines`` lines for each blob, one every
    ``pull_interval`` seconds.
    """

    version: str = "0.30.0"
    older: bool = False
    num_ctx: int = 4096
    tokens_per_second: float = 0.0
    parallel: int | None = None
    max_queue: int | None = None
    cloud: str = "enabled"
    pull_lines: int = 10
    pull_interval: float = 0.0


class Daemon:
    """Answers requests; lives on the stand-in's loop."""

    def __init__(
        self,
        catalogue: Catalogue,
        manner: Manner,
        records: Records,
        reply: Reply | Speaker,
        offered: Iterable[FakeModel] = (),
    ) -> None:
        self.catalogue = catalogue
        self.registry = Registry(catalogue, offered, manner.pull_lines)
        self.memory = Memory(records, manner.parallel, manner.max_queue)
        self.reply = reply
        self.rules: list[Rule] = []
        self.control: Callable[[Exchange], Mapping[str, Any]] | None = None
        self._manner = manner
        self._num_answered = 0
        self._routes: dict[tuple[str, str], Callable[[Exchange], Awaitable[None]]] = {
            ("GET", "/"): self._root,
            ("GET", "/api/version"): self._version,
            ("GET", "/api/tags"): self._list,
            ("GET", "/api/ps"): self._running,
            ("POST", "/api/show"): self._show,
            ("POST", "/api/chat"): self._chat,
            ("POST", "/api/generate"): self._generate,
            ("POST", "/api/pull"): self._pull,
            ("DELETE", "/api/delete"): self._delete,
        }
        for path in ("/", "/api/version", "/api/tags"):
            self._routes["HEAD", path] = self._routes["GET", path]

    async def answer(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.path.startswith("/_fake/") and self.control is not None:
            try:
                await exchange.send_json(self.control(exchange))
            except (KeyError, TypeError, ValueError) as error:
                await exchange.send_json({"error": repr(error)}, 400)
            return
        model = Name.parse(request.model).key
        exchange.rules = [rule for rule in self.rules if rule.takes(request.path, model, reused=request.reused)]
        await exchange.early()
        route = self._routes.get((request.method, request.path))
        if not _is_allowed(request.headers):
            await exchange.send(403, b"", "")
        elif route is not None:
            await self._attempt(exchange, route)
        elif any(path == request.path for _, path in self._routes):
            await exchange.send(405, b"405 method not allowed", "text/plain")
        else:
            await exchange.send(404, b"404 page not found", "text/plain")

    async def _attempt(self, exchange: Exchange, route: Callable[[Exchange], Awaitable[None]]) -> None:
        try:
            await route(exchange)
        except Refused as refused:
            body = exchange.request.body
            streamed = refused.late and isinstance(body, dict) and body.get("stream") is not False
            await exchange.send_json(refused.body, refused.status, as_stream=streamed)

    async def _root(self, exchange: Exchange) -> None:
        await exchange.send(200, b"Ollama is running", "text/plain; charset=utf-8")

    async def _version(self, exchange: Exchange) -> None:
        await exchange.send_json({"version": self._manner.version})

    async def _list(self, exchange: Exchange) -> None:
        await exchange.send_json(tags(self.catalogue, older=self._manner.older))

    async def _running(self, exchange: Exchange) -> None:
        await exchange.send_json({"models": self.memory.rows()})

    async def _show(self, exchange: Exchange) -> None:
        body = read(exchange.request.raw, "ShowRequest")
        asked = body.get("model") or body.get("name") or ""
        if not asked:
            raise Refused(400, "model is required")
        reference = _reference(asked, 400, "model is required")
        model = self._find(reference, asked, reference.name.shortest, "remote model details are unavailable")
        await exchange.send_json(show(model, list(self.catalogue).index(model)))

    async def _pull(self, exchange: Exchange) -> None:
        body = read(exchange.request.raw, "PullRequest")
        reference = _reference(str(body.get("model") or body.get("name") or ""), 400, "invalid model name")
        lines = self.registry.pull(reference.name)
        if body.get("stream", True):
            await exchange.stream((encode(line) + b"\n" for line in lines), self._manner.pull_interval)
            return
        last = list(lines)[-1]
        await exchange.send_json(last, 500 if "error" in last else 200)

    async def _delete(self, exchange: Exchange) -> None:
        body = read(exchange.request.raw, "DeleteRequest")
        asked = str(body.get("model") or body.get("name") or "")
        model = self.catalogue.find(_reference(asked, 400, "invalid model name").name)
        if model is None:
            raise Refused(404, f"model '{asked}' not found")
        self.registry.remove(model)  # what is in memory stays there
        await exchange.send(200, b"", "")

    async def _chat(self, exchange: Exchange) -> None:
        await self._infer(exchange, read(exchange.request.raw, "ChatRequest"), chat=True)

    async def _generate(self, exchange: Exchange) -> None:
        await self._infer(exchange, read(exchange.request.raw, "GenerateRequest"), chat=False)

    async def _infer(self, exchange: Exchange, body: dict[str, Any], *, chat: bool) -> None:
        started = time.time_ns()
        asked = str(body.get("model", ""))
        if not 0 <= body.get("top_logprobs", 0) <= 20:
            raise Refused(400, "top_logprobs must be between 0 and 20")
        missing = (400, "model is required") if chat else (404, f"model '{asked}' not found")
        model = self._find(_reference(asked, *missing), asked, asked, "remote model is unavailable")
        some = bool(messages_of(body, chat=chat))
        if not some and body.get("keep_alive") == 0:
            self.memory.expire(model)
            await exchange.send_json(empty_answer(asked, "unload", chat=chat))
            return
        thinks = check_capabilities(model, body, asked, chat=chat)
        options = dict(model.parameters) | body.get("options", {})
        check_options(options)
        runner = Runner.wanted(model, options, self._manner.num_ctx, shift=body.get("shift", True))
        loaded = await self.memory.enter(exchange, model, runner, body.get("keep_alive"))
        try:
            if not some:
                await exchange.send_json(empty_answer(asked, "load", chat=chat))
                return
            inference = Inference(model, body, options, loaded.runner.num_ctx, chat=chat)
            async with self.memory.slot(loaded):
                speech = inference.speech(model.reply or self.reply, thinks=thinks)
                self._num_answered += 1
                telling = Telling(asked, speech, model, body, started, time.time_ns(), self._num_answered, chat=chat)
                await self._tell(exchange, telling, stream=body.get("stream", True))
        finally:
            self.memory.leave(loaded)

    async def _tell(self, exchange: Exchange, telling: Telling, *, stream: bool) -> None:
        rate = self._manner.tokens_per_second
        interval = 1 / rate if rate else 0.0
        if stream:
            await exchange.stream(telling.lines(), interval)
            return
        if interval:
            await asyncio.sleep(interval * telling.speech.num_evaluated)
        await exchange.send_json(telling.whole())

    def _find(self, reference: Reference, asked: str, shown: str, unavailable: str) -> FakeModel:
        found = self.catalogue.find(reference.name)
        if reference.source == "cloud":
            if self._manner.cloud == "disabled":
                raise Refused(403, f"ollama cloud is disabled: {unavailable}")
            if self._manner.cloud == "signed-out":
                raise Refused(401, "unauthorized", signin_url="https://ollama.com/connect?name=x&key=y")
            remote = (model for model in self.catalogue if model.remote_model == reference.base)
            found = next(remote, None) or self.catalogue.find(Reference.literal(asked).name)
        if found is None or (reference.source == "local" and found.remote_host):
            raise Refused(404, f"model '{shown}' not found")
        return found


def _reference(asked: str, status: int, missing: str) -> Reference:
    if not asked.strip():
        raise Refused(status, missing)
    reference = Reference.parse(asked)
    if reference.source and Reference.parse(reference.base).source:
        raise Refused(400, f'use either :local or :cloud, not both: "{asked}"')
    if not reference.name.is_valid:
        raise Refused(400, "invalid model name")
    return reference


def _is_allowed(headers: Mapping[str, str]) -> bool:
    """Whether the daemon talks to a client that calls it by this name, and from this page."""
    origin = urlsplit(headers.get("origin", ""))
    if origin.scheme and origin.scheme not in _ORIGINS and origin.hostname not in _LOCAL:
        return False
    name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if name in {"", "localhost"} or name.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_private or address.is_loopback or address.is_unspecified
