"""The optimizer: Muon for the matrices, Adam for embedding and norms."""

import jax
import jax.numpy as jnp
from jax import Array

from demo_model.network import Params

MUON_MOMENTUM = 0.95
ADAM_DECAYS = (0.9, 0.98)


def new_state(params: Params) -> Params:
    """Moments of nothing yet."""
    first, second = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    return {"first": first, "second": second, "step": jnp.zeros((), jnp.int32)}


def _orthogonalized(matrix: Array) -> Array:
    """Newton-Schulz iteration towards the nearest orthogonal matrix, over stacked layers."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x: Array = matrix.swapaxes(-1, -2) if tall else matrix
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.swapaxes(-1, -2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.swapaxes(-1, -2) if tall else x


def _muon_step(weight: Array, gradient: Array, momentum: Array, rate: Array, decay: float) -> tuple[Array, Array]:
    momentum = MUON_MOMENTUM * momentum + (1 - MUON_MOMENTUM) * gradient
    direction = _orthogonalized((1 - MUON_MOMENTUM) * gradient + MUON_MOMENTUM * momentum)
    scale = max(1.0, weight.shape[-1] / weight.shape[-2]) ** 0.5
    return weight * (1 - rate * decay) - rate * scale * direction, momentum


def _adam_step(
    weight: Array, gradient: Array, first: Array, second: Array, rate: Array, step: Array
) -> tuple[Array, Array, Array]:
    first_decay, second_decay = ADAM_DECAYS
    first = first_decay * first + (1 - first_decay) * gradient
    second = second_decay * second + (1 - second_decay) * gradient**2
    mean = first / (1 - first_decay**step)
    spread = jnp.sqrt(second / (1 - second_decay**step)) + 1e-8
    return weight - rate * mean / spread, first, second


def updated(
    params: Params, gradients: Params, state: Params, muon_rate: Array, adam_rate: Array, decay: float = 0.05
) -> tuple[Params, Params]:
    """Parameters and state after one step."""
    step = state["step"] + 1
    new_params, first, second = dict(params), dict(state["first"]), dict(state["second"])
    moved = {
        name: _muon_step(weight, gradients["matrices"][name], first["matrices"][name], muon_rate, decay)
        for name, weight in params["matrices"].items()
    }
    new_params["matrices"] = {name: pair[0] for name, pair in moved.items()}
    first["matrices"] = {name: pair[1] for name, pair in moved.items()}
    for name in ("embedding", "final_norm", "norms"):
        results = jax.tree.map(
            lambda weight, gradient, one, two: _adam_step(weight, gradient, one, two, adam_rate, step),
            params[name],
            gradients[name],
            first[name],
            second[name],
        )
        new_params[name], first[name], second[name] = (
            jax.tree.map(lambda triple, at=at: triple[at], results, is_leaf=lambda x: isinstance(x, tuple))
            for at in range(3)
        )
    return new_params, {"first": first, "second": second, "step": step}
