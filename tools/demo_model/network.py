"""The llama network in JAX: parameters, forward pass and loss."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Params = dict[str, Any]
Batch = dict[str, Array]


@dataclass(frozen=True)
class Shape:
    """The sizes of the network."""

    vocab: int
    width: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 512
    rope_base: float = 500000.0
    epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """The width of one attention head."""
        return self.width // self.heads


def layer_shapes(shape: Shape) -> dict[str, tuple[int, int]]:
    """Rows and columns of the matrices of a layer."""
    keys = shape.kv_heads * shape.head_width
    return {
        "query": (shape.width, shape.width),
        "key": (shape.width, keys),
        "value": (shape.width, keys),
        "output": (shape.width, shape.width),
        "gate": (shape.width, shape.hidden),
        "up": (shape.width, shape.hidden),
        "down": (shape.hidden, shape.width),
    }


def _rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon) * weight


def _rotations(positions: Array, shape: Shape) -> tuple[Array, Array]:
    half = shape.head_width // 2
    frequencies = shape.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]


def _rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """Rotate the two halves of each head; the export interleaves them for llama.cpp."""
    cosine, sine = rotation
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


def _by_head(x: Array, batch: int, heads: int) -> Array:
    return x.reshape(batch, x.shape[0] // batch, heads, -1).transpose(0, 2, 1, 3)


def _attend(x: Array, layer: Params, rotation: tuple[Array, Array], bias: Array, shape: Shape) -> Array:
    batch, length = bias.shape[0], bias.shape[-1]
    query = _rotate(_by_head(x @ layer["query"], batch, shape.heads), rotation) * shape.head_width**-0.5
    key = _rotate(_by_head(x @ layer["key"], batch, shape.kv_heads), rotation)
    value = _by_head(x @ layer["value"], batch, shape.kv_heads)
    query = query.reshape(batch, shape.kv_heads, -1, shape.head_width)
    scores = (query @ key.swapaxes(-1, -2)).reshape(batch, shape.heads, length, length)
    spread = jax.nn.softmax(scores + bias, -1).reshape(batch, shape.kv_heads, -1, length)
    mixed: Array = (spread @ value).reshape(batch, shape.heads, length, -1)
    output: Array = mixed.transpose(0, 2, 1, 3).reshape(-1, shape.width) @ layer["output"]
    return output


def _feed_forward(x: Array, layer: Params) -> Array:
    output: Array = (jax.nn.silu(x @ layer["gate"]) * (x @ layer["up"])) @ layer["down"]
    return output


def _attention_bias(segments: Array) -> Array:
    """Tokens see the earlier tokens of their own conversation only."""
    same = segments[:, :, None] == segments[:, None, :]
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return jnp.where(same & causal, 0.0, -1e9)[:, None]


def _hidden_states(params: Params, batch: Batch, shape: Shape) -> Array:
    """One row per token: XLA's matrix products on a CPU are three times faster in two dimensions."""
    x = jax.nn.one_hot(batch["tokens"].reshape(-1), shape.vocab) @ params["embedding"]
    rotation = _rotations(batch["positions"], shape)
    bias = _attention_bias(batch["segments"])
    for index in range(shape.layers):
        layer = {name: matrix[index] for name, matrix in params["matrices"].items()}
        norms = {name: weight[index] for name, weight in params["norms"].items()}
        x = x + _attend(_rms_norm(x, norms["attention"], shape.epsilon), layer, rotation, bias, shape)
        x = x + _feed_forward(_rms_norm(x, norms["feed_forward"], shape.epsilon), layer)
    return _rms_norm(x, params["final_norm"], shape.epsilon)


def logits(params: Params, batch: Batch, shape: Shape) -> Array:
    """Scores of the next token, one row per token."""
    embedding: Array = params["embedding"]
    return _hidden_states(params, batch, shape) @ embedding.T


def loss(params: Params, batch: Batch, shape: Shape) -> Array:
    """Mean surprise over the tokens that have weight."""
    scores = logits(params, batch, shape)
    targets, weights = batch["targets"].reshape(-1), batch["weights"].reshape(-1)
    chosen = jnp.sum(jnp.where(jnp.arange(shape.vocab) == targets[:, None], scores, 0.0), -1)
    surprise = jax.nn.logsumexp(scores, -1) - chosen
    return jnp.sum(surprise * weights) / jnp.maximum(jnp.sum(weights), 1.0)
