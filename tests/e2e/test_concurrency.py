"""Sixteen streams at once: each gets what it gets alone."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from conftest import Start
from openai import AsyncOpenAI
from serving import DEMO, Server, chat_body

GREEDY: list[dict[str, Any]] = [
    chat_body("Hello", temperature=0),
    chat_body("What is the capital of France?", temperature=0),
    chat_body("Tell me a story", temperature=0, max_tokens=200),
    chat_body("Count from 1 to 10", temperature=0, stop=["7"]),
    chat_body("What is 12 + 30?", temperature=0, frequency_penalty=0.5),
    chat_body("What can you do?", temperature=0, extra_body={"repeat_penalty": 1.2}),
    chat_body("Please list the months of the year " * 8, temperature=0, max_tokens=60),
    chat_body("Tell me a joke", top_p=0, n=2),
]
SAMPLED: list[dict[str, Any]] = [
    chat_body("Tell me a story", temperature=1, seed=1, max_tokens=120),
    chat_body("Write a poem", temperature=1.5, seed=2, max_tokens=80),
    chat_body("What is the meaning of all this?", temperature=0.7, top_p=0.9, seed=3),
    chat_body("Who are you?", temperature=1.2, seed=4, extra_body={"top_k": 5}),
    chat_body("What color is the sky?", temperature=2, seed=5, extra_body={"min_p": 0.05}),
    chat_body("Count from 1 to 10", temperature=1, seed=6, presence_penalty=1),
    chat_body("Zzz qqq " * 30, temperature=1, seed=7, max_tokens=90),
    chat_body("Tell me a story", temperature=1, seed=8, stop=[" fox", " owl"], max_tokens=50),
]
BODIES = GREEDY + SAMPLED


async def streamed(client: AsyncOpenAI, body: dict[str, Any]) -> list[str]:
    """Texts of a streamed answer, by choice."""
    texts = [""] * body.get("n", 1)
    async with await client.chat.completions.create(**body, stream=True) as stream:
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    return texts


async def alone(client: AsyncOpenAI) -> list[list[str]]:
    return [await streamed(client, body) for body in BODIES]


async def together(client: AsyncOpenAI) -> list[list[str]]:
    return await asyncio.gather(*(streamed(client, body) for body in BODIES))


@pytest.mark.parametrize("first", ["together", "alone"])
async def test_sixteen_streams_each_get_what_they_get_alone(start: Start, first: str) -> None:
    server = start("--demo")
    async with server.async_client() as client:
        cold = await (together if first == "together" else alone)(client)
        warm_alone = await alone(client)
        warm = [await together(client) for _ in range(2)]
    for batch in [cold, *warm]:
        assert batch[: len(GREEDY)] == warm_alone[: len(GREEDY)]
        # Logits differ in their last bits with the batch, so a draw may once fall on the other side of a border.
        pairs = zip(batch[len(GREEDY) :], warm_alone[len(GREEDY) :], strict=True)
        assert sum(got == expected for got, expected in pairs) >= len(SAMPLED) - 2


async def test_many_more_requests_than_sequences_are_all_answered(demo: Server) -> None:
    async with demo.async_client() as client:
        asked = [{**chat_body("What is the capital of France?"), "temperature": 0, "max_tokens": 12}] * 60
        answers = await asyncio.gather(*(streamed(client, body) for body in asked))
    assert len({*map(str, answers)}) == 1


async def test_streams_advance_together(demo: Server) -> None:
    async with demo.async_client() as client:

        async def pieces(name: str, order: list[str]) -> None:
            body = chat_body("Tell me a story", temperature=0, max_tokens=80)
            async with await client.chat.completions.create(**body, stream=True) as stream:
                async for _ in stream:
                    order += name

        order: list[str] = []
        await asyncio.gather(pieces("a", order), pieces("b", order))
    # one after the other would change once
    assert sum(left != right for left, right in pairwise(order)) > 10


def test_two_models_at_once(start: Start, tiny_model: object) -> None:
    server = start("--demo", "--model", str(tiny_model))
    with server.client() as client:
        assert {model.id for model in client.models.list()} == {DEMO, "local/tiny"}
        for model in (DEMO, "local/tiny"):
            assert client.chat.completions.create(**chat_body(model=model, max_tokens=3)).model == model
