"""Generated requests, sensible and wild, four at a time: an answer or a refusal, never a failure."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import CHAT, DEMO, PATIENCE, Server, sse_data

CONTROL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "system\n",
    "[INST]",
    "{{ 7 * 7 }}",
    "{% raw %}",
]
WORDS = st.sampled_from(
    [*CONTROL, "Hello", "What is 2 + 2?", "🦙", "e\u0301", "\u202e", "\x00", "\U000f0000", "\ufeff"]
)
TEXT = st.text(max_size=30) | st.lists(WORDS, max_size=6).map("".join) | st.text(st.characters(), max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
CALL = st.fixed_dictionaries(
    {
        "id": TEXT,
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": TEXT, "arguments": TEXT | st.sampled_from(["{}", '{"city": "Oslo"}'])}
        ),
    }
)
CONTENT = TEXT | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), min_size=1, max_size=3)
MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": CONTENT}),
    st.fixed_dictionaries({"role": st.just("user"), "content": CONTENT, "name": TEXT}),
    st.fixed_dictionaries(
        {
            "role": st.just("assistant"),
            "content": st.none() | TEXT,
            "tool_calls": st.lists(CALL, min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": TEXT, "content": CONTENT}),
)
SENSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "stream": st.booleans(),
    "temperature": st.floats(0, 2) | st.sampled_from([0, 1e-9, 2]),
    "top_p": st.floats(0, 1) | st.sampled_from([0, 1, 1e-9]),
    "top_k": st.integers(0, 50) | st.just(2**31 - 1),
    "min_p": st.floats(0, 1),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": TEXT | st.lists(TEXT, max_size=4),
    "n": st.integers(1, 4) | st.just(16),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "repeat_penalty": st.floats(0.1, 10),
    "logit_bias": st.dictionaries(st.integers(0, 5000).map(str), st.floats(-100, 100), max_size=4),
    "ignore_eos": st.booleans(),
    "logprobs": st.booleans(),
    "user": TEXT,
}
FUNCTION = st.fixed_dictionaries({"name": TEXT | st.just("f")}, optional={"parameters": JSON, "strict": JSON})
DEMANDS: dict[str, st.SearchStrategy[object]] = {
    "tools": st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTION}), max_size=3),
    "tool_choice": st.sampled_from(["none", "auto", "required", {"type": "function", "function": {"name": "f"}}]),
    "parallel_tool_calls": st.booleans(),
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema"])},
        optional={"json_schema": st.fixed_dictionaries({"name": st.just("a"), "schema": JSON})},
    ),
    "grammar": TEXT.map(json.dumps).map("root ::= {}".format),
    "guided_regex": TEXT,
    "guided_choice": st.lists(TEXT, max_size=4),
    "reasoning_effort": st.sampled_from(["none", "low", "high"]),
    "thinking_budget": st.integers(0, 8),
    "chat_template_kwargs": st.dictionaries(TEXT, JSON, max_size=2),
}
VALID = st.fixed_dictionaries(
    {
        "model": st.just(DEMO),
        "messages": st.lists(MESSAGE, min_size=1, max_size=4),
        "max_tokens": st.integers(1, 12),
    },
    optional=SENSIBLE,
)
WILD = st.fixed_dictionaries(
    {"model": st.just(DEMO) | TEXT | JSON, "messages": st.lists(MESSAGE, max_size=3) | JSON, "max_tokens": st.just(4)},
    optional={
        **{name: strategy | JSON for name, strategy in SENSIBLE.items()},
        "top_logprobs": st.integers(-1, 25),
        "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans() | JSON}) | JSON,
        "metadata": st.dictionaries(TEXT, TEXT, max_size=2) | JSON,
        **{name: strategy | JSON for name, strategy in DEMANDS.items()},
        "surprise": JSON,
    },
)
BODY = VALID.map(json.dumps) | WILD.map(json.dumps) | VALID.map(json.dumps).map(lambda text: text[:-3])


def check(body: str, response: httpx.Response) -> None:
    """The answer has the form that its status promises."""
    if response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream"):
        *chunks, end = sse_data(response.text.split("\n"))
        assert end == "[DONE]", (body, response.text)
        parsed = [json.loads(chunk) for chunk in chunks]
        finished = [choice for chunk in parsed for choice in chunk["choices"] if choice["finish_reason"]]
        assert len(finished) == (json.loads(body).get("n") or 1)
    elif response.status_code == 200:
        choices = response.json()["choices"]
        assert all(choice["finish_reason"] in {"stop", "length", "tool_calls"} for choice in choices)
    else:
        assert 400 <= response.status_code < 500, (body, response.text)
        assert response.json()["error"]["message"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bodies=st.lists(BODY, min_size=4, max_size=4))
def test_whatever_is_sent_nothing_fails(demo: Server, bodies: list[str]) -> None:
    async def send_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=PATIENCE, base_url=demo.url) as client:
            return await asyncio.gather(
                *(client.post(CHAT, content=body.encode("utf-8", "surrogatepass")) for body in bodies)
            )

    for body, response in zip(bodies, asyncio.run(send_all()), strict=True):
        check(body, response)


def test_afterwards_all_sequences_are_free(demo: Server) -> None:
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(demo.ask, "Count from 1 to 10", temperature=0, max_tokens=40) for _ in range(16)]
        answers = [future.result().json()["choices"][0]["message"]["content"] for future in asked]
    assert len({*answers}) == 1
    assert demo.ask(n=16, max_tokens=2).status_code == 200
    assert demo.failures == []
    assert demo.process.poll() is None
