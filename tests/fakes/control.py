"""How a stand-in in a process of its own is scripted: requests under ``/_fake/``, which no real daemon answers.

- ``POST /_fake/rules`` with ``{"do": "cut", "after": 2, "path": "/api/chat", "times": 1}`` adds a rule, returns its id.
- ``POST /_fake/release`` with ``{"id": 0}`` ends the pauses of a rule; ``DELETE /_fake/rules`` removes all rules.
- ``POST /_fake/reply`` with the fields of ``Reply``; ``POST /_fake/models`` with those of ``FakeModel``,
  ``POST /_fake/offer`` with those of one that can be pulled.
- ``POST /_fake/close`` closes the idle connections.
- ``GET /_fake/requests``, ``GET /_fake/state``: what was recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fakes.catalogue import FakeModel
from fakes.script import Call, Reply, Rule
from fakes.wire import Exchange

if TYPE_CHECKING:
    from fakes.ollama import FakeOllama


class Control:
    """Does over HTTP what tests in the same process do by calls."""

    def __init__(self, daemon: FakeOllama) -> None:
        self._daemon = daemon
        self._rules: list[Rule] = []

    def handle(self, exchange: Exchange) -> dict[str, Any]:
        request = exchange.request
        body = request.body if isinstance(request.body, dict) else {}
        match request.method, request.path.removeprefix("/_fake/"):
            case "POST", "rules":
                self._rules.append(self._daemon.add_rule(Rule.from_json(body)))
                return {"id": len(self._rules) - 1}
            case "DELETE", "rules":
                self._daemon.clear_rules()
            case "POST", "release":
                self._rules[body["id"]].release()
            case "POST", "reply":
                calls = [Call(**call) for call in body.pop("calls", [])]
                self._daemon.say(Reply(**body, calls=calls))
            case "POST", "models":
                capabilities = tuple(body.pop("capabilities", ("completion",)))
                self._daemon.add_model(FakeModel(**body, capabilities=capabilities))
            case "POST", "offer":
                self._daemon.offer(FakeModel(**body))
            case "POST", "close":
                self._daemon.close_connections()
            case "GET", "requests":
                told = [found for found in self._daemon.requests if not found.path.startswith("/_fake/")]
                return {"requests": [found.as_json() for found in told]}
            case "GET", "state":
                return self._state()
            case unknown:
                raise ValueError(unknown)
        return {}

    def _state(self) -> dict[str, Any]:
        records = self._daemon.records
        names = ("num_running", "peak_running", "num_accepted", "num_open", "num_loads")
        return {name: getattr(records, name) for name in names} | {"loaded": self._daemon.loaded}
