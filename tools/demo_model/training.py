"""The training loop: a fixed number of steps over the stream of batches."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp

from demo_model import muon, network
from demo_model.batches import Arrays
from demo_model.network import Batch, Params, Shape

MUON_RATE = 0.02
ADAM_RATE = 0.004
WARM_UP = 40
STEADY_SHARE = 0.3
REPORT_EVERY = 50
YIELD_EVERY = 250

Step = Callable[[Params, Params, Batch, jax.Array], tuple[Params, Params, jax.Array]]


def _rate_at(step: int, steps: int) -> float:
    """Up quickly, steady for a while, then down in a straight line to nothing."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    decaying = (steps - step) / (steps * (1 - STEADY_SHARE))
    return min(1.0, decaying)


class _Progress:
    """Prints the loss and the speed every few steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.number, self.seen = steps, 0, 0
        self.recent: list[float] = []
        self.started = time.monotonic()

    def add(self, value: float, tokens: int) -> None:
        self.number += 1
        self.seen += tokens
        self.recent.append(value)
        if self.number % REPORT_EVERY == 0:
            loss, speed = sum(self.recent) / len(self.recent), self.seen / (time.monotonic() - self.started)
            done = f"step {self.number}/{self.steps}  loss {loss:.4f}"
            print(f"{done}  {self.seen / 1e6:.2f}M tokens  {speed:.0f} tokens/s", flush=True)
            self.recent = []


def _compiled_step(shape: Shape) -> Step:
    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: Params, batch: Batch, rate: jax.Array) -> tuple[Params, Params, jax.Array]:
        value, gradients = jax.value_and_grad(network.loss)(params, batch, shape)
        params, state = muon.updated(params, gradients, state, MUON_RATE * rate, ADAM_RATE * rate)
        return params, state, value

    return step


def train(shape: Shape, batches: Iterator[Arrays], steps: int, params: Params, peak: float = 1.0) -> Iterator[Params]:
    """Train parameters; yields them now and then, so that an interrupted run leaves a model, and at the end.

    ``peak`` scales the learning rate: less than one for a model that is trained further.
    """
    state, step = muon.new_state(params), _compiled_step(shape)
    progress = _Progress(steps)
    for number in range(steps):
        batch = {name: jnp.asarray(array) for name, array in next(batches).items()}
        params, state, value = step(params, state, batch, jnp.float32(peak * _rate_at(number, steps)))
        progress.add(float(value), int((batch["segments"] > 0).sum()))
        if (number + 1) % YIELD_EVERY == 0 and number + 1 < steps:
            yield params
    yield params
