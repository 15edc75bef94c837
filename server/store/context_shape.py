"""What a context is asked to hold: the half of a memory prediction that the operator chooses."""

from dataclasses import dataclass
from enum import StrEnum

from server.core.batch import most_rows

CELLS_STEP = 256
"""llama.cpp rounds a context up to a multiple of this many cells."""


class FlashAttention(StrEnum):
    """Whether attention scores are kept in memory; ``AUTO`` is on wherever the device can."""

    ON = "on"
    OFF = "off"
    AUTO = "auto"


REPACKED_X86 = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
"""What a processor with AVX2 repacks; one with AVX-512 repacks Q2_K, too."""
_REPACKED_ARM = frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"})


def repacked_formats(system_info: str) -> frozenset[str]:
    """Return the tensor formats that ggml rearranges for this processor when it loads them.

    ``ggml_repack_get_optimal_repack_type`` in ggml/src/ggml-cpu/repack.cpp decides.

    Args:
        system_info: what ``llama_print_system_info`` says, such as ``CPU : AVX2 = 1 | AVX512 = 1 | REPACK = 1``.

    """
    features = {item.split(":")[-1].split("=")[0].strip() for item in system_info.split("|") if "= 1" in item}
    if "REPACK" not in features:
        return frozenset()
    if features & {"NEON", "SVE"}:
        return _REPACKED_ARM
    if "AVX2" not in features:
        return frozenset()
    return REPACKED_X86 | {"Q2_K"} if "AVX512" in features else REPACKED_X86


@dataclass(frozen=True, slots=True)
class ContextShape:
    """A context as ``server.llama.runner`` creates it: one KV cache for all sequences, batches computed in one piece.

    Attributes:
        num_cells: tokens that all sequences together may hold.
        num_sequences: sequences held at once.
        batch_size: most tokens of one step (``n_batch`` and ``n_ubatch`` in llama.cpp).
        kv_cache_type: ``f16``, ``q8_0`` or ``q4_0``; another one is counted as ``f32``.
        flash_attention: whether attention scores are computed piecemeal.
        num_gpu_layers: ``n_gpu_layers`` in llama.cpp, where the output matrix counts as one and goes first: 1 is the
            output matrix alone, ``block_count + 1`` or anything negative is everything. 0 also means that the load is
            given no GPU at all; with an idle one, llama.cpp keeps a compute buffer there.
        use_mmap: whether the file is mapped rather than read.
        full_windows: whether layers with a sliding window keep all cells, as llama.cpp does unless told otherwise.
        repacked: formats that the processor rearranges, see ``repacked_formats``.

    """

    num_cells: int
    num_sequences: int = 1
    batch_size: int = 512
    kv_cache_type: str = "f16"
    flash_attention: FlashAttention = FlashAttention.AUTO
    num_gpu_layers: int = 0
    use_mmap: bool = True
    full_windows: bool = True
    repacked: frozenset[str] = REPACKED_X86

    @property
    def cells(self) -> int:
        """The cells that llama.cpp makes of it."""
        return -(-max(self.num_cells, 1) // CELLS_STEP) * CELLS_STEP

    @property
    def num_rows(self) -> int:
        """Tokens of the largest step, for which buffers are reserved: a multiple of the sequences."""
        rows, sequences = min(self.cells, max(self.batch_size, 1)), max(self.num_sequences, 1)
        return -(-rows // sequences) * sequences

    @property
    def num_outputs(self) -> int:
        """Rows of logits of the largest step."""
        return min(self.num_rows, most_rows(self.num_sequences))

    def window_cells(self, window: int) -> int:
        """Cells of a layer that sees the last ``window`` tokens; 0 is all of them (src/llama-kv-cache-iswa.cpp)."""
        if self.full_windows or not window:
            return self.cells
        needed = min(self.cells, window * max(self.num_sequences, 1) + min(self.cells, self.batch_size))
        return -(-needed // CELLS_STEP) * CELLS_STEP
