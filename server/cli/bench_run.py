"""Asks models in turn, through the router and the backends of the server but without HTTP, and takes the time."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.app import create_application
from server.cli.bench_figures import Answer, Measurement, Memory, Recorder, Round, cold_load_of, is_load
from server.cli.bench_prompts import TokenScale, text
from server.config import Settings
from server.core.errors import LlmspellError
from server.core.model_spec import BackendName
from server.core.parameters import Treatment, refused
from server.core.ports import Backend, DeviceMemory, ModelState, Residency
from server.core.request import ChatRequest, Message, Role, SamplingParameters
from server.router import ModelRouter, Route

_FEW_WORDS, _MANY_WORDS = 8, 64
_LOOK_PAUSE_SECONDS = 0.1
_LOOK_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What is asked of every model.

    Attributes:
        prompt_tokens: length of a prompt, as near as words can bring it.
        max_tokens: length of an answer.
        streams: how many requests are made at the same time, one number after the other.
        rounds: how often all that is done.
        seed: of the prompts.

    """

    prompt_tokens: int
    max_tokens: int
    streams: tuple[int, ...]
    rounds: int
    seed: int


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What was measured, in the order of the specs, and the devices that models of this process can be in."""

    measurements: Sequence[Measurement]
    devices: Sequence[DeviceMemory]


async def measure(
    settings: Settings, specs: Sequence[str], plan: BenchPlan, tell: Callable[[str], None]
) -> BenchResult:
    """Measure all specs; in each round one after the other, so that noise hits all alike.

    A model that cannot be measured does not keep the others from it. ``tell`` is told how far it is.

    Raises:
        ConfigurationError: the settings contradict each other.

    """
    application = create_application(settings)
    # As in the server, what is there for good is not to be looked through again while tokens come.
    gc.collect()
    gc.freeze()
    async with application.api.router.lifespan_context(application.api):
        asker = _Asker(application.router, application.residency, plan)
        candidates = [_Candidate(spec) for spec in specs]
        for number in range(1, plan.rounds + 1):
            for candidate in candidates:
                if candidate.measurement.error is None:
                    tell(f"round {number} of {plan.rounds}: {candidate.measurement.spec}")
                    await asker.measure(candidate, number)
        return BenchResult([each.measurement for each in candidates], application.residency.devices())


class _Candidate:
    """A spec that is measured; ``route`` and ``scale`` are found out in the first round."""

    def __init__(self, spec: str) -> None:
        self.measurement = Measurement(spec)
        self.route: Route | None = None
        self.scale: TokenScale | None = None


class _Asker:
    """Does with one model at a time what the plan says."""

    def __init__(self, router: ModelRouter, residency: Residency, plan: BenchPlan) -> None:
        self._router = router
        self._residency = residency
        self._plan = plan

    async def measure(self, candidate: _Candidate, number: int) -> None:
        """Do one round; a failure is remembered."""
        measurement = candidate.measurement
        try:
            if candidate.route is None:
                candidate.route = await self._prepare(measurement)
            words = await self._warm_up(candidate, candidate.route, number)
            measurement.rounds.append(await self._round(candidate.route, number, words))
            measurement.memory = await self._memory(candidate.route)
        except LlmspellError as error:
            measurement.error = error.message

    async def _prepare(self, measurement: Measurement) -> Route:
        route = await self._router.route(measurement.spec)
        backend, model = route.backend, route.spec.model
        measurement.backend = backend.name.value
        card = await backend.model(model)
        measurement.was_in_memory = card is not None and card.state is ModelState.WARM
        if self._is_ours(route):
            self._residency.pin(model, pinned=False)  # models that do not fit together must be able to take turns
        return route

    async def _warm_up(self, candidate: _Candidate, route: Route, number: int) -> int:
        """Have the model loaded if it is not in memory; return the number of words that make a prompt."""
        measurement = candidate.measurement
        is_first = candidate.scale is None and not measurement.was_in_memory
        short = await self._ask(route, self._text(number, "warm-up", _FEW_WORDS), 1)
        if is_first or is_load(short.load, cold_load_of(measurement)):
            measurement.loads.append(short.load)
        if candidate.scale is None:
            long = await self._ask(route, self._text(number, "scale", _MANY_WORDS), 1)
            candidate.scale = TokenScale.through((_FEW_WORDS, short.prompt_len), (_MANY_WORDS, long.prompt_len))
        return candidate.scale.num_words(self._plan.prompt_tokens)

    async def _round(self, route: Route, number: int, num_words: int) -> Round:
        prompt = self._text(number, "alone", num_words)
        new = await self._ask(route, prompt, self._plan.max_tokens)
        seen = await self._ask(route, prompt, 1)
        together = dict[int, Sequence[Answer]]()
        for num in self._plan.streams:
            prompts = [self._text(number, f"{num} together, {index}", num_words) for index in range(num)]
            together[num] = [new] if num == 1 else await self._ask_together(route, prompts)
        return Round(new, seen, together)

    def _text(self, number: int, purpose: str, num_words: int) -> str:
        return text(self._plan.seed, f"{number}/{purpose}", num_words)

    async def _ask_together(self, route: Route, prompts: Sequence[str]) -> Sequence[Answer]:
        tasks = [asyncio.create_task(self._ask(route, prompt, self._plan.max_tokens)) for prompt in prompts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, route: Route, prompt: str, max_tokens: int) -> Answer:
        request = self._request(route, prompt, max_tokens)
        recorder = Recorder(time.perf_counter())
        opened = await route.open(request, _nobody_else)
        try:
            recorder.add(opened.early, time.perf_counter())
            async for events in opened.stream:
                recorder.add(events, time.perf_counter())
        finally:
            await opened.stream.aclose()
        return recorder.answer()

    def _request(self, route: Route, prompt: str, max_tokens: int) -> ChatRequest:
        """Make a request whose answer is the likeliest one, as long as it may be, without the model's own settings."""
        ignore_eos = route.backend.parameters.get("ignore_eos", refused()).treatment is Treatment.MAPPED
        return ChatRequest(
            spec=route.spec,
            messages=(Message(Role.USER, prompt),),
            sampling=SamplingParameters(temperature=0.0, ignore_eos=ignore_eos),
            given_sampling=frozenset({"temperature", "repeat_penalty"}),
            max_tokens=max_tokens,
            # The pool is that of this process; how long a daemon keeps a model is the business of who runs it.
            keep_alive=-1 if self._is_ours(route) else None,
        )

    async def _memory(self, route: Route) -> Memory:
        model = route.spec.model
        if not self._is_ours(route):
            return await _memory_elsewhere(route.backend, model)
        status = self._residency.status(model)
        return Memory() if status is None else Memory(status.predicted or None, status.measured)

    def _is_ours(self, route: Route) -> bool:
        return route.backend.name is BackendName.LLAMACPP


async def _memory_elsewhere(backend: Backend, model: str) -> Memory:
    """Ask what a model takes that has just been used; what a backend knows of it may be older than that."""
    deadline = time.monotonic() + _LOOK_PATIENCE_SECONDS
    while True:
        card = await backend.model(model)
        if card is not None and card.memory_bytes is not None:
            return Memory(measured={backend.name.value: card.memory_bytes})
        if card is None or card.state is ModelState.WARM or time.monotonic() > deadline:
            return Memory()
        await asyncio.sleep(_LOOK_PAUSE_SECONDS)


def _nobody_else(_: Backend) -> bool:
    return False
