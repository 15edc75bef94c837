"""The memory that computing one batch takes: what ggml's graph allocator reserves for the largest step.

The allocator (https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-alloc.c) gives a tensor's place to the
next one as soon as nothing reads it any more, so the buffer is as large as the widest moment of the graph and not the
sum of its tensors. Here each layer is looked at in its stages (attention, feed-forward, experts, state space), and the
widest stage counts. Stages are sized by the shapes of the weights that make them. Exact for llama-like layers; too much
by up to a few widths of the hidden state elsewhere, and deliberately much too much for linear attention.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from server.store.context_shape import ContextShape, FlashAttention
from server.store.gguf_header import GgufHeader
from server.store.layer_shapes import BLOCK, LayerShape, at, layer_shapes

FLOAT, HALF, INDEX = 4, 2, 8  # bytes of an activation, of a flash attention mask's cell, of an index of a cell
# Hidden states that live beside a stage: two inputs of the graph, the residual and its norm.
_BESIDE = 4
_UNALIGNED = 1 << 16
# The flash attention kernels of CUDA (ggml_cuda_get_best_fattn_kernel in ggml/src/ggml-cuda/fattn.cu).
_FLASH_HEADS = frozenset({40, 64, 72, 80, 96, 112, 128, 256, 512})
_FLASH_PAIRS = frozenset({(192, 128), (320, 256), (576, 512)})

Matrices = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ComputeSize:
    """Bytes reserved for computing.

    Attributes:
        whole: the compute buffer of a device that computes layers.
        inputs: the compute buffer of the CPU if it only prepares the inputs.
        work: what CPU kernels need beside it; allocated at the first step.

    """

    whole: int
    inputs: int
    work: int


def compute_size(header: GgufHeader, shape: ContextShape, vocabulary_size: int) -> ComputeSize:
    """Predict the buffers of the largest step, in bytes."""
    layers, rows, width = layer_shapes(header), shape.num_rows, header.embedding_length or 0
    flash = uses_flash_attention(header, shape, layers)
    masks = _masks(layers, shape, flash=flash)
    matrices = _matrices(header)
    beside = _BESIDE * width * max(1, 3 * _streams(header))
    widest, states = 0, 0
    for index, layer in enumerate(layers):
        values = max(_stages(header, shape, layer, index, matrices[index], flash=flash), default=0)
        widest, states = max(widest, values), max(states, layer.state)
    logits = (vocabulary_size + 2 * width) * shape.num_outputs
    embeddings = width * (2 + (header.of_architecture("n_deepstack_layers") or 0)) + _per_layer_inputs(
        header, len(layers)
    )
    steps = rows * (beside + widest + embeddings - 2 * width) + 2 * states * shape.num_sequences
    whole = max(masks + FLOAT * steps + _unpacked(layers, shape), FLOAT * (rows * width + logits)) + _UNALIGNED
    longest = max((dims[0] for named in matrices.values() for dims in named.values() if dims), default=width)
    return ComputeSize(whole, masks + FLOAT * rows * embeddings + _UNALIGNED, HALF * rows * longest)


def uses_flash_attention(header: GgufHeader, shape: ContextShape, layers: tuple[LayerShape, ...]) -> bool:
    """Whether attention scores are never all in memory; where a GPU may be unable to do that, they are counted."""
    if header.architecture == "grok":
        return False
    if shape.kv_cache_type != "f16" or shape.flash_attention is FlashAttention.ON:
        return True  # quantized values need it
    if shape.flash_attention is FlashAttention.OFF:
        return False
    heads = {(layer.head_keys, layer.head_values) for layer in layers if layer.keys}
    known = all((keys == values and keys in _FLASH_HEADS) or (keys, values) in _FLASH_PAIRS for keys, values in heads)
    return known or not shape.num_gpu_layers


def _matrices(header: GgufHeader) -> Mapping[int, dict[str, tuple[int, ...]]]:
    """Shapes of the weights by layer and name: inputs, outputs, experts."""
    found: defaultdict[int, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for tensor in header.tensors:
        if (named := BLOCK.match(tensor.name)) and len(tensor.shape) > 1:
            found[int(named[1])][named[2].removesuffix(".weight")] = tensor.shape
    return found


def _masks(layers: tuple[LayerShape, ...], shape: ContextShape, *, flash: bool) -> int:
    """Bytes of the masks and cell indices, which are inputs: one set for each kind of cache."""
    total = 0
    caches = {layer.window for layer in layers if layer.keys}
    for window in caches:
        total += shape.num_rows * shape.window_cells(window) * (HALF if flash else FLOAT) + 2 * INDEX * shape.num_rows
        if not flash:  # values are stored transposed, each with an index of its own
            total += INDEX * shape.num_rows * max(layer.values for layer in layers)
    return total


def _stages(
    header: GgufHeader, shape: ContextShape, layer: LayerShape, index: int, matrices: Matrices, *, flash: bool
) -> Iterator[int]:
    """Values per token at each of a layer's wide moments."""
    width = header.embedding_length or 0
    if layer.keys:
        yield _attention(shape, layer, width, matrices, flash=flash)
    if layer.state or any(name.startswith(("ssm_", "time_mix_", "shortconv")) for name in matrices):
        yield _mixing(header, shape, layer, width, matrices)
    routed = _routed(header, index, width, matrices)
    dense = [_dense(matrices, suffix) for suffix in ("", "_shexp", "_chexps")]
    if not any(dense) and not routed:
        dense = [3 * at(header.per_layer("feed_forward_length"), index)]
    yield max(routed, *dense) + (width if routed and any(dense) else 0)


def _outputs(matrices: Matrices, *names: str) -> int:
    return sum(matrices[name][1] for name in names if name in matrices)


def _dense(matrices: Matrices, suffix: str) -> int:
    """Gate, up and their product."""
    down = matrices.get(f"ffn_down{suffix}")
    return _outputs(matrices, f"ffn_up{suffix}", f"ffn_gate{suffix}") + down[0] if down else 0


def _routed(header: GgufHeader, index: int, width: int, matrices: Matrices) -> int:
    """Gate, up, their product and the result for each expert in use; results may fit where gate and up were."""
    down, used = matrices.get("ffn_down_exps"), at(header.per_layer("expert_used_count"), index)
    if not down:
        return 0
    wide = _outputs(matrices, "ffn_up_exps", "ffn_gate_exps", "ffn_gate_up_exps")
    routing = 3 * max(header.of_architecture("expert_count") or 0, down[-1])
    weighted = used * width if header.architecture == "llama4" else 0  # there, each expert has its own input
    return used * (wide + down[0] + (width if width > wide else 0)) + weighted + routing


def _attention(shape: ContextShape, layer: LayerShape, width: int, matrices: Matrices, *, flash: bool) -> int:
    queries, results = layer.heads * layer.head_keys, layer.heads * layer.head_values
    indexed = 4 * shape.cells if layer.full_cells else 0  # scores of an indexer, sorted
    projected = _outputs(matrices, "attn_q", "attn_q_b", "attn_gate")
    scores = 0 if flash else layer.heads * shape.window_cells(layer.window)
    if layer.keys and not layer.values:  # latent: queries are taken into the cache's space and results out of it
        decompressed = matrices.get("attn_output", (0, 0))[0]
        return scores + queries + results + layer.keys + max(projected, queries // 4) + decompressed + indexed
    if not flash:
        return scores + queries + indexed
    values = max(projected, queries) + results + layer.keys + layer.values - width
    if shape.kv_cache_type != "f16":  # rotated
        values += queries + layer.keys + layer.values
    return max(values, queries) + indexed


def _mixing(header: GgufHeader, shape: ContextShape, layer: LayerShape, width: int, matrices: Matrices) -> int:
    """Values per token of a state space or of linear attention."""
    inner = header.of_architecture("ssm.inner_size") or width
    if "ssm_x" in matrices and not layer.keys:
        return _outputs(matrices, "ssm_in", "ssm_x") + 3 * inner
    grouped = 2 * (header.of_architecture("ssm.group_count") or 0) * (header.of_architecture("ssm.state_size") or 0)
    decay = layer.heads * shape.num_rows if header.architecture in ("kimi-linear", "minimax-01") else 0
    heads = layer.heads * max(layer.head_keys, header.of_architecture("kda.head_dim") or 0)
    return 8 * max(inner + grouped, width, heads) + 3 * decay


def _streams(header: GgufHeader) -> int:
    """Hidden states that run in parallel, 0 if it is just one."""
    if header.architecture == "gemma3n":
        return 4
    return header.of_architecture("hyper_connection.count") or 0


def _per_layer_inputs(header: GgufHeader, num_layers: int) -> int:
    return 3 * num_layers * (header.of_architecture("embedding_length_per_layer_input") or 0)


def _unpacked(layers: tuple[LayerShape, ...], shape: ContextShape) -> int:
    """Bytes for one layer's cache as 16-bit numbers, which CUDA's kernels make of a quantized one."""
    if shape.kv_cache_type == "f16" or not shape.num_gpu_layers:
        return 0
    return HALF * max((shape.window_cells(layer.window) * (layer.keys + layer.values) for layer in layers), default=0)
