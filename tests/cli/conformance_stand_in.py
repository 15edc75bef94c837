"""A little server that does all that OpenAI's clients need, but for the one fault that a test gives it."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

MODEL = "local/fine"
CONTEXT = 100
PATIENCE = 60.0
_LOOK_SECONDS = 0.02
"""How long a stop takes at most to be noticed."""
_COUNT = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
_LIMITS = {"temperature": (0, 2), "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2)}
_KNOWN = frozenset(
    {
        "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "seed",
        "stop", "n", "logprobs", "top_logprobs", "logit_bias", "frequency_penalty", "presence_penalty", "tools",
        "tool_choice", "parallel_tool_calls", "response_format", "grammar", "guided_regex", "guided_choice",
        "reasoning_effort",
    }
)  # fmt: skip


class Refused(Exception):
    """A request is wrong."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = "invalid_value") -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}


class StandIn:
    """The server, in threads of its own; a context manager."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.numbers = itertools.count()
        self.num_streams = 0
        self.has_company = threading.Event()
        self.is_closing = threading.Event()
        stand_in = self

        class Handler(_Handler):
            owner = stand_in

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK_SECONDS,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: StandIn
    protocol_version = "HTTP/1.0"  # the end of the connection is the end of an answer

    def has(self, fault: str) -> bool:
        return self.owner.fault == fault

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._guarded(self._get)

    def do_POST(self) -> None:
        self._guarded(self._post)

    def _guarded(self, answer: Any) -> None:  # noqa: ANN401
        try:
            answer()
        except Refused as refused:
            error = dict(refused.error)
            if self.has("errors without param"):
                error["param"] = None
            self._send(refused.status, {"error": error})
        except (BrokenPipeError, ConnectionResetError):
            return  # the client has gone

    def _get(self) -> None:
        row = {"id": MODEL, "object": "model", "created": 1, "owned_by": "test", "context_length": CONTEXT}
        if self.path == "/":
            self._send(200, {"name": "llmspell"})
        elif self.path == "/v1/models":
            rows = [] if self.has("models are not listed") else [row]
            self._send(200, {"object": "list", "data": rows})
        elif self.path == f"/v1/models/{MODEL}" and not self.has("models cannot be retrieved"):
            self._send(200, row)
        elif self.path.startswith("/v1/models/"):
            raise Refused(404, "no such model", "model", "model_not_found")
        elif self.path == "/v1/chat/completions":
            raise Refused(405, "use POST")
        elif self.has("addresses answer in HTML"):
            self._send_bytes(404, b"<html>not found</html>", "text/html")
        else:
            raise Refused(404, "no such address")

    # --- what is refused ---

    def _post(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        try:
            body = json.loads(content)
        except ValueError:
            raise Refused(500 if self.has("bad JSON is a failure") else 400, "no JSON") from None
        if not isinstance(body, dict):
            raise Refused(400, "no object")
        self._check(body)
        if body.get("stream"):
            self._stream(body)
        else:
            self._answer(body)

    def _check(self, body: dict[str, Any]) -> None:
        if self.has("streams go on for nobody") and self.owner.num_streams:
            raise Refused(503, "busy", code="busy")
        model = body.get("model")
        if model != MODEL:
            if self.has("errors come in streams") and body.get("stream"):
                self._begin_stream()
                self._event({"error": {"message": "no such model"}})
                raise BrokenPipeError
            if self.has("any spec is taken"):
                return
            if "@" in str(model):
                raise Refused(400, "no spec", "model", "invalid_model_spec")
            if not self.has("unknown models are replaced"):
                raise Refused(404, "no such model", "model", "model_not_found")
        if not body.get("messages"):
            raise Refused(400, "no messages", None if self.has("messages are not named") else "messages")
        self._check_values(body)
        self._check_demands(body)
        if _length(body) > CONTEXT and not self.has("prompts are cut"):
            raise Refused(400, "too long", "messages", "context_length_exceeded")
        roles = [message["role"] for message in body["messages"]]
        if self.has("no developers") and "developer" in roles:
            raise Refused(400, "unknown role", "messages")

    def _check_values(self, body: dict[str, Any]) -> None:
        dropped = {"functions"} if self.has("functions are dropped") else set()
        for name in body:
            if name not in _KNOWN | dropped and not self.has("unknown parameters are dropped"):
                raise Refused(400, "unknown", name, "unsupported_parameter")
        for name, (low, high) in _LIMITS.items():
            value = body.get(name, 0)
            if not isinstance(value, int | float):
                raise Refused(400, "no number", name)
            is_free = name == "temperature" and self.has("temperatures have no limit")
            is_free = is_free or (name != "temperature" and self.has("penalties have no limit"))
            if not low <= value <= high and not is_free:
                raise Refused(400, "out of range", name)
        for name in ("max_tokens", "max_completion_tokens"):
            if not isinstance(body.get(name, 1), int) or body.get(name, 1) < 1:
                raise Refused(400, "no number above 0", name)
        if self.has("images are a failure") and "image_url" in json.dumps(body["messages"]):
            raise Refused(500, "no images", code=None)

    def _check_demands(self, body: dict[str, Any]) -> None:
        schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema", {})
        if "uniqueItems" in json.dumps(schema) and not self.has("schemas fail open"):
            raise Refused(400, "uniqueItems cannot be enforced", "response_format.json_schema.schema")
        names = [tool["function"]["name"] for tool in body.get("tools", ())]
        choice = body.get("tool_choice", "auto")
        if not isinstance(choice, str) and choice["function"]["name"] not in names:
            if self.has("choices are not looked at"):
                return
            raise Refused(400, "no such function", "tool_choice")
        for message in body["messages"]:
            for call in message.get("tool_calls", ()):
                try:
                    json.loads(call["function"]["arguments"])
                except ValueError:
                    raise Refused(500 if self.has("cut arguments are a failure") else 400, "no JSON") from None

    # --- what is answered ---

    def _answer(self, body: dict[str, Any]) -> None:
        choices = [self._choice(body, index) for index in range(self._num_choices(body))]
        answer = self._head("chat.completion") | {
            "choices": [
                {"index": index, "message": message, "finish_reason": reason, "logprobs": self._logprobs(body, tokens)}
                for index, (message, tokens, reason) in enumerate(choices)
            ],
            "usage": self._usage(body, sum(len(tokens) for _, tokens, _ in choices)),
        }
        if self.has("answers of another kind"):
            answer["object"] = "text_completion"
        self._send(200, answer)

    def _num_choices(self, body: Mapping[str, Any]) -> int:
        return 1 if self.has("n is ignored") else int(body.get("n") or 1)

    def _choice(self, body: Mapping[str, Any], index: int) -> tuple[dict[str, Any], list[str], str]:
        """The message, its tokens, and why it ends."""
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if (called := self._called(body)) is not None:
            several = [called, called | {"id": f"call_{next(self.owner.numbers)}"}]
            calls = several if self.has("calls come together") else [called]
            return message | {"tool_calls": calls}, ["call"], "tool_calls"
        text = self._text(body) + (" again" if index and self.has("choices differ") else "")
        if body.get("reasoning_effort"):
            message["reasoning_content"] = "Let me think."
            if self.has("thoughts are part of the answer"):
                text = f"<think>Let me think.</think>{text}"
        tokens, reason = self._cut(_tokens(text), body)
        return message | {"content": "".join(tokens)}, tokens, reason

    def _cut(self, tokens: list[str], body: Mapping[str, Any]) -> tuple[list[str], str]:
        names = ["max_tokens"] + ([] if self.has("max_completion_tokens is ignored") else ["max_completion_tokens"])
        limit = min([int(body[name]) for name in names if body.get(name)], default=len(tokens))
        reason = "stop"
        if limit < len(tokens):
            tokens, reason = tokens[:limit], "stop" if self.has("length is called stop") else "length"
        stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
        text = "".join(tokens)
        for stop in stops:
            if stop in text:
                end = text.index(stop) + (len(stop) if self.has("stop strings are kept") else 0)
                return _tokens(text[:end]), "length" if self.has("stop is called length") else "stop"
        return tokens, reason

    def _text(self, body: Mapping[str, Any]) -> str:
        if body.get("logit_bias") and not self.has("logit_bias is ignored"):
            return "B B B B"
        if self.has("answers vary"):
            return f"It is {next(self.owner.numbers)}"
        wanted = body.get("response_format", {}).get("type")
        if wanted == "json_object":
            return '```json\n{"a": 1}\n```' if self.has("JSON in a fence") else '{"a": 1}'
        if wanted == "json_schema":
            is_ignored = self.has("schemas are ignored") or (body.get("stream") and self.has("streams ignore schemas"))
            return '{"city": "Paris", "other": 1}' if is_ignored else '{"city": "P", "country": "F"}'
        for name, text in (("grammar", "green"), ("guided_regex", "10:45"), ("guided_choice", "light green")):
            if name in body and not self.has(f"{name} is ignored"):
                return text
        asked = _content(body["messages"][-1])
        return _COUNT if "Count" in asked else asked

    def _called(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        choice = body.get("tool_choice", "auto")
        if not body.get("tools") or body["messages"][-1]["role"] == "tool":
            if self.has("results are not understood") and body["messages"][-1]["role"] == "tool":
                raise Refused(400, "role tool", "messages")
            return None
        name = "get_weather" if isinstance(choice, str) or self.has("another tool is called") else "get_time"
        if choice == "none" and not self.has("none is ignored"):
            return None
        arguments = "{'city': 'Paris'}" if self.has("arguments are no JSON") else '{"city": "Paris"}'
        if self.has("strict is ignored"):
            arguments = '{"city": "Paris", "country": "France"}'
        call_id = "" if self.has("calls have no id") else f"call_{next(self.owner.numbers)}"
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _logprobs(self, body: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any] | None:
        if not body.get("logprobs") or self.has("logprobs are ignored"):
            return None
        sign = 1 if self.has("logprobs are positive") else -1
        return {"content": [_entry(token, sign * 0.5, [_entry(token, -0.5), _entry("x", -1.5)]) for token in tokens]}

    def _usage(self, body: Mapping[str, Any], num_tokens: int) -> dict[str, Any]:
        prompt = _length(body) + (isinstance(body["messages"][-1].get("content"), list) and self.has("parts cost more"))
        total = prompt + num_tokens + self.has("usage does not add up")
        num_thoughts = 1 if body.get("reasoning_effort") and not self.has("thoughts are not counted") else 0
        return {
            "prompt_tokens": prompt,
            "completion_tokens": num_tokens,
            "total_tokens": total,
            "completion_tokens_details": {"reasoning_tokens": num_thoughts},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        created = int(time.time())
        number = 0 if self.has("all answers have one id") else next(self.owner.numbers)
        return {"id": f"chatcmpl-{number}", "object": kind, "created": created, "model": MODEL}

    # --- streams ---

    def _stream(self, body: dict[str, Any]) -> None:
        self.owner.num_streams += 1
        try:
            self._begin_stream()
            if self.has("one stream at a time") and self.owner.num_streams > 1:
                self.owner.has_company.set()
                return
            for event in self._events(body):
                self._event(event)
                if self.has("one stream at a time"):
                    self.owner.has_company.wait(PATIENCE)
                elif self.has("streams go on for nobody") and event["choices"][0]["delta"].get("content"):
                    self.owner.is_closing.wait(PATIENCE)
            if not self.has("no [DONE]"):
                self._write(b"data: [DONE]\n\n")
            if self.has("more after [DONE]"):
                self._event(self._head("chat.completion.chunk") | {"choices": []})
        finally:
            self.owner.num_streams -= 1

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        head = self._head("chat.completion.chunk")
        wants_usage = (body.get("stream_options") or {}).get("include_usage")
        usage: dict[str, Any] = {"usage": None} if wants_usage else {}
        total = 0
        for index in range(self._num_choices(body)):
            message, tokens, reason = self._choice(body, index)
            total += len(tokens)
            for delta in self._deltas(message, tokens):
                logprobs = self._logprobs(body, tokens[:1])
                choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": logprobs}
                if self.has("another id in each chunk"):
                    head = self._head("chat.completion.chunk")
                if self.has("usage in every chunk") and wants_usage:
                    usage = {"usage": self._usage(body, total)}
                yield head | usage | {"choices": [choice]}
            yield from self._ending(head | usage, index, reason)
        if (wants_usage and not self.has("no chunk with usage")) or self.has("usage unasked"):
            yield head | {"choices": [], "usage": self._usage(body, total)}

    def _ending(self, head: dict[str, Any], index: int, reason: str) -> Iterator[dict[str, Any]]:
        ended = {"index": index, "delta": {}, "finish_reason": None if self.has("no finish_reason") else reason}
        yield head | {"choices": [ended]}
        if self.has("text after the end"):
            yield head | {"choices": [{"index": index, "delta": {"content": "!"}, "finish_reason": None}]}

    def _deltas(self, message: dict[str, Any], tokens: Sequence[str]) -> Iterator[dict[str, Any]]:
        yield {"content": ""} if self.has("no role") else {"role": "assistant", "content": ""}
        if "reasoning_content" in message and not self.has("thoughts are not streamed"):
            yield {"reasoning_content": message["reasoning_content"]}
        for call in message.get("tool_calls", ()):
            function = call["function"]
            part = {} if self.has("calls have no index") else {"index": 0}
            yield {"tool_calls": [part | call | {"function": {"name": function["name"], "arguments": ""}}]}
            for piece in (function["arguments"][:5], function["arguments"][5:]):
                yield {"tool_calls": [part | {"function": {"arguments": piece}}]}
        for token in tokens if message["content"] else ():
            yield from ({"content": piece} for piece in self._pieces(token))

    def _pieces(self, token: str) -> list[str]:
        if "🦙" in token and self.has("characters become question marks"):
            return [token.replace("🦙", "\ufffd")]
        return [] if token == " 5," and self.has("streams lose text") else [token]

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()

    def _event(self, event: Mapping[str, Any]) -> None:
        data = json.dumps(event, ensure_ascii=False).encode()
        if self.has("characters are torn"):
            data = data.replace("🦙".encode(), b"\xf0\x9f")
        elif self.has("characters are halved"):
            data = data.replace("🦙".encode(), rb"\ud83e")
        elif self.has("events are no JSON"):
            data = data[:-1]
        self._write(b"data: " + data + b"\n\n")

    # --- bytes ---

    def _send(self, status: int, body: Mapping[str, Any]) -> None:
        self._send_bytes(status, json.dumps(body).encode(), "application/json")

    def _send_bytes(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        if not self.has("no ids of requests"):
            self.send_header("x-request-id", f"req-{next(self.owner.numbers)}")
        self.end_headers()
        self._write(content)

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()


def _tokens(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _length(body: Mapping[str, Any]) -> int:
    return sum(len(_tokens(_content(message))) + 1 for message in body["messages"])


def _entry(token: str, logprob: float, best: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": list(best)}
