"""Random weight matrices, in the formats that llama.cpp computes with."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
POOL = 1 << 20  # weights drawn before they repeat


def _f32(values: NDArray[np.float32]) -> Bytes:
    return values.view(np.uint8).reshape(-1, 4)


def _f16(values: NDArray[np.float32]) -> Bytes:
    return values.astype(np.float16).view(np.uint8).reshape(-1, 2)


def _q8_0(values: NDArray[np.float32]) -> Bytes:
    """Blocks of 32 weights: a scale, then 32 signed bytes."""
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    quants = np.round(blocks / np.maximum(scales.astype(np.float32), 1e-8)).clip(-127, 127).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), quants.view(np.uint8)], axis=1)


def _q4_k(values: NDArray[np.float32]) -> Bytes:
    """Blocks of 256 weights: scale, offset, 12 bytes of 6-bit sub-scales (all of them 32), 256 half bytes.

    A weight is ``scale * 32 * half_byte - offset * 32``; the half bytes come from the values' bits.
    """
    blocks = values.reshape(-1, 256)
    scale = float(values.std()) / (32 * 4.61)  # 4.61: standard deviation of a uniform half byte
    head = np.array([scale, scale * 7.5], np.float16).view(np.uint8)
    head = np.concatenate([head, np.array([160] * 8 + [0] * 4, np.uint8)])
    halves = blocks.view(np.uint8).reshape(len(blocks), -1)[:, : 4 * 128 : 4]  # low mantissa bits: uniform
    return np.concatenate([np.tile(head, (len(blocks), 1)), halves], axis=1)


def _q6_k(values: NDArray[np.float32]) -> Bytes:
    """Blocks of 256 weights: 128 and 64 bytes of 6-bit numbers, 16 sub-scales (all of them 32), scale.

    A weight is ``scale * 32 * (number - 32)``; the numbers come from the values' bits.
    """
    blocks = values.reshape(-1, 256)
    scale = np.array([values.std() / (32 * 18.47)], np.float16)  # 18.47: standard deviation of a uniform 6-bit number
    tail = np.concatenate([np.full(16, 32, np.uint8), scale.view(np.uint8)])
    numbers = blocks.view(np.uint8).reshape(len(blocks), -1)[:, : 4 * 192 : 4]  # low mantissa bits: uniform
    return np.concatenate([numbers, np.tile(tail, (len(blocks), 1))], axis=1)


_FORMATS: dict[str, tuple[Type, int, Callable[[NDArray[np.float32]], Bytes]]] = {
    "F32": (Type.F32, 1, _f32),
    "F16": (Type.F16, 1, _f16),
    "Q8_0": (Type.Q8_0, 32, _q8_0),
    "Q4_K": (Type.Q4_K, 256, _q4_k),
    "Q6_K": (Type.Q6_K, 256, _q6_k),
}
_MIXED = "Q4_K_M"
_LAYER = re.compile(r"blk\.([0-9]+)\.(attn_v|ffn_down)\.weight")


@dataclass
class Weights:
    """Writes tensors of random weights; a shape that comes again is written from the same memory.

    ``kind`` is a format, or ``Q4_K_M``, the usual mixture of Q4_K and Q6_K in a model of so many ``layers``.
    """

    writer: GGUFWriter
    kind: str = "F32"
    seed: int = 0
    layers: int = 0
    _made: dict[tuple[str, int, int, float], Bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def matrix(self, name: str, inputs: int, outputs: int, *, scale: float = 1.0) -> None:
        """Add a matrix whose product with unit-variance inputs has a standard deviation of about ``scale``."""
        kind = self._kind(name)
        dtype, block, encode = _FORMATS[kind]
        if inputs % block:
            raise ValueError(f"{name}: {kind} needs a multiple of {block} inputs, not {inputs}")
        reusable = inputs * outputs >= POOL
        matrix = self._made.get((kind, inputs, outputs, scale)) if reusable else None
        if matrix is None:
            count = min(POOL, inputs * outputs)
            blocks = encode(self._random.standard_normal(count, np.float32) * np.float32(scale * inputs**-0.5))
            matrix = np.resize(blocks.reshape(-1), (outputs, inputs // block * blocks.shape[1]))
        if reusable:
            self._made[kind, inputs, outputs, scale] = matrix
        self.writer.add_tensor(name, matrix, raw_dtype=dtype)

    def rows(self, name: str, values: NDArray[np.float32]) -> None:
        """Add a matrix of these values, one output a row, in the format of the model."""
        dtype, _, encode = _FORMATS[self._kind(name)]
        self.writer.add_tensor(name, encode(values).reshape(len(values), -1), raw_dtype=dtype)

    def _kind(self, name: str) -> str:
        """Choose as llama.cpp's quantizer does for Q4_K_M (``use_more_bits`` in src/llama-quant.cpp)."""
        if self.kind != _MIXED:
            return self.kind
        if name == "output.weight":
            return "Q6_K"
        if (found := _LAYER.fullmatch(name)) is None:
            return "Q4_K"
        layer, eighth = int(found[1]), self.layers // 8
        has_more_bits = layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2
        return "Q6_K" if has_more_bits else "Q4_K"

    def vector(self, name: str, size: int, *, around: float = 0.0, spread: float = 0.02) -> None:
        """Add a bias or a norm: 32-bit floats around a value."""
        values = around + spread * self._random.standard_normal(size, np.float32)
        self.tensor(name, values.astype(np.float32))

    def tensor(self, name: str, values: NDArray[np.float32]) -> None:
        """Add 32-bit floats as they are; the last dimension is llama.cpp's first."""
        self.writer.add_tensor(name, values)
