"""Who shares computed prompts with whom, as clients with API keys of their own see it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from serving import CHAT, DEMO, PATIENCE, Server

PUBLIC = "You are the helpful assistant of a library. Answer briefly, politely, and only about books."
PRIVATE = "Nothing that is planned for next year may be told to anybody who is not on the board."
STORY = "Tell me a story about a llama that lives high up in the mountains and sings"

ISOLATED = f"""
[llamacpp]
threads = 1
prefix_isolation = "key"
public_system_prompts = ["Nobody uses this one.", "{PUBLIC}"]
"""


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model with prefixes kept apart by key, but for one system prompt."""
    home = tmp_path_factory.mktemp("isolated")
    file = home / "isolated.toml"
    file.write_text(ISOLATED, encoding="utf-8")
    with Server("--config", str(file), "--demo", home=home) as server:
        yield server
        assert server.failures == []


def cached(server: Server, key: str | None, user: str, system: str | None = None) -> tuple[int, int]:
    """Ask, and return how many tokens of the prompt had been computed before, and how many it has."""
    before = [] if system is None else [{"role": "system", "content": system}]
    body: dict[str, Any] = {
        "model": DEMO,
        "messages": [*before, {"role": "user", "content": user}],
        "max_tokens": 2,
        "temperature": 0,
    }
    if key is None:
        usage = httpx.post(server.url + CHAT, json=body, timeout=PATIENCE).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]
    with server.client(api_key=key) as client:
        found = client.chat.completions.create(**body).usage
        return found.prompt_tokens_details.cached_tokens, found.prompt_tokens


def test_without_isolation_all_keys_share(demo: Server) -> None:
    user = f"{STORY} without isolation"
    _, length = cached(demo, "alice", user)
    assert [cached(demo, key, user)[0] for key in ("bob", None, "alice")] == [length - 1] * 3


def test_keys_share_nothing_with_each_other(isolated: Server) -> None:
    """The template writes a token or some before every prompt: these are the beginning of the public one, too."""
    user = f"{STORY} for one key only"
    least, length = cached(isolated, "alice", user)
    assert least <= 3
    assert cached(isolated, "bob", user)[0] <= 3
    assert cached(isolated, None, user)[0] <= 3
    assert [cached(isolated, key, user)[0] for key in ("alice", "bob", None)] == [length - 1] * 3


def test_a_system_prompt_that_is_not_public_is_shared_within_a_key_only(isolated: Server) -> None:
    cached(isolated, "alice", "Hello", PRIVATE)
    assert cached(isolated, "bob", "Good day", PRIVATE)[0] <= 3
    assert cached(isolated, None, "Hi", PRIVATE)[0] <= 3
    found, length = cached(isolated, "alice", "Why?", PRIVATE)
    assert found > length - 10


def test_requests_without_a_key_share_with_each_other(isolated: Server) -> None:
    user = f"{STORY} for those without a key"
    cached(isolated, None, user)
    found, length = cached(isolated, None, user)
    assert found == length - 1
    assert cached(isolated, "newcomer", user)[0] <= 3


def test_the_public_system_prompt_is_shared_by_all_keys_and_nothing_behind_it(isolated: Server, demo: Server) -> None:
    """As many tokens are shared as without isolation by questions that have nothing in common."""
    cached(demo, "alice", "Hello, what is there?", PUBLIC)
    in_common, _ = cached(demo, "bob", "zebras, please", PUBLIC)
    assert in_common > len(PUBLIC.split())

    cached(isolated, "alice", f"{STORY} of books", PUBLIC)
    assert cached(isolated, "bob", f"{STORY} of books", PUBLIC)[0] == in_common
    assert cached(isolated, None, f"{STORY} of books", PUBLIC)[0] == in_common
    found, length = cached(isolated, "bob", f"{STORY} of books", PUBLIC)
    assert found == length - 1


def test_keys_that_ask_at_once_learn_nothing_from_each_other(isolated: Server) -> None:
    user = f"{STORY} at once " * 8
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda i: cached(isolated, f"key {i}", user), range(6)))
    assert max(number for number, _ in found) <= 3
