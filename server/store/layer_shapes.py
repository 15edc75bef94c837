"""What each layer of a model remembers: keys and values per cell, or a state per sequence.

This follows ``load_hparams`` in https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp and the
``load_arch_hparams`` of src/models/*.cpp, as of llama-cpp-python 0.3.36. Where an architecture is not known here, a
layer is taken to remember all that its file has hyperparameters for, which is never too little.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from server.store.architectures import RECURRENT
from server.store.gguf_header import GgufArray, GgufHeader

BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
MAX_LAYERS = 1024

# They have no memory: every step computes its whole text.
_WITHOUT_MEMORY = frozenset(
    """
    bert dream eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llada llada-moe modern-bert neo-bert nomic-bert
    nomic-bert-moe rnd1 t5encoder wavtokenizer-dec
    """.split()  # noqa: SIM905 - a list would take a line for each
)


class _Windows(NamedTuple):
    """Which layers have a sliding window unless the file says otherwise: all but one of each ``period``."""

    period: int
    window: int = 0
    dense_first: bool = False


_WINDOWS = {
    "afmoe": _Windows(4),
    "cohere2": _Windows(4),
    "cohere2moe": _Windows(4, dense_first=True),
    "exaone-moe": _Windows(4, 128),
    "gemma2": _Windows(2, 4096),
    "gemma3": _Windows(6),
    "gemma3n": _Windows(5),
    "gpt-oss": _Windows(2),
    "laguna": _Windows(4, dense_first=True),
    "llama4": _Windows(4, 8192),
    "mellum": _Windows(4),
    "muse-glimmer": _Windows(4),
    "olmo2": _Windows(4),
    "plamo3": _Windows(8),
    "smallthinker": _Windows(4, 4096, dense_first=True),
}
# The file says for each layer whether it has a window.
_WINDOWS_LISTED = frozenset({"dots3note", "gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"})
# Every n-th layer attends; the file may say otherwise.
_ATTENTION_INTERVALS = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}
# A layer has a state if it has no heads of keys, and only then. falcon-h1 has both in every layer.
_EITHER = frozenset(
    """
    bailingmoe3 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe nemotron_h nemotron_h_moe plamo2
    """.split()  # noqa: SIM905 - a list would take a line for each
)
_PURE_MIXERS = frozenset({"nemotron_h", "nemotron_h_moe"})  # a layer mixes or feeds forward, never both


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer computes attention over and what it remembers.

    Attributes:
        heads: attention heads.
        head_keys: values of one head's query.
        head_values: values of one head's result.
        keys: values that a cell holds for keys; 0 if the layer has no KV cache.
        values: values that a cell holds beside them; 0 if they are part of the keys (latent attention).
        window: tokens that the layer sees; 0 is all.
        state: 32-bit values that each sequence holds, of any length.
        full_cells: values that a cell holds regardless of the window, as 16-bit numbers (keys of an indexer).

    """

    heads: int
    head_keys: int
    head_values: int
    keys: int
    values: int
    window: int = 0
    state: int = 0
    full_cells: int = 0


def at(values: Sequence[int], index: int, default: int = 0) -> int:
    """Return one layer's value of a hyperparameter that is one number or one for each layer; the last one goes on."""
    return max(values[min(index, len(values) - 1)], 0) if values else default


def num_layers(header: GgufHeader) -> int:
    """Return how many layers llama.cpp keeps a cache for: also those that only predict further tokens."""
    named = (int(found[1]) + 1 for tensor in header.tensors if (found := BLOCK.match(tensor.name)))
    count = header.block_count or max(named, default=1)
    loops = header.of_architecture("num_loops") or 1  # nanbeige: layers are passed several times, each with a cache
    count = count * max(loops, 1) + (header.architecture == "graniteswitch")  # whose adapter is chosen by one more
    return min(max(count, 1), MAX_LAYERS)


def layer_shapes(header: GgufHeader) -> tuple[LayerShape, ...]:
    """Describe every layer."""
    return tuple(_layer(header, index) for index in range(num_layers(header)))


def _layer(header: GgufHeader, index: int) -> LayerShape:
    window = _window(header, index)
    heads, kv_heads = at(header.head_counts, index), at(header.kv_head_counts, index)
    head_keys, head_values = (_head_width(header, kind, windowed=window > 0) for kind in ("key", "value"))
    has_cells, has_state = _kinds(header, index)
    state = _state(header) if has_state else 0
    if not has_cells:
        return LayerShape(heads, head_keys, head_values, 0, 0, window, state)
    latent = bool(_one(header, "attention.key_length_mla") and _one(header, "attention.value_length_mla"))
    return LayerShape(
        heads,
        head_keys,
        head_values,
        keys=head_keys * kv_heads,
        values=0 if latent else head_values * kv_heads,
        window=window,
        state=state,
        full_cells=_one(header, "attention.indexer.key_length"),
    )


def _one(header: GgufHeader, suffix: str, default: int = 0) -> int:
    """Return a hyperparameter as one number: the greatest if there is one for each layer."""
    return max((0, *header.per_layer(suffix))) if header.per_layer(suffix) else default


def _head_width(header: GgufHeader, kind: str, *, windowed: bool) -> int:
    heads = next((count for count in header.head_counts if count > 0), 0)
    width = _one(header, f"attention.{kind}_length") or ((header.embedding_length or 0) // heads if heads else 0)
    if f"{header.architecture}.attention.{kind}_length_swa" not in header.metadata:
        return width
    in_window = _one(header, f"attention.{kind}_length_swa")
    if header.architecture in _WINDOWS or header.architecture in _WINDOWS_LISTED:
        return in_window if windowed else width
    return max(width, in_window)


def _window(header: GgufHeader, index: int) -> int:
    architecture = header.architecture
    usual = _WINDOWS.get(architecture)
    if architecture == "exaone4" and header.block_count == 64:
        usual = _Windows(4, 4096)
    if usual is None and architecture not in _WINDOWS_LISTED:
        return 0
    window = _one(header, "attention.sliding_window", usual.window if usual else 0)
    if architecture == "llama4" and window:
        window = 8192  # whatever the file says
    return window if _in_window(header, index, usual) else 0


def _in_window(header: GgufHeader, index: int, usual: _Windows | None) -> bool:
    pattern = header.metadata.get(f"{header.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, GgufArray):
        listed = pattern.values or ()
        return index < len(listed) and bool(listed[index])
    if usual is None:
        return False
    period = pattern if isinstance(pattern, int) else usual.period
    if period <= 0:
        return True
    return index % period != 0 if usual.dense_first else index % period < period - 1


def _kinds(header: GgufHeader, index: int) -> tuple[bool, bool]:
    """Whether a layer has cells in the KV cache, and whether it has a state: the filters of ``create_memory``."""
    architecture = header.architecture
    if architecture in RECURRENT or architecture in _WITHOUT_MEMORY:
        return False, architecture in RECURRENT
    if index >= num_layers(header) - (header.of_architecture("nextn_predict_layers") or 0):
        return True, False
    listed, every = header.per_layer("attention.recurrent_layers"), _attends_every(header)
    if listed or every:
        recurrent = bool(at(listed, index)) if listed else (index + 1) % every != 0
        return not recurrent, recurrent
    attends = at(header.kv_head_counts, index) > 0
    if architecture in _EITHER or not attends:
        mixes = architecture not in _PURE_MIXERS or not at(header.per_layer("feed_forward_length"), index)
        return attends, mixes and not attends
    return _keeps_cells(header, index), True


def _attends_every(header: GgufHeader) -> int:
    """Return ``n`` if every n-th layer attends and the others have a state; 0 if it is decided otherwise."""
    return _one(header, "full_attention_interval", _ATTENTION_INTERVALS.get(header.architecture, 0))


def _keeps_cells(header: GgufHeader, index: int) -> bool:
    """Whether a layer keeps keys of its own; some read those of an earlier layer."""
    if header.architecture == "gemma3n":
        return index < 20
    return index < num_layers(header) - _one(header, "attention.shared_kv_layers")


def _state(header: GgufHeader) -> int:
    """Return the 32-bit values of one layer's state: ``n_embd_r`` + ``n_embd_s`` of src/llama-hparams.cpp."""
    width, heads = header.embedding_length or 0, max(header.head_counts, default=0)
    convolved = max(_one(header, "ssm.conv_kernel") - 1, 0)
    if wkv := _one(header, "wkv.head_size"):
        return width * (_one(header, "token_shift_count", 2) + wkv)
    if short := _one(header, "shortconv.l_cache"):
        return width * (short - 1)
    if kda := _one(header, "kda.head_dim"):
        return (3 * (convolved or 3) + kda) * heads * kda
    if header.architecture == "minimax-01":
        return heads * _head_width(header, "key", windowed=False) ** 2
    inner, kept = _one(header, "ssm.inner_size"), _one(header, "ssm.state_size")
    state = convolved * (inner + 2 * _one(header, "ssm.group_count") * kept) + inner * kept
    return 2 * state if header.architecture == "qwen4exp" else state  # which also keeps a history of embeddings
