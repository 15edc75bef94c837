"""Pulling by the daemon: its progress, its failures, and who listens."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from fakes.ollama import Answer, Cut, FakeModel, FakeOllama, Insert, Pause, Rule, error_line
from machines import Machine, collect, pulled, unused_url

from server.app_library import LibraryParts
from server.core.errors import (
    BackendError,
    DiskFull,
    HubUnreachable,
    InvalidRequest,
    LlmspellError,
    ModelNotFound,
    PullFailed,
)
from server.core.model_spec import BackendName, parse_model_spec
from server.core.pulling import PullActivity, PullEvent, PullFinished, PullNotice, PullProgress

PULL = "/api/pull"
NEW = parse_model_spec("ollama/new:1b")


def pulls(daemon: FakeOllama) -> int:
    return len([each for each in daemon.requests if each.path == PULL])


async def test_a_pull_ends_with_the_name_that_the_daemon_has_for_it(with_daemon: Machine, daemon: FakeOllama) -> None:
    daemon.offer(FakeModel("Plain", size=10))
    parts = with_daemon.parts()
    assert await pulled(parts, "ollama/plain") == PullFinished("Plain:latest", BackendName.OLLAMA)
    events = await collect(parts.library.pull(NEW))
    assert events[-1] == PullFinished("new:1b", BackendName.OLLAMA)
    last = events[-2]
    assert isinstance(last, PullProgress)
    assert (last.activity, last.done_bytes, last.total_bytes) == (PullActivity.DONE, 100_485, 100_485)
    assert await parts.library.find(NEW) is not None
    assert not parts.library.active()
    await parts.library.aclose()


async def stalled(daemon: FakeOllama, after: int = 5) -> Rule:
    """Have the next pull stop after so many lines, until the rule is released."""
    return daemon.on(Pause(where=after), path=PULL)


async def until(events: asyncio.Queue[PullEvent | None], num_bytes: int) -> PullProgress:
    while (event := await events.get()) is not None:
        if isinstance(event, PullProgress) and event.done_bytes >= num_bytes:
            return event
    pytest.fail("the pull ended")


async def listen(parts: LibraryParts, events: asyncio.Queue[PullEvent | None]) -> None:
    try:
        async for event in parts.library.pull(NEW):
            events.put_nowait(event)
    finally:
        events.put_nowait(None)


async def test_who_pulls_the_same_joins_in_and_sees_how_far_it_is(with_daemon: Machine, daemon: FakeOllama) -> None:
    parts = with_daemon.parts()
    rule = await stalled(daemon)
    queues = [asyncio.Queue[PullEvent | None]() for _ in range(2)]
    first = asyncio.create_task(listen(parts, queues[0]))
    seen = await until(queues[0], 30_000)
    second = asyncio.create_task(listen(parts, queues[1]))
    assert (await until(queues[1], 30_000)).done_bytes == seen.done_bytes
    assert (seen.activity, seen.total_bytes) == (PullActivity.DOWNLOADING, 100_000)
    [active] = parts.library.active()
    assert (active.spec, active.backend, active.progress) == (NEW, BackendName.OLLAMA, seen)
    rule.release()
    await asyncio.gather(first, second)
    assert pulls(daemon) == 1
    await parts.library.aclose()


async def test_the_last_one_who_leaves_ends_it_and_the_next_one_resumes(
    with_daemon: Machine, daemon: FakeOllama
) -> None:
    parts = with_daemon.parts()
    await stalled(daemon)
    async with aclosing(parts.library.pull(NEW)) as events:
        async for event in events:
            assert isinstance(event, PullProgress)
            if event.done_bytes >= 30_000:
                break
    await asyncio.to_thread(
        daemon.wait_for, lambda: any(each.path == PULL and each.was_cut_off for each in daemon.requests)
    )
    assert not parts.library.active()
    progress = [each for each in await collect(parts.library.pull(NEW)) if isinstance(each, PullProgress)]
    assert progress[0].done_bytes >= 30_000
    await parts.library.aclose()


async def test_a_cancelled_pull_ends_for_everybody(with_daemon: Machine, daemon: FakeOllama) -> None:
    parts = with_daemon.parts()
    await stalled(daemon)
    queues = [asyncio.Queue[PullEvent | None]() for _ in range(2)]
    listeners = [asyncio.create_task(listen(parts, queue)) for queue in queues]
    for queue in queues:
        await until(queue, 30_000)
    assert parts.library.cancel(parse_model_spec("new:1b"), "Q8_0") == 0
    assert parts.library.cancel(parse_model_spec("llamacpp/new:1b")) == 0
    assert parts.library.cancel(parse_model_spec("new:1b")) == 1
    for listener in listeners:
        with pytest.raises(PullFailed, match="was cancelled"):
            await listener
    await asyncio.to_thread(
        daemon.wait_for, lambda: any(each.path == PULL and each.was_cut_off for each in daemon.requests)
    )
    await parts.library.aclose()


FAILURES: list[tuple[str, type[LlmspellError], str]] = [
    ("write /x: no space left on device", DiskFull, "what has come is kept"),
    ("max retries exceeded: EOF", HubUnreachable, "what has come is kept"),
    ("pull model manifest: 412: newer version of Ollama", PullFailed, "update it"),
    ("something new", PullFailed, "something new"),
]


@pytest.mark.parametrize(("message", "kind", "words"), FAILURES)
async def test_failures_in_mid_stream(
    with_daemon: Machine, daemon: FakeOllama, message: str, kind: type[LlmspellError], words: str
) -> None:
    daemon.on(error_line(message, after=4), path=PULL)
    parts = with_daemon.parts()
    with pytest.raises(kind, match=words):
        await pulled(parts, "ollama/new:1b")
    assert not parts.library.active()
    await pulled(parts, "ollama/new:1b")
    await parts.library.aclose()


async def test_an_unknown_model_is_refused_before_anything_is_told(with_daemon: Machine) -> None:
    parts = with_daemon.parts()
    with pytest.raises(ModelNotFound, match=r"ollama\.com/search"):
        await anext(parts.library.pull(parse_model_spec("ollama/nothing")))
    await parts.library.aclose()


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (Cut(after=4), "broke off"),
        (Cut(after=4, ending="rst"), "broke off"),
        (Cut(after=4, ending="whole"), "without saying why"),
        (Insert("no JSON", after=3, last=True), "not JSON"),
        (Insert("[1]", after=3, last=True), "not a JSON object"),
        (Insert("x" * 70_000, after=3, repeat=30, last=True), "does not end|not JSON"),
        (Answer(status=500, body="oops"), "HTTP status 500"),
        (Answer(status=302, body="", headers={"location": "http://elsewhere"}), "redirects"),
    ],
)
async def test_a_daemon_that_breaks_off_or_talks_nonsense(
    with_daemon: Machine, daemon: FakeOllama, action: Cut | Insert | Answer, words: str
) -> None:
    daemon.on(action, path=PULL)
    parts = with_daemon.parts()
    with pytest.raises(BackendError, match=words):
        await pulled(parts, "ollama/new:1b")
    await parts.library.aclose()


async def test_refusals_with_a_status(with_daemon: Machine, daemon: FakeOllama) -> None:
    parts = with_daemon.parts()
    daemon.on(Answer(status=400, error="invalid model name"), path=PULL)
    with pytest.raises(InvalidRequest, match="invalid model name"):
        await pulled(parts, "ollama/new:1b")
    daemon.on(Answer(status=500, error="pull model manifest: file does not exist"), path=PULL)
    with pytest.raises(ModelNotFound):
        await pulled(parts, "ollama/new:1b")
    await parts.library.aclose()


async def test_status_lines_that_are_new_are_passed_on(with_daemon: Machine, daemon: FakeOllama) -> None:
    daemon.on(Insert('{"status":"thinking about it"}', after=3), path=PULL)
    parts = with_daemon.parts()
    events = await collect(parts.library.pull(NEW))
    assert PullNotice("Ollama: thinking about it") in events
    await parts.library.aclose()


async def test_a_daemon_that_goes_away_in_mid_pull(with_daemon: Machine, daemon: FakeOllama) -> None:
    parts = with_daemon.parts()
    await stalled(daemon)
    queue = asyncio.Queue[PullEvent | None]()
    listener = asyncio.create_task(listen(parts, queue))
    await until(queue, 30_000)
    await asyncio.to_thread(daemon.stop)
    with pytest.raises(BackendError, match="broke off"):
        await listener
    with pytest.raises(BackendError, match="does not answer"):
        await pulled(parts, "ollama/new:1b")
    await parts.library.aclose()


async def test_closing_the_library_leaves_nothing_behind(with_daemon: Machine, daemon: FakeOllama) -> None:
    parts = with_daemon.parts()
    await stalled(daemon)
    queue = asyncio.Queue[PullEvent | None]()
    listener = asyncio.create_task(listen(parts, queue))
    await until(queue, 30_000)
    await parts.library.aclose()
    with pytest.raises(PullFailed, match="shutting down"):
        await listener
    await asyncio.to_thread(daemon.wait_for, lambda: daemon.records.num_open == 0)


@pytest.mark.parametrize(
    ("spec", "quantization", "advice"),
    [
        ("ollama/mistral:7b", "Q8_0", "ollama/mistral:7b-instruct-q8_0"),
        ("ollama/mistral", "Q8_0", "ollama/mistral:instruct-q8_0"),
        ("hf.co/owner/repo:Q4_K_M@ollama", "Q8_0", "ollama/hf.co/owner/repo:Q8_0"),
        ("unheard-of:7b", "Q8_0", "llamacpp/unheard-of:7b"),
    ],
)
async def test_the_tag_is_the_quantization(with_daemon: Machine, spec: str, quantization: str, advice: str) -> None:
    parts = with_daemon.parts()
    with pytest.raises(InvalidRequest, match=advice) as caught:
        await pulled(parts, spec, quantization)
    assert caught.value.param == "quantization"
    await parts.library.aclose()


async def test_a_tag_that_is_said_twice_is_fine(with_daemon: Machine, daemon: FakeOllama) -> None:
    daemon.offer(FakeModel("hf.co/owner/repo:Q8_0", size=10))
    parts = with_daemon.parts()
    assert (await pulled(parts, "hf.co/owner/repo:Q8_0@ollama", "q8_0")).model == "hf.co/owner/repo:Q8_0"
    await parts.library.aclose()


async def test_without_a_daemon_nothing_is_pulled_from_it(machine: Machine) -> None:
    machine.daemon_url = unused_url()
    parts = machine.parts()
    with pytest.raises(BackendError, match="does not answer"):
        await pulled(parts, "ollama/new:1b")
    await parts.library.aclose()
