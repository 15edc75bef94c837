"""Headers of models that exist only as headers."""

from __future__ import annotations

from pathlib import Path

from server.store.ggml_types import TENSOR_FORMATS
from server.store.gguf_header import GgufArray, GgufHeader, GgufScalar, GgufTensor

_FORMATS = {known.name: known for known in TENSOR_FORMATS.values()}


def llama_header(
    *,
    layers: int = 32,
    width: int = 4096,
    heads: int = 32,
    kv_heads: int = 8,
    hidden: int = 14_336,
    vocabulary: int = 32_768,
    trained: int = 32_768,
    kind: str = "Q4_K",
) -> GgufHeader:
    """Describe a dense model; as it is, one of 7 billion weights."""
    head = width // heads
    shapes = {
        "attn_q": (width, width),
        "attn_k": (width, head * kv_heads),
        "attn_v": (width, head * kv_heads),
        "attn_output": (width, width),
        "ffn_gate": (width, hidden),
        "ffn_up": (width, hidden),
        "ffn_down": (hidden, width),
    }
    named = {"token_embd.weight": (width, vocabulary)}
    named |= {f"blk.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in shapes.items()}
    named["output.weight"] = (width, vocabulary)
    tensors: list[GgufTensor] = []
    offset = 0
    for name, shape in named.items():
        form = _FORMATS["Q6_K" if name == "output.weight" else kind]
        size = shape[0] * shape[1] // form.block_len * form.block_bytes
        tensors.append(GgufTensor(name, shape, form, offset, size))
        offset += size
    metadata: dict[str, GgufScalar | GgufArray] = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.embedding_length": width,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.context_length": trained,
        "llama.vocab_size": vocabulary,
    }
    return GgufHeader(Path("model.gguf"), 3, offset, 32, 0, metadata, {}, tuple(tensors))
