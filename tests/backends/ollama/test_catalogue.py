"""Which models the daemon has, and how rarely it is asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from asking import PATIENCE, Clock, paths_of, until
from fakes.ollama import Answer, FakeModel, FakeOllama, Pause

from server.backends.ollama.catalogue import Catalogue
from server.backends.ollama.daemon import Daemon, DaemonModel
from server.core.errors import BackendError
from server.core.model_spec import BackendName
from server.core.ports import ModelCard, ModelState

TAGS, SHOW, PS = "/api/tags", "/api/show", "/api/ps"
CACHE_SECONDS = 3.0


def anything(_: DaemonModel) -> bool:
    return True


@asynccontextmanager
async def catalogue_of(url: str, clock: Callable[[], float], limit: float = 5.0) -> AsyncIterator[Catalogue]:
    daemon = Daemon(url, connect_timeout=2.0, answer_timeout=limit)
    catalogue = Catalogue(daemon, CACHE_SECONDS, clock)
    try:
        yield catalogue
    finally:
        await catalogue.close()
        await catalogue.close()
        await daemon.close()


@pytest.fixture
def daemon() -> Iterator[FakeOllama]:
    with FakeOllama() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def catalogue(daemon: FakeOllama, clock: Clock) -> AsyncIterator[Catalogue]:
    async with catalogue_of(daemon.url, clock) as catalogue:
        yield catalogue


def asked_for(daemon: FakeOllama, path: str = TAGS) -> int:
    return list(paths_of(daemon)).count(path)


async def card_of(catalogue: Catalogue, name: str) -> ModelCard:
    model = await catalogue.find(name)
    assert model is not None
    return await catalogue.card(model)


# --- names ---


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("demo", "demo:latest"),
        ("demo:latest", "demo:latest"),
        ("Demo:LATEST", "demo:latest"),
        ("llama3.1:8b", "llama3.1:8b"),
        ("llama3.1", None),
        ("demo:8b", None),
        ("dem", None),
        ("hf.co/Owner/Repo-GGUF", "hf.co/Owner/Repo-GGUF:Q4_K_M"),
        ("hf.co/owner/repo-gguf:q4_k_m", "hf.co/Owner/Repo-GGUF:Q4_K_M"),
        ("hf.co/Owner/Other", "hf.co/Owner/Other:latest"),
        ("hf.co/Owner/Other:Q4_K_M", None),
        ("hf.co/Owner/Repo-GGUF:Q8_0", None),
        ("team/model", "team/model:latest"),
        ("registry.example:5000/team/model", "registry.example:5000/team/model:latest"),
    ],
)
async def test_names(clock: Clock, name: str, found: str | None) -> None:
    names = ["demo", "llama3.1:8b", "hf.co/Owner/Repo-GGUF:Q4_K_M", "hf.co/Owner/Other", "team/model"]
    models = [FakeModel(each) for each in [*names, "registry.example:5000/team/model"]]
    with FakeOllama(*models) as daemon:
        async with catalogue_of(daemon.url, clock) as catalogue:
            model = await catalogue.find(name)

    assert (model and model.name) == found


# --- the cache ---


async def test_the_list_is_asked_for_once(daemon: FakeOllama, catalogue: Catalogue, clock: Clock) -> None:
    for _ in range(20):
        assert await catalogue.find("demo") is not None
        clock.advance(CACHE_SECONDS / 20)

    assert asked_for(daemon) == 1


async def test_callers_at_the_same_time_share_a_request(daemon: FakeOllama, catalogue: Catalogue) -> None:
    names = ["demo", "demo-tools", "demo"] * 20

    found = await asyncio.gather(*(catalogue.find(name) for name in names))

    assert None not in found
    assert asked_for(daemon) == 1


async def test_an_old_list_is_used_while_it_is_refreshed(
    daemon: FakeOllama, catalogue: Catalogue, clock: Clock
) -> None:
    await catalogue.find("demo")
    pause = daemon.on(Pause(), path=TAGS)
    clock.advance(CACHE_SECONDS + 0.1)

    async with asyncio.timeout(PATIENCE):
        for _ in range(5):
            assert await catalogue.find("demo") is not None

    await until(daemon, lambda: asked_for(daemon) == 2)
    daemon.add_model(FakeModel("new"))
    pause.release()
    async with asyncio.timeout(PATIENCE):
        await catalogue.refresh()  # joins the one under way
    assert catalogue.known("new") is not None
    assert asked_for(daemon) == 2


async def test_a_model_that_is_missing_may_have_just_come(
    daemon: FakeOllama, catalogue: Catalogue, clock: Clock
) -> None:
    assert await catalogue.find("new") is None
    daemon.add_model(FakeModel("new"))
    assert await catalogue.find("new") is None
    assert asked_for(daemon) == 1

    clock.advance(0.6)

    assert await catalogue.find("new") is not None
    assert asked_for(daemon) == 2


async def test_a_model_that_is_gone_is_noticed(daemon: FakeOllama, catalogue: Catalogue, clock: Clock) -> None:
    assert await catalogue.find("demo") is not None
    daemon.remove_model("demo")
    clock.advance(CACHE_SECONDS + 0.1)

    await catalogue.refresh()

    assert await catalogue.find("demo") is None


async def test_a_forgotten_model_is_not_found(daemon: FakeOllama, catalogue: Catalogue) -> None:
    model = await catalogue.find("demo")
    assert model is not None

    catalogue.forget(model)
    catalogue.forget(model)

    assert await catalogue.find("demo") is None
    assert await catalogue.find("demo-tools") is not None
    assert asked_for(daemon) == 1


async def test_who_goes_away_leaves_the_answer_to_the_others(daemon: FakeOllama, catalogue: Catalogue) -> None:
    pause = daemon.on(Pause(), path=TAGS)
    first, second = (asyncio.create_task(catalogue.find("demo")) for _ in range(2))
    await until(daemon, lambda: asked_for(daemon) == 1)

    first.cancel()
    await asyncio.wait([first])
    pause.release()

    assert await second is not None
    assert asked_for(daemon) == 1


# --- a daemon that is down ---


async def test_a_dead_daemon_is_asked_once_a_second(daemon: FakeOllama, catalogue: Catalogue, clock: Clock) -> None:
    daemon.on(Answer(500, error="broken"), path=TAGS, times=None)
    for _ in range(40):
        assert await catalogue.find("demo") is None
        assert await catalogue.cards(anything) == []
        with pytest.raises(BackendError):
            await catalogue.require("demo")
        clock.advance(0.1)

    assert catalogue.is_down
    assert asked_for(daemon) == 4


async def test_nobody_waits_for_a_daemon_that_is_known_to_be_down(
    daemon: FakeOllama, catalogue: Catalogue, clock: Clock
) -> None:
    daemon.on(Answer(500, error="broken"), path=TAGS)
    await catalogue.find("demo")
    pause = daemon.on(Pause(), path=TAGS)
    clock.advance(1.1)

    async with asyncio.timeout(PATIENCE):
        for _ in range(5):
            assert await catalogue.find("demo") is None  # starts a probe, and does not wait for it

    await until(daemon, lambda: asked_for(daemon) == 2)
    listing = asyncio.create_task(catalogue.cards(anything))  # waits for that probe
    await asyncio.sleep(0)
    pause.release()
    async with asyncio.timeout(PATIENCE):
        assert len(await listing) == 5
    assert await catalogue.find("demo") is not None
    assert asked_for(daemon) == 2


async def test_a_list_waits_for_a_daemon_that_seems_down_no_longer_than_an_answer_may_take(
    daemon: FakeOllama, clock: Clock
) -> None:
    daemon.on(Answer(500, error="broken"), path=TAGS)
    async with catalogue_of(daemon.url, clock, limit=0.1) as catalogue:
        assert await catalogue.find("demo") is None
        daemon.on(Pause(), path=TAGS)
        clock.advance(1.1)
        async with asyncio.timeout(PATIENCE):
            assert await catalogue.cards(anything) == []
            assert await catalogue.cards(anything) == []
    assert asked_for(daemon) <= 2  # on a busy machine the first answer may come too late


async def test_who_needs_the_daemon_waits_for_a_probe(daemon: FakeOllama, catalogue: Catalogue, clock: Clock) -> None:
    daemon.on(Answer(500, error="broken"), path=TAGS)
    with pytest.raises(BackendError, match="broken"):
        await catalogue.require("demo")
    clock.advance(1.1)

    assert await catalogue.require("demo") is not None
    assert not catalogue.is_down


async def test_a_daemon_that_comes_back(
    daemon: FakeOllama, catalogue: Catalogue, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert await catalogue.find("demo") is not None
    await asyncio.to_thread(daemon.stop)
    clock.advance(CACHE_SECONDS + 1)
    await catalogue.refresh()
    assert await catalogue.find("demo") is None
    assert catalogue.known("demo") is not None
    assert "does not answer" in str(catalogue.outage_error())
    await asyncio.to_thread(daemon.start)
    clock.advance(1.1)

    assert await catalogue.require("demo") is not None

    said = [record.getMessage() for record in caplog.records if record.name.endswith("catalogue")]
    assert "does not answer" in said[-2]
    assert "answers" in said[-1]
    assert len(said) == 3


async def test_a_list_of_a_daemon_that_is_back_has_its_models_at_once(daemon: FakeOllama, clock: Clock) -> None:
    async with catalogue_of(daemon.url, clock) as catalogue:
        daemon.stop()
        assert await catalogue.cards(anything) == []
        daemon.start()
        clock.now += 1.5

        assert await catalogue.cards(anything)


async def test_names_that_no_request_can_give_are_left_out(clock: Clock) -> None:
    odd = ("a\r\nX: 1", "x@y", "a" * 300, "../up")
    with FakeOllama(FakeModel("fine")) as daemon:
        rows = [{"name": name, "model": name} for name in (*odd, "fine:latest")]
        daemon.on(Answer(body=json.dumps({"models": [{}, {"name": 5}, *rows]})), path=TAGS, times=None)
        async with catalogue_of(daemon.url, clock) as catalogue:
            assert [card.model for card in await catalogue.cards(anything)] == ["fine:latest"]


async def test_a_reported_failure_counts(daemon: FakeOllama, catalogue: Catalogue) -> None:
    assert await catalogue.find("demo") is not None

    catalogue.report_failure("the connection is refused")

    assert await catalogue.find("demo") is None
    with pytest.raises(BackendError, match="the connection is refused"):
        await catalogue.require("demo")
    assert asked_for(daemon) == 1


async def test_a_daemon_that_hangs_is_given_up(daemon: FakeOllama, clock: Clock) -> None:
    daemon.on(Pause(), path=TAGS, times=None)
    async with catalogue_of(daemon.url, clock, limit=0.2) as catalogue:
        async with asyncio.timeout(PATIENCE):
            assert await catalogue.find("demo") is None
            assert await catalogue.find("demo") is None
        assert asked_for(daemon) == 1
        await until(daemon, lambda: all(request.was_cut_off for request in daemon.requests))


# --- descriptions ---


async def test_cards(daemon: FakeOllama, catalogue: Catalogue) -> None:
    cards = {card.model: card for card in await catalogue.cards(anything)}

    assert list(cards)[-1] == "demo:latest"
    assert cards["demo-think:latest"] == ModelCard(
        model="demo-think:latest",
        backend=BackendName.OLLAMA,
        state=ModelState.COLD,
        created=cards["demo-think:latest"].created,
        size_bytes=5_524_501,
        context_length=8192,
        capabilities=("chat", "tools", "thinking"),
    )
    assert cards["demo-think:latest"].created > 1_700_000_000
    assert cards["demo-embed:latest"].capabilities == ("embedding",)
    assert asked_for(daemon, SHOW) == 5


async def test_cards_of_some_models(daemon: FakeOllama, catalogue: Catalogue) -> None:
    cards = await catalogue.cards(lambda model: model.name.startswith("demo-t"))

    assert {card.model for card in cards} == {"demo-tools:latest", "demo-think:latest"}
    assert asked_for(daemon, SHOW) == 2


async def test_details_are_asked_for_once_for_each_version(clock: Clock) -> None:
    models = [FakeModel("a", digest="1"), FakeModel("b", digest="1"), FakeModel("c", digest="2")]
    with FakeOllama(*models) as daemon:
        async with catalogue_of(daemon.url, clock) as catalogue:
            for _ in range(3):
                await asyncio.gather(*(catalogue.cards(anything) for _ in range(3)))
                clock.advance(CACHE_SECONDS + 1)
                await catalogue.refresh()
            assert asked_for(daemon, SHOW) == 2

            daemon.add_model(FakeModel("c", digest="3", context_length=4096))
            await catalogue.refresh()
            assert (await card_of(catalogue, "c")).context_length == 4096
            assert asked_for(daemon, SHOW) == 3


async def test_an_older_daemon_tells_less(clock: Clock) -> None:
    with FakeOllama(FakeModel("demo", ("completion", "tools")), older=True) as daemon:
        async with catalogue_of(daemon.url, clock) as catalogue:
            card = await card_of(catalogue, "demo")
            assert (card.capabilities, card.context_length) == (("chat", "tools"), 8192)

    with FakeOllama(FakeModel("demo", ("completion", "tools")), older=True) as daemon:
        daemon.on(Answer(404, body="404 page not found"), path=SHOW, times=None)
        async with catalogue_of(daemon.url, clock) as catalogue:
            card = await card_of(catalogue, "demo")
            assert (card.capabilities, card.context_length) == (("chat",), None)


async def test_the_list_lacks_what_a_template_brings(clock: Clock) -> None:
    with FakeOllama(FakeModel("demo", ("completion", "tools"), listed=("completion",))) as daemon:
        async with catalogue_of(daemon.url, clock) as catalogue:
            assert (await card_of(catalogue, "demo")).capabilities == ("chat", "tools")


async def test_states(daemon: FakeOllama, catalogue: Catalogue, clock: Clock) -> None:
    assert (await card_of(catalogue, "demo")).state is ModelState.COLD
    source = Daemon(daemon.url, connect_timeout=2.0, answer_timeout=5.0)
    await source.load("demo")
    await source.close()
    clock.advance(0.6)

    assert (await card_of(catalogue, "demo")).state is ModelState.WARM
    assert (await card_of(catalogue, "demo-tools")).state is ModelState.COLD
    await asyncio.gather(*(catalogue.cards(anything) for _ in range(5)))
    assert asked_for(daemon, PS) == 2


async def test_two_thousand_models_are_described_in_time(clock: Clock) -> None:
    with FakeOllama(num_models=2000) as daemon:
        async with catalogue_of(daemon.url, clock) as catalogue:
            async with asyncio.timeout(PATIENCE):
                assert len(await catalogue.cards(anything)) == 2005
                await until(daemon, lambda: asked_for(daemon, SHOW) == 2005)
                assert len(await catalogue.cards(anything)) == 2005
            assert asked_for(daemon, SHOW) == 2005
            assert asked_for(daemon) == 1


async def test_closing_ends_what_runs(daemon: FakeOllama, clock: Clock) -> None:
    daemon.on(Pause(), path=SHOW, times=None)
    async with catalogue_of(daemon.url, clock) as catalogue:
        describing = asyncio.create_task(catalogue.cards(anything))
        await until(daemon, lambda: asked_for(daemon, SHOW) == 5)
        describing.cancel()
        await asyncio.wait([describing])
    await until(daemon, lambda: all(not request.running for request in daemon.requests))
