"""Starting parameters: random, but with heads that can already copy.

Training finds such heads by itself, only late: a head of the first layer that looks one token back, and heads of the
second layer that look for the place after an earlier copy of the present token. Names, cities and the operands of sums
are all copied, so that starting with these heads saves most of the training.
"""

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from demo_model.network import Params, Shape, layer_shapes

Matrix = NDArray[np.float64]

EMBEDDING_SCALE = 0.05
CONSTANT = 0.2
LOOK_BACK = 1.8
WRITTEN = 0.08
MATCH = 3.0
COPIED = 0.4
FAST_PAIRS = 4


def new_params(shape: Shape, seed: int) -> Params:
    """Random parameters with copying heads in the first two layers."""
    source = np.random.default_rng(seed)
    matrices = {
        name: source.normal(0.0, 0.5 * rows**-0.5, (shape.layers, rows, columns))
        for name, (rows, columns) in layer_shapes(shape).items()
    }
    for silent in ("output", "down"):
        matrices[silent][:] = 0.0
    embedding = source.normal(0.0, EMBEDDING_SCALE, (shape.vocab, shape.width))
    embedding[:, 0] = CONSTANT
    bases = [_orthonormal(source, shape.width) for _ in range(3)]
    _look_back(matrices, shape, bases[0], bases[1])
    _match_and_copy(matrices, shape, bases[0], bases[1], bases[2])
    ones = np.ones((shape.layers, shape.width))
    return {
        "embedding": jnp.asarray(embedding, jnp.float32),
        "final_norm": jnp.ones((shape.width,), jnp.float32),
        "matrices": {name: jnp.asarray(matrix, jnp.float32) for name, matrix in matrices.items()},
        "norms": {name: jnp.asarray(ones, jnp.float32) for name in ("attention", "feed_forward")},
    }


def _orthonormal(source: np.random.Generator, width: int) -> Matrix:
    """Directions that are free of the first dimension, which is the same for all tokens."""
    basis = np.zeros((width, width - 1))
    basis[1:] = np.linalg.qr(source.normal(size=(width - 1, width - 1)))[0]
    return basis


def _part(index: int, shape: Shape) -> slice:
    return slice(index * shape.head_width, (index + 1) * shape.head_width)


def _look_back(matrices: dict[str, Matrix], shape: Shape, read: Matrix, written: Matrix) -> None:
    """Half of the heads of the first layer: they write down which token stood one or two places before."""
    half, groups = shape.head_width // 2, shape.heads // shape.kv_heads
    angles = shape.rope_base ** (-np.arange(FAST_PAIRS) / half)
    for head in range(shape.kv_heads // 2):
        key = np.zeros(shape.head_width)
        key[:FAST_PAIRS], key[half : half + FAST_PAIRS] = np.cos(angles), np.sin(angles)
        matrices["key"][0][:, _part(head, shape)] = 0.0
        matrices["key"][0][0, _part(head, shape)] = LOOK_BACK * key
        matrices["value"][0][:, _part(head, shape)] = read[:, _part(head, shape)]
        for group in range(groups):
            query = np.zeros(shape.head_width)
            query[:FAST_PAIRS], query[half : half + FAST_PAIRS] = np.cos(group * angles), -np.sin(group * angles)
            at = head * groups + group
            matrices["query"][0][:, _part(at, shape)] = 0.0
            matrices["query"][0][0, _part(at, shape)] = LOOK_BACK * query
            matrices["output"][0][_part(at, shape)] = WRITTEN * written[:, _part(at, shape)].T


def _match_and_copy(matrices: dict[str, Matrix], shape: Shape, read: Matrix, written: Matrix, copied: Matrix) -> None:
    """The second layer: the slow pairs of each head compare the present token with the one before another place.

    The second half of the heads compare the token before it as well, so that a repeated syllable misleads less.
    """
    half, groups = shape.head_width // 2, shape.heads // shape.kv_heads
    slow = np.r_[FAST_PAIRS + 1 : half, half + FAST_PAIRS + 1 : shape.head_width]
    prior = groups * shape.head_width
    for head in range(shape.kv_heads):
        earlier, pairwise = head % (shape.kv_heads // 2), head >= shape.kv_heads // 2
        chosen = np.roll(np.arange(shape.head_width), head * shape.head_width // shape.kv_heads)[: len(slow)]
        query, key = np.zeros((shape.width, shape.head_width)), np.zeros((shape.width, shape.head_width))
        query[:, slow] = read[:, earlier * shape.head_width + chosen]
        key[:, slow] = written[:, earlier * prior + chosen]
        if pairwise:
            rest, components = slow[1::2], chosen[1::2]
            query[:, rest] = written[:, earlier * prior + components]
            key[:, rest] = written[:, earlier * prior + shape.head_width + components]
        at = head * groups
        matrices["query"][1][:, _part(at, shape)] = MATCH * query
        matrices["key"][1][:, _part(head, shape)] = MATCH * key
        matrices["value"][1][:, _part(head, shape)] = copied[:, _part(head, shape)]
        matrices["output"][1][_part(at, shape)] = COPIED * copied[:, _part(head, shape)].T
