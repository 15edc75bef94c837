"""How much memory a model will take, from its header alone: what the pool decides on before it loads anything.

All figures are bytes. Weights, KV cache and output buffer are computed as llama.cpp computes them; the compute buffer
is an estimate (see ``compute_size``), and so is what the vocabulary takes. ``benchmarks/memory_prediction.py`` holds
them against llama.cpp's own figures. One GPU is assumed: with several, llama.cpp divides the layers among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from server.store.compute_size import ComputeSize, compute_size
from server.store.context_shape import ContextShape, FlashAttention, repacked_formats
from server.store.ggml_types import TENSOR_FORMATS, TensorFormat
from server.store.gguf_header import GgufHeader, GgufTensor
from server.store.layer_shapes import BLOCK, LayerShape, layer_shapes, num_layers

__all__ = [
    "ContextShape",
    "FlashAttention",
    "Footprint",
    "cache_bytes",
    "layers_that_fit",
    "predict_footprint",
    "repacked_formats",
]

_FORMATS = {known.name: known for known in TENSOR_FORMATS.values()}
_STATE_BYTES = 4  # create_memory: states are F32 whatever the type of the KV cache
_TOKEN_BYTES = 280  # a token with its merge in llama.cpp's tables; measured: 270
_GRAMMAR_TOKEN_BYTES = 180  # a token in llguidance's tables; measured: 170 of 152,000, 250 of 32,000
_CONTEXT_BYTES = 3 << 20  # graph, tensor descriptions, the first pages of everything
_GPU_ALIGNMENT = 128
_GPU_ROW = 512  # CUDA pads the last row of a quantized matrix to a multiple of this
_MARGIN_SHARE = 32
_MARGIN_LEAST_CPU, _MARGIN_LEAST_GPU = 4 << 20, 16 << 20
_REPACKED_ROWS = 8
_INPUTS = ("token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
_OF_LAYERS = ("token_embd_norm.", "per_layer_", "rope_", "hrm.")  # they go where the first layer goes


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a model takes in main memory and on the GPU.

    Attributes:
        weights_mapped: weights in main memory that are pages of the file: the system may drop and read them again.
        weights_cpu: weights in main memory that are not, among them those that were rearranged for the processor.
        weights_gpu: weights on the GPU.
        kv_cpu: KV cache and recurrent states in main memory.
        kv_gpu: KV cache and recurrent states on the GPU.
        compute_cpu: compute buffer in main memory.
        compute_gpu: compute buffer on the GPU.
        output: logits, in main memory.
        host: vocabulary, for grammars too, graph and work space of CPU kernels, in main memory; llama.cpp does not
            report it.

    """

    weights_mapped: int
    weights_cpu: int
    weights_gpu: int
    kv_cpu: int
    kv_gpu: int
    compute_cpu: int
    compute_gpu: int
    output: int
    host: int

    @property
    def buffers_cpu(self) -> int:
        """What llama.cpp will report about main memory."""
        return self.weights_mapped + self.weights_cpu + self.kv_cpu + self.compute_cpu + self.output

    @property
    def buffers_gpu(self) -> int:
        """What llama.cpp will report about the GPU."""
        return self.weights_gpu + self.kv_gpu + self.compute_gpu

    @property
    def margin_cpu(self) -> int:
        """For what is not known exactly: 3 % and at least 4 MiB."""
        return max((self.buffers_cpu + self.host) // _MARGIN_SHARE, _MARGIN_LEAST_CPU)

    @property
    def margin_gpu(self) -> int:
        """For what is not known exactly: 3 % and at least 16 MiB, if anything is there.

        The driver's own memory, some 0.5 GB once for each process, is not in it.
        """
        return max(self.buffers_gpu // _MARGIN_SHARE, _MARGIN_LEAST_GPU) if self.buffers_gpu else 0

    @property
    def total_cpu(self) -> int:
        """Main memory to set aside."""
        return self.buffers_cpu + self.host + self.margin_cpu

    @property
    def total_gpu(self) -> int:
        """Memory of the GPU to set aside."""
        return self.buffers_gpu + self.margin_gpu


def predict_footprint(header: GgufHeader, shape: ContextShape, parts: Sequence[GgufHeader] = ()) -> Footprint:
    """Predict what a model takes; for any header, and rather too much than too little.

    Args:
        header: of the file, or of the first part of a split one.
        shape: the context.
        parts: headers of the other parts of a split model. Without them, their tensors are taken to be as large as the
            first part's.

    """
    count = num_layers(header)
    on_gpu = count + 1 if shape.num_gpu_layers < 0 else min(shape.num_gpu_layers, count + 1)
    shape = replace(shape, num_gpu_layers=on_gpu)
    tied = all(tensor.name != "output.weight" for part in (header, *parts) for tensor in part.tensors)
    files = [_Weights.of(part, shape, count, tied=tied) for part in (header, *parts)]
    weights = _scaled(_sum(files), header, parts)
    layers = layer_shapes(header)
    caches = [cache_bytes(layer, shape, _padded_values(layers, shape)) for layer in layers]
    first_on_gpu = count + 1 - on_gpu
    vocabulary_size = header.vocabulary_size or _rows_of(header, "token_embd.weight")
    compute = compute_size(_joined(header, parts), shape, vocabulary_size)
    compute_cpu, compute_gpu = _compute(compute, on_gpu, count, weights.copied)
    return Footprint(
        weights_mapped=weights.mapped,
        weights_cpu=weights.cpu,
        weights_gpu=weights.gpu,
        kv_cpu=sum(caches[:first_on_gpu]),
        kv_gpu=sum(caches[first_on_gpu:]),
        compute_cpu=compute_cpu,
        compute_gpu=compute_gpu,
        output=4 * vocabulary_size * shape.num_outputs,
        host=_CONTEXT_BYTES + (_TOKEN_BYTES + _GRAMMAR_TOKEN_BYTES) * vocabulary_size + compute.work,
    )


def layers_that_fit(header: GgufHeader, shape: ContextShape, gpu_bytes: int, parts: Sequence[GgufHeader] = ()) -> int:
    """Return the greatest ``num_gpu_layers`` whose ``total_gpu`` is within ``gpu_bytes``: 0 to ``block_count + 1``."""
    least, most = 0, num_layers(header) + 1
    while least < most:  # more layers never take less
        middle = (least + most + 1) // 2
        if predict_footprint(header, replace(shape, num_gpu_layers=middle), parts).total_gpu <= gpu_bytes:
            least = middle
        else:
            most = middle - 1
    return least


def cache_bytes(layer: LayerShape, shape: ContextShape, padded_values: int = 0) -> int:
    """Return what one layer remembers, in bytes: cells times keys and values, sequences times state.

    ``llama_kv_cache`` in src/llama-kv-cache.cpp, ``llama_memory_recurrent`` in src/llama-memory-recurrent.cpp.

    Args:
        layer: the layer.
        shape: the context.
        padded_values: values per cell that a layer is padded to.

    """
    if not layer.keys:
        return _STATE_BYTES * layer.state * max(shape.num_sequences, 1)
    element = _FORMATS.get(shape.kv_cache_type.upper(), _FORMATS["F32"])
    values = max(layer.values, padded_values) if layer.values else 0
    cell = _row(element, layer.keys) + _row(element, values)
    indexer = _row(_FORMATS["F16"], layer.full_cells) * shape.cells
    state = _STATE_BYTES * layer.state * max(shape.num_sequences, 1)
    return cell * shape.window_cells(layer.window) + indexer + state


def _row(element: TensorFormat, values: int) -> int:
    return -(-values // element.block_len) * element.block_bytes


def _padded_values(layers: Iterable[LayerShape], shape: ContextShape) -> int:
    """Values per cell that all layers have if flash attention may be off: those of the widest."""
    if shape.kv_cache_type != "f16" or shape.flash_attention is not FlashAttention.OFF:
        return 0
    return max((layer.values for layer in layers), default=0)


def _compute(compute: ComputeSize, on_gpu: int, count: int, copied: int) -> tuple[int, int]:
    if not on_gpu:
        return compute.whole, 0
    if on_gpu == count + 1:
        return compute.inputs, compute.whole
    return compute.whole, compute.whole + copied  # large batches are computed there, with copies of the CPU's weights


@dataclass(frozen=True, slots=True)
class _Weights:
    """Bytes of one file's tensors by place; ``copied`` is what the GPU borrows of one layer to compute a batch."""

    mapped: int = 0
    cpu: int = 0
    gpu: int = 0
    copied: int = 0

    @classmethod
    def of(cls, header: GgufHeader, shape: ContextShape, count: int, *, tied: bool) -> _Weights:
        """Place the tensors as ``load_tensors`` in src/llama-model.cpp does."""
        first_on_gpu = count + 1 - shape.num_gpu_layers
        here: list[GgufTensor] = []
        repacked = gpu = 0
        borrowed = dict.fromkeys(range(count), (0, 0))
        for tensor in header.tensors:
            layer = _layer_of(tensor.name, count)
            if tensor.name == "token_embd.weight" and tied:  # loaded again as the output matrix
                gpu += _on_gpu(tensor) if shape.num_gpu_layers else 0
                repacked += tensor.size if _is_repacked(tensor, shape) else 0
            if layer >= first_on_gpu:
                gpu += _on_gpu(tensor)
            elif layer >= 0 and _is_repacked(tensor, shape):
                repacked += tensor.size
            else:
                here.append(tensor)
            if 0 <= layer < min(first_on_gpu, count):
                total, largest = borrowed.get(layer, (0, 0))
                borrowed[layer] = (total + tensor.size, max(largest, tensor.size))
        span = max(t.offset + t.size for t in here) - min(t.offset for t in here) if here else 0
        copied = max((min(total, 2 * largest) for total, largest in borrowed.values()), default=0)
        if shape.use_mmap:
            return cls(span, repacked, gpu, copied)
        return cls(0, repacked + sum(tensor.size for tensor in here), gpu, copied)


def _layer_of(name: str, count: int) -> int:
    """Return where a tensor goes: -1 is the input, which stays in main memory; ``count`` is the output."""
    if name in _INPUTS:
        return -1
    if name.startswith(_OF_LAYERS):
        return 0
    named = BLOCK.match(name)
    return min(int(named[1]), count - 1) if named else count


def _is_repacked(tensor: GgufTensor, shape: ContextShape) -> bool:
    """Whether ggml rearranges a matrix for the processor, in memory of its own; with a GPU around it does not."""
    if shape.num_gpu_layers or tensor.format.name not in shape.repacked or len(tensor.shape) < 2:
        return False
    is_stack = len(tensor.shape) == 3 and "_exps" in tensor.name
    return (len(tensor.shape) == 2 or is_stack) and tensor.shape[1] % _REPACKED_ROWS == 0


def _on_gpu(tensor: GgufTensor) -> int:
    padding = (
        tensor.format.block_bytes * (_GPU_ROW // tensor.format.block_len)
        if tensor.shape[:1] and tensor.shape[0] % _GPU_ROW
        else 0
    )
    size = tensor.size + (padding if tensor.format.block_len > 1 else 0)
    return -(-size // _GPU_ALIGNMENT) * _GPU_ALIGNMENT


def _sum(weights: Sequence[_Weights]) -> _Weights:
    return _Weights(
        sum(each.mapped for each in weights),
        sum(each.cpu for each in weights),
        sum(each.gpu for each in weights),
        max(each.copied for each in weights),
    )


def _scaled(weights: _Weights, header: GgufHeader, parts: Sequence[GgufHeader]) -> _Weights:
    """Make up for parts of a split model whose headers are not known."""
    missing = header.split_count - 1 - len(parts)
    if missing <= 0:
        return weights
    factor = header.split_count / (1 + len(parts))
    mapped, cpu, gpu = (int(size * factor) for size in (weights.mapped, weights.cpu, weights.gpu))
    return _Weights(mapped, cpu, gpu, weights.copied)


def _joined(header: GgufHeader, parts: Sequence[GgufHeader]) -> GgufHeader:
    return replace(header, tensors=header.tensors + tuple(tensor for part in parts for tensor in part.tensors))


def _rows_of(header: GgufHeader, name: str) -> int:
    return next((tensor.shape[1] for tensor in header.tensors if tensor.name == name and len(tensor.shape) > 1), 0)
