"""The shapes: llama of any size, and one small model of each other kind of memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, PoolingType

from gguf_shapes.vocabulary import Vocabulary, add_byte_pairs, add_word_pieces, byte_pair_vocabulary
from gguf_shapes.weights import Weights


@dataclass(frozen=True)
class LlamaShape:
    """A llama model: grouped-query attention, gated feed-forward, tied or separate output matrix."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 128
    vocabulary: int = 512
    context: int = 512
    weights: str = "F32"
    tied: bool = True
    experts: int = 0
    seed: int = 0

    @property
    def head_width(self) -> int:
        """Size of one attention head."""
        return self.width // self.heads


TINY = LlamaShape()
QUARTER_BILLION = LlamaShape(16, 896, 14, 2, 2432, 151_936, 4096, "Q8_0")  # 272M parameters
SEVEN_BILLION = LlamaShape(32, 4096, 32, 8, 14_336, 32_000, 8192, "Q4_K_M", tied=False)  # as Mistral 7B
EIGHT_BILLION = LlamaShape(32, 4096, 32, 8, 14_336, 128_256, 8192, "Q4_K_M", tied=False)  # as Llama 3.1 8B


@contextmanager
def _file(path: Path, architecture: str, name: str) -> Iterator[GGUFWriter]:
    writer = GGUFWriter(path, architecture)
    writer.add_name(name)
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _sizes(writer: GGUFWriter, shape: LlamaShape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)


def _vocabulary(writer: GGUFWriter, size: int) -> Vocabulary:
    vocabulary = byte_pair_vocabulary(size)
    add_byte_pairs(writer, vocabulary)
    return vocabulary


def _ends(weights: Weights, shape: LlamaShape) -> None:
    weights.matrix("token_embd.weight", shape.width, shape.vocabulary)
    weights.vector("output_norm.weight", shape.width, around=1.0)
    if not shape.tied:
        weights.matrix("output.weight", shape.width, shape.vocabulary)


def _attention(weights: Weights, prefix: str, shape: LlamaShape) -> None:
    keys = shape.kv_heads * shape.head_width
    weights.matrix(f"{prefix}.attn_q.weight", shape.width, shape.width)
    weights.matrix(f"{prefix}.attn_k.weight", shape.width, keys)
    weights.matrix(f"{prefix}.attn_v.weight", shape.width, keys)
    weights.matrix(f"{prefix}.attn_output.weight", shape.width, shape.width)


def _feed_forward(weights: Weights, prefix: str, shape: LlamaShape) -> None:
    weights.matrix(f"{prefix}.ffn_gate.weight", shape.width, shape.hidden)
    weights.matrix(f"{prefix}.ffn_up.weight", shape.width, shape.hidden)
    weights.matrix(f"{prefix}.ffn_down.weight", shape.hidden, shape.width)


def _experts(weights: Weights, prefix: str, shape: LlamaShape) -> None:
    random = np.random.default_rng(shape.seed)
    weights.matrix(f"{prefix}.ffn_gate_inp.weight", shape.width, shape.experts)
    for name, inputs, outputs in (
        ("gate", shape.width, shape.hidden),
        ("up", shape.width, shape.hidden),
        ("down", shape.hidden, shape.width),
    ):
        stack = random.standard_normal((shape.experts, outputs, inputs), np.float32) * np.float32(inputs**-0.5)
        weights.tensor(f"{prefix}.ffn_{name}_exps.weight", stack)


def write_llama(path: Path, shape: LlamaShape = TINY, *, name: str = "random llama") -> Vocabulary:
    """Write a llama model; ``TINY`` takes milliseconds, ``EIGHT_BILLION`` seconds and 4.9 GB."""
    with _file(path, "llama", name) as writer:
        _sizes(writer, shape)
        writer.add_rope_dimension_count(shape.head_width)
        writer.add_layer_norm_rms_eps(1e-5)
        if shape.experts:
            writer.add_expert_count(shape.experts)
            writer.add_expert_used_count(2)
        vocabulary = _vocabulary(writer, shape.vocabulary)
        weights = Weights(writer, shape.weights, shape.seed, shape.layers)
        _ends(weights, shape)
        for layer in range(shape.layers):
            prefix = f"blk.{layer}"
            weights.vector(f"{prefix}.attn_norm.weight", shape.width, around=1.0)
            _attention(weights, prefix, shape)
            weights.vector(f"{prefix}.ffn_norm.weight", shape.width, around=1.0)
            (_experts if shape.experts else _feed_forward)(weights, prefix, shape)
    return vocabulary


def write_sliding_window(path: Path, shape: LlamaShape = TINY, *, window: int = 32) -> Vocabulary:
    """Write a gemma2 model: every second layer attends to the last ``window`` tokens only."""
    with _file(path, "gemma2", "random gemma2") as writer:
        _sizes(writer, shape)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_key_length(shape.head_width)
        writer.add_value_length(shape.head_width)
        writer.add_sliding_window(window)
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
        vocabulary = _vocabulary(writer, shape.vocabulary)
        weights = Weights(writer, shape.weights, shape.seed, shape.layers)
        _ends(weights, shape)
        for layer in range(shape.layers):
            prefix = f"blk.{layer}"
            for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
                weights.vector(f"{prefix}.{norm}.weight", shape.width, around=1.0)
            _attention(weights, prefix, shape)
            _feed_forward(weights, prefix, shape)
    return vocabulary


@dataclass(frozen=True)
class _StateSpace:
    convolution: int = 4
    state: int = 16
    rank: int = 4


def _add_state_space(writer: GGUFWriter, inner: int, space: _StateSpace) -> None:
    writer.add_ssm_conv_kernel(space.convolution)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(space.state)
    writer.add_ssm_time_step_rank(space.rank)


def _mamba(weights: Weights, prefix: str, width: int, space: _StateSpace, *, norms: bool) -> None:
    inner = 2 * width
    weights.matrix(f"{prefix}.ssm_in.weight", width, 2 * inner)
    weights.matrix(f"{prefix}.ssm_conv1d.weight", space.convolution, inner)
    weights.vector(f"{prefix}.ssm_conv1d.bias", inner)
    weights.matrix(f"{prefix}.ssm_x.weight", inner, space.rank + 2 * space.state)
    weights.matrix(f"{prefix}.ssm_dt.weight", space.rank, inner)
    weights.vector(f"{prefix}.ssm_dt.bias", inner, around=-4.0)
    decay = -np.tile(np.arange(1, space.state + 1, dtype=np.float32), (inner, 1))
    weights.tensor(f"{prefix}.ssm_a", decay)
    weights.vector(f"{prefix}.ssm_d", inner, around=1.0)
    weights.matrix(f"{prefix}.ssm_out.weight", inner, width)
    if norms:
        weights.vector(f"{prefix}.ssm_dt_norm.weight", space.rank, around=1.0)
        weights.vector(f"{prefix}.ssm_b_norm.weight", space.state, around=1.0)
        weights.vector(f"{prefix}.ssm_c_norm.weight", space.state, around=1.0)


def write_recurrent(path: Path, shape: LlamaShape = TINY) -> Vocabulary:
    """Write a mamba model: a state of fixed size instead of a KV cache."""
    space = _StateSpace()
    with _file(path, "mamba", "random mamba") as writer:
        writer.add_context_length(shape.context)
        writer.add_embedding_length(shape.width)
        writer.add_block_count(shape.layers)
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_layer_norm_rms_eps(1e-5)
        _add_state_space(writer, 2 * shape.width, space)
        vocabulary = _vocabulary(writer, shape.vocabulary)
        weights = Weights(writer, "F32", shape.seed)
        _ends(weights, shape)
        for layer in range(shape.layers):
            weights.vector(f"blk.{layer}.attn_norm.weight", shape.width, around=1.0)
            _mamba(weights, f"blk.{layer}", shape.width, space, norms=False)
    return vocabulary


def write_hybrid(path: Path, shape: LlamaShape = TINY) -> Vocabulary:
    """Write a jamba model: mamba layers, and attention in every second one."""
    space = _StateSpace()
    with _file(path, "jamba", "random jamba") as writer:
        writer.add_context_length(shape.context)
        writer.add_embedding_length(shape.width)
        writer.add_block_count(shape.layers)
        writer.add_feed_forward_length(shape.hidden)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv([shape.kv_heads if layer % 2 else 0 for layer in range(shape.layers)])
        writer.add_layer_norm_rms_eps(1e-5)
        _add_state_space(writer, 2 * shape.width, space)
        vocabulary = _vocabulary(writer, shape.vocabulary)
        weights = Weights(writer, "F32", shape.seed)
        _ends(weights, shape)
        for layer in range(shape.layers):
            prefix = f"blk.{layer}"
            weights.vector(f"{prefix}.attn_norm.weight", shape.width, around=1.0)
            if layer % 2:
                _attention(weights, prefix, shape)
            else:
                _mamba(weights, prefix, shape.width, space, norms=True)
            weights.vector(f"{prefix}.ffn_norm.weight", shape.width, around=1.0)
            _feed_forward(weights, prefix, shape)
    return vocabulary


def write_embedding(path: Path, shape: LlamaShape = TINY) -> None:
    """Write a BERT model with mean pooling and its own WordPiece vocabulary; it embeds and cannot generate."""
    with _file(path, "bert", "random bert") as writer:
        writer.add_context_length(shape.context)
        writer.add_embedding_length(shape.width)
        writer.add_block_count(shape.layers)
        writer.add_feed_forward_length(shape.hidden)
        writer.add_head_count(shape.heads)
        writer.add_layer_norm_eps(1e-12)
        writer.add_causal_attention(value=False)
        writer.add_pooling_type(PoolingType.MEAN)
        size = add_word_pieces(writer)
        weights = Weights(writer, "F32", shape.seed)
        weights.matrix("token_embd.weight", shape.width, size)
        weights.matrix("token_types.weight", shape.width, 2)
        weights.matrix("position_embd.weight", shape.width, shape.context)
        _norm(weights, "token_embd_norm", shape.width)
        for layer in range(shape.layers):
            _encoder_layer(weights, f"blk.{layer}", shape)


def _norm(weights: Weights, name: str, width: int) -> None:
    weights.vector(f"{name}.weight", width, around=1.0)
    weights.vector(f"{name}.bias", width)


def _encoder_layer(weights: Weights, prefix: str, shape: LlamaShape) -> None:
    matrices = [(f"attn_{part}", shape.width, shape.width) for part in ("q", "k", "v", "output")]
    matrices += [("ffn_up", shape.width, shape.hidden), ("ffn_down", shape.hidden, shape.width)]
    for name, inputs, outputs in matrices:
        weights.matrix(f"{prefix}.{name}.weight", inputs, outputs)
        weights.vector(f"{prefix}.{name}.bias", outputs)
    _norm(weights, f"{prefix}.attn_output_norm", shape.width)
    _norm(weights, f"{prefix}.layer_output_norm", shape.width)
