"""Several models in a budget that holds two of them, used by many clients at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import Start
from gguf_shapes import LlamaShape, write_llama
from openai import AsyncOpenAI
from serving import PATIENCE, Server

from server.pool.config import ModelConfig, PoolConfig
from server.pool.plan import Machine, make_plan

NAMES = ("red", "green", "blue")
SHAPE = LlamaShape(layers=4, width=256, heads=4, kv_heads=2, hidden=768, vocabulary=2048, context=1024)
NUM_CLIENTS, NUM_REQUESTS = 20, 500
PROMPTS = ("Hello", "What is the capital of France?", "Tell me a story.", "Count to ten, please.")
NUM_TOKENS = 12


@dataclass
class Folder:
    """Three models of the same size, and the bytes that one of them takes."""

    paths: dict[str, Path]
    size: int

    def config(self, num_models: float, *, wait: float = 1.0, **keys: object) -> str:
        """A configuration with a budget for so many of them."""
        lines = [
            "[llamacpp]",
            f"memory_budget = {int(num_models * self.size)}",
            f"longest_wait_seconds = {wait}",
            "max_sequences = 4",
        ]
        for name, path in self.paths.items():
            lines += [f'[models."local/{name}"]', f'path = "{path}"']
            lines += [f"{key} = {value}" for key, value in keys.items()]
        return "\n".join(lines)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    directory = tmp_path_factory.mktemp("pool")
    paths = {name: directory / f"{name}.gguf" for name in NAMES}
    for seed, path in enumerate(paths.values()):
        write_llama(path, LlamaShape(**vars(SHAPE) | {"seed": seed}))
    config = ModelConfig(str(paths["red"]))
    plan = make_plan(config, PoolConfig(max_sequences=4), Machine.this(), {"CPU": 2**40})
    return Folder(paths, plan.predicted["CPU"])


@dataclass
class Watch:
    """What was seen of the server while clients used it."""

    server: Server
    taken: list[int] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    is_over: bool = False

    async def sample(self) -> None:
        process = psutil.Process(self.server.process.pid)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=PATIENCE) as client:
            while not self.is_over:
                devices = (await client.get("/admin/models")).json()["devices"]
                self.taken += [device["taken_bytes"] for device in devices if device["name"] == "CPU"]
                self.resident.append(process.memory_info().rss)
                await asyncio.sleep(0.02)


def body(model: str, prompt: str) -> dict[str, Any]:
    """A request whose answer is always the same."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": f"local/{model}", "messages": messages, "temperature": 0, "max_tokens": NUM_TOKENS}


async def ask(client: AsyncOpenAI, model: str, prompt: str, *, stream: bool) -> tuple[str, str | None]:
    """Text and finish reason of an answer."""
    create: Any = client.chat.completions.create
    answer = await create(**body(model, prompt), extra_body={"ignore_eos": True}, stream=stream)
    if not stream:
        return answer.choices[0].message.content, answer.choices[0].finish_reason
    text, reason = "", None
    async for chunk in answer:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason


async def test_five_hundred_requests_for_three_models_where_two_fit(folder: Folder, start: Start) -> None:
    server = start(config=folder.config(2.5))
    async with server.async_client(timeout=PATIENCE) as client:
        right = {(name, prompt): await ask(client, name, prompt, stream=False) for name in NAMES for prompt in PROMPTS}
        assert len({text for text, _ in right.values()}) == len(right), "answers do not tell models apart"
        watch = Watch(server)
        sampling = asyncio.create_task(watch.sample())
        wrong: list[object] = []

        async def use(seed: int) -> None:
            choose = random.Random(seed)
            for _ in range(NUM_REQUESTS // NUM_CLIENTS):
                name, prompt = choose.choice(NAMES), choose.choice(PROMPTS)
                found = await ask(client, name, prompt, stream=choose.random() < 0.5)
                if found != right[name, prompt]:
                    wrong.append((name, prompt, found, right[name, prompt]))

        await asyncio.gather(*(use(seed) for seed in range(NUM_CLIENTS)))
        watch.is_over = True
        await sampling

    assert wrong == []
    assert server.failures == []
    assert len(watch.taken) > 10
    assert max(watch.taken) <= 2.5 * folder.size
    assert min(watch.taken[5:]) > 0
    assert_no_load_was_made_twice(server.log)


def assert_no_load_was_made_twice(log: Sequence[dict[str, Any]]) -> None:
    """A model is loaded only when it is not in memory, and there are never more than two."""
    resident: set[str] = set()
    loads: Counter[str] = Counter()
    for entry in log:
        name, _, what = str(entry["message"]).removeprefix("local/").partition(" ")
        if name not in NAMES:
            continue
        if what.startswith("is being loaded"):
            assert name not in resident, f"{name} was loaded twice"
            loads[name] += 1
            resident.add(name)
        elif what.startswith("is unloaded"):
            resident.remove(name)
        assert len(resident) <= 2
    assert set(loads) == set(NAMES)
    assert loads.total() > len(NAMES), "nothing was ever swapped"
