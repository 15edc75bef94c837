"""How tests of the stand-in ask a daemon, the stand-in or a real one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "sunny": {"type": "boolean"}},
    "required": ["city", "sunny"],
}


@dataclass
class Client:
    """A daemon, real or not, and what to ask of it."""

    http: httpx.Client
    model: str

    def body(self, content: str = "What is the capital of France?", **more: object) -> dict[str, Any]:
        options = {"temperature": 0, "seed": 1, "num_predict": 40}
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "options": options, "stream": False} | more

    def post(self, path: str, body: object) -> httpx.Response:
        return self.http.post(path, json=body)

    def chat(self, **more: object) -> dict[str, Any]:
        """One whole answer."""
        response = self.post("/api/chat", self.body(**more))  # type: ignore[arg-type]
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def lines(self, **more: object) -> list[dict[str, Any]]:
        """The lines of a stream."""
        response = self.post("/api/chat", self.body(**more) | {"stream": True})  # type: ignore[arg-type]
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.headers["transfer-encoding"] == "chunked"
        return [json.loads(line) for line in response.text.splitlines()]


def text_of(lines: list[dict[str, Any]]) -> str:
    return "".join(line["message"]["content"] for line in lines)
