"""Small models of families whose memory is laid out in other ways than llama's: for predictions of it."""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from gguf_shapes.shapes import TINY, LlamaShape, _attention, _ends, _feed_forward, _file, _sizes, _vocabulary
from gguf_shapes.vocabulary import Vocabulary
from gguf_shapes.weights import Weights


def _stacks(weights: Weights, prefix: str, shape: LlamaShape) -> None:
    """Experts' matrices, stacked, with a router."""
    weights.matrix(f"{prefix}.ffn_gate_inp.weight", shape.width, shape.experts)
    for name, inputs, outputs in (
        ("gate", shape.width, shape.hidden),
        ("up", shape.width, shape.hidden),
        ("down", shape.hidden, shape.width),
    ):
        pattern = np.linspace(-1, 1, inputs, dtype=np.float32) * np.float32(inputs**-0.5)
        weights.tensor(f"{prefix}.ffn_{name}_exps.weight", np.tile(pattern, (shape.experts, outputs, 1)))


def _add_experts(writer: GGUFWriter, shape: LlamaShape, used: int) -> None:
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(used)
    writer.add_expert_feed_forward_length(shape.hidden)


def _norms(weights: Weights, prefix: str, width: int, *names: str) -> None:
    for name in names:
        weights.vector(f"{prefix}.{name}.weight", width, around=1.0)


def write_qwen3(path: Path, shape: LlamaShape = TINY, *, experts_used: int = 4) -> Vocabulary:
    """Write a qwen3 model, or a qwen3moe model if the shape has experts: queries and keys are normed."""
    with _file(path, "qwen3moe" if shape.experts else "qwen3", "random qwen3") as writer:
        _sizes(writer, shape)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_key_length(shape.head_width)
        writer.add_value_length(shape.head_width)
        if shape.experts:
            _add_experts(writer, shape, experts_used)
        vocabulary = _vocabulary(writer, shape.vocabulary)
        weights = Weights(writer, shape.weights, shape.seed, shape.layers)
        _ends(weights, shape)
        for layer in range(shape.layers):
            prefix = f"blk.{layer}"
            _norms(weights, prefix, shape.width, "attn_norm", "ffn_norm")
            _norms(weights, prefix, shape.head_width, "attn_q_norm", "attn_k_norm")
            _attention(weights, prefix, shape)
            (_stacks if shape.experts else _feed_forward)(weights, prefix, shape)
    return vocabulary


def write_latent(path: Path, shape: LlamaShape = TINY, *, rank: int = 64, rotated: int = 16) -> Vocabulary:
    """Write a deepseek2 model: each cell of the cache holds ``rank + rotated`` values for all heads together."""
    plain = shape.head_width
    with _file(path, "deepseek2", "random deepseek2") as writer:
        _sizes(writer, LlamaShape(**{**vars(shape), "kv_heads": 1}))
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_leading_dense_block_count(shape.layers)
        writer.add_q_lora_rank(rank)
        writer.add_kv_lora_rank(rank)
        writer.add_key_length(rank + rotated)
        writer.add_value_length(rank)
        writer.add_key_length_mla(plain + rotated)
        writer.add_value_length_mla(plain)
        writer.add_rope_dimension_count(rotated)
        writer.add_expert_feed_forward_length(shape.hidden)
        writer.add_expert_shared_count(1)
        vocabulary = _vocabulary(writer, shape.vocabulary)
        weights = Weights(writer, shape.weights, shape.seed, shape.layers)
        _ends(weights, shape)
        for layer in range(shape.layers):
            prefix = f"blk.{layer}"
            _norms(weights, prefix, shape.width, "attn_norm", "ffn_norm")
            _norms(weights, prefix, rank, "attn_q_a_norm", "attn_kv_a_norm")
            weights.matrix(f"{prefix}.attn_q_a.weight", shape.width, rank)
            weights.matrix(f"{prefix}.attn_q_b.weight", rank, shape.heads * (plain + rotated))
            weights.matrix(f"{prefix}.attn_kv_a_mqa.weight", shape.width, rank + rotated)
            weights.tensor(f"{prefix}.attn_k_b.weight", np.full((shape.heads, rank, plain), 0.01, np.float32))
            weights.tensor(f"{prefix}.attn_v_b.weight", np.full((shape.heads, plain, rank), 0.01, np.float32))
            weights.matrix(f"{prefix}.attn_output.weight", shape.heads * plain, shape.width)
            _feed_forward(weights, prefix, shape)
    return vocabulary


def write_linear_attention(
    path: Path, shape: LlamaShape = TINY, *, experts_used: int = 2, state: int = 32
) -> Vocabulary:
    """Write a qwen3next model: a gated delta net in three of four layers, attention in the fourth; needs experts."""
    groups, ranks = shape.kv_heads, shape.heads
    inner, mixed = ranks * state, (2 * groups + ranks) * state
    with _file(path, "qwen3next", "random qwen3next") as writer:
        _sizes(writer, shape)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_key_length(shape.head_width)
        writer.add_value_length(shape.head_width)
        _add_experts(writer, shape, experts_used)
        writer.add_expert_shared_feed_forward_length(shape.hidden)
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(inner)
        writer.add_ssm_state_size(state)
        writer.add_ssm_time_step_rank(ranks)
        writer.add_ssm_group_count(groups)
        vocabulary = _vocabulary(writer, shape.vocabulary)
        weights = Weights(writer, shape.weights, shape.seed, shape.layers)
        _ends(weights, shape)
        for layer in range(shape.layers):
            prefix = f"blk.{layer}"
            _norms(weights, prefix, shape.width, "attn_norm", "post_attention_norm")
            if layer % 4 == 3:
                _gated_attention(weights, prefix, shape)
            else:
                weights.matrix(f"{prefix}.attn_qkv.weight", shape.width, mixed)
                weights.matrix(f"{prefix}.attn_gate.weight", shape.width, inner)
                weights.tensor(f"{prefix}.ssm_conv1d.weight", np.full((mixed, 4), 0.25, np.float32))
                weights.vector(f"{prefix}.ssm_dt.bias", ranks)
                weights.tensor(f"{prefix}.ssm_a", np.full(ranks, -1.0, np.float32))
                weights.matrix(f"{prefix}.ssm_ba.weight", shape.width, 2 * ranks)
                _norms(weights, prefix, state, "ssm_norm")
                weights.matrix(f"{prefix}.ssm_out.weight", inner, shape.width)
            _stacks(weights, prefix, shape)
            weights.vector(f"{prefix}.ffn_gate_inp_shexp.weight", shape.width)
            for name, inputs, outputs in (("gate", 0, 1), ("up", 0, 1), ("down", 1, 0)):
                sizes = (shape.width, shape.hidden)
                weights.matrix(f"{prefix}.ffn_{name}_shexp.weight", sizes[inputs], sizes[outputs])
    return vocabulary


def _gated_attention(weights: Weights, prefix: str, shape: LlamaShape) -> None:
    keys = shape.kv_heads * shape.head_width
    weights.matrix(f"{prefix}.attn_q.weight", shape.width, 2 * shape.width)
    weights.matrix(f"{prefix}.attn_k.weight", shape.width, keys)
    weights.matrix(f"{prefix}.attn_v.weight", shape.width, keys)
    weights.matrix(f"{prefix}.attn_output.weight", shape.width, shape.width)
    _norms(weights, prefix, shape.head_width, "attn_q_norm", "attn_k_norm")
