"""``engine.runner.Runner`` over a llama.cpp context: one native batch per step, one KV cache for all sequences."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp

from server.core.batch import Chunk, DeviceSampling, KVMemory, RunnerShape, State
from server.core.errors import BackendError, ModelLoadingFailed, NoFreeCells
from server.llama import library
from server.llama.device_sampling import DeviceSamplers
from server.llama.model import ContextOptions, LlamaModel
from server.llama.openmp import end_workers

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]

_CACHE_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0, "q4_0": llama_cpp.GGML_TYPE_Q4_0}
_FLASH_ATTENTION = {
    "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_FROM_THE_BEGINNING = _TO_THE_END = -1

# https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h, at llama_decode
_NO_SLOT = 1  # found out before anything is computed or changed
_DECODE_FAILURES = {
    2: "aborted",
    -1: "invalid batch",
}

_contexts: WeakSet[LlamaRunner] = WeakSet()
"""Those that are open."""


class SavedSequence:
    """What llama.cpp has written of a sequence."""

    def __init__(self, num_bytes: int, num_tokens: int) -> None:
        """Take the memory.

        Raises:
            MemoryError: there is none.

        """
        # numpy asks for huge pages, which are there several times as fast
        self._bytes = np.empty(num_bytes, dtype=np.uint8)
        self.num_bytes = num_bytes
        self.num_tokens = num_tokens

    @property
    def pointer(self) -> Any:  # noqa: ANN401 -- ctypes types
        """The memory, for native code."""
        return _pointer(self._bytes, ctypes.c_uint8)


class LlamaRunner:
    """A context of a loaded model. Not thread-safe: one thread at a time, after construction the engine's."""

    def __init__(self, model: LlamaModel, options: ContextOptions) -> None:
        """Allocate the KV cache and compute buffers.

        Raises:
            ModelLoadingFailed: the cache does not fit into memory, or the architecture refuses the options.

        """
        self._model = model
        self._samplers: DeviceSamplers | None = None
        params = _context_params(options)
        if options.device_sampling:
            self._samplers = DeviceSamplers(num_sequences=options.num_sequences, vocabulary_size=model.vocabulary_size)
            self._samplers.configure(params)
        with library.loading() as errors:
            self._context = llama_cpp.llama_init_from_model(model.handle, params)
            if not self._context:
                self.close()
                reason = errors[-1].rstrip(".") if errors else "llama.cpp gives no reason"
                raise ModelLoadingFailed(
                    f"{model.path} is loaded, but no context of {options.num_cells} KV cells is to be had: "
                    f"{reason}. Lower context_length or kv_cells."
                )
        _contexts.add(self)
        try:
            self._set_up(options)
        except BaseException:
            self.close()
            raise

    def _set_up(self, options: ContextOptions) -> None:
        model = self._model
        self._memory = llama_cpp.llama_get_memory(self._context)
        pools = llama_cpp.llama_pooling_type(self._context) > llama_cpp.LLAMA_POOLING_TYPE_NONE
        if pools or not self._memory:
            raise ModelLoadingFailed(f"{model.path} does not generate text: it is an embedding model.")
        # llama.cpp may cut the batch to the context, and asserts that it is kept to
        batch_size = llama_cpp.llama_n_batch(self._context)
        self._shape = RunnerShape(
            num_sequences=options.num_sequences,
            num_cells=options.num_cells,
            sequence_len=options.sequence_len,
            batch_size=batch_size,
            vocabulary_size=model.vocabulary_size,
            num_rows=options.num_rows,
            memory=KVMemory(
                is_unified=options.is_unified,
                can_cut=model.can_cut,
                window_len=max(model.window_len - 1, 0),
                # windows have cells for all tokens (swa_full), and may forget them nevertheless when others need cells
                num_kept=options.sequence_len,
            ),
        )
        self._batch = _Batch(batch_size)
        self._num_rows = 0
        # source and target of copies between separate caches, which llama.cpp puts off until the next decode
        self._copying: set[tuple[int, int]] = set()

    @property
    def shape(self) -> RunnerShape:
        """The sizes that admission and scheduling respect."""
        return self._shape

    def warm_up(self) -> None:
        """Decode one token, so that no user pays for lazy allocations.

        Raises:
            ModelLoadingFailed: llama.cpp cannot compute with this model.

        """
        try:
            self.decode([Chunk(sequence_id=0, start=0, tokens=[0], num_rows=1)])
        except BackendError as error:
            raise ModelLoadingFailed(f"{self._model.path} is loaded, but cannot compute: {error.message}") from error
        llama_cpp.llama_memory_clear(self._memory, True)  # noqa: FBT003

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        """Compute the chunks in one batch and return the rows of logits that they ask for, in order.

        Raises:
            NoFreeCells: the batch finds no room; nothing was computed, and no cell has changed.
            BackendError: llama.cpp reports another failure; cells of the batch's sequences may be filled or not.

        """
        if self._samplers is not None:
            self._samplers.prepare(self._context, chunks)
        native, num_rows = self._batch.fill(chunks)
        status = llama_cpp.llama_decode(self._context, native)
        self._copying.clear()
        if status == _NO_SLOT:
            raise NoFreeCells(f"llama.cpp has no free KV cells for a batch of {native.n_tokens} tokens.")
        if status != 0:
            reason = _DECODE_FAILURES.get(status, "fatal error")
            raise BackendError(f"llama.cpp could not compute a batch of {native.n_tokens} tokens: {reason} ({status}).")
        rows = self._logits(num_rows)
        self._num_rows = num_rows
        if self._samplers is not None:
            self._samplers.collect(self._context, chunks, rows)
        return rows

    def sample_on_device(self, sequence_id: int, sampling: DeviceSampling | None) -> bool:
        """Have the device draw the tokens of a sequence from now on, or (``None``) leave that to the caller again.

        Rows of logits that are not numbers are left to the caller, too, whoever was to draw.

        Returns:
            False if it cannot: sampling on the device is off, or not every filter is supported there.

        """
        if self._samplers is None:
            return sampling is None
        return self._samplers.sample(self._context, sequence_id, sampling)

    def drawn(self) -> Tokens:
        """Tokens that the device drew in the last ``decode``, one for each of its rows; -1 where it did not."""
        if self._samplers is None:
            return np.full(self._num_rows, -1, dtype=np.int32)
        return self._samplers.drawn()

    def share_prefix(self, source: int, target: int, length: int) -> bool:
        """Make ``target`` hold exactly the first ``length`` tokens of ``source``; ``False`` if memory forbids it."""
        if source != target:
            self.clear(target)
        held = llama_cpp.llama_memory_seq_pos_max(self._memory, source) + 1
        if not self._can_take(source, length, held):
            self.clear(target)
            return False
        if source != target:
            # between separate caches llama.cpp copies whole sequences only, and asserts that no part is asked for
            begin, end = (0, length) if self._shape.memory.is_unified else (_FROM_THE_BEGINNING, _TO_THE_END)
            llama_cpp.llama_memory_seq_cp(self._memory, source, target, begin, end)
            if not self._shape.memory.is_unified:
                self._copying.add((source, target))
        if llama_cpp.llama_memory_seq_rm(self._memory, target, length, _TO_THE_END):
            return True
        self.clear(target)
        return False

    def join_prefix(self, source: int, target: int, length: int) -> bool:
        """Have ``target`` use the cells of ``source`` for the first ``length`` tokens, which are the same in both."""
        if not self._shape.memory.can_join or not llama_cpp.llama_memory_seq_rm(self._memory, target, 0, length):
            return False
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)
        return bool(llama_cpp.llama_memory_seq_pos_min(self._memory, target) == 0)

    def clear(self, sequence_id: int) -> None:
        """Drop all tokens of a sequence."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence_id, 0, _TO_THE_END)

    def num_state_bytes(self, sequence_id: int) -> int:
        """Return what ``save`` would take now; 0 if it cannot."""
        if any(sequence_id == target for _, target in self._copying):
            return 0
        return int(llama_cpp.llama_state_seq_get_size(self._context, sequence_id))

    def save(self, sequence_id: int) -> SavedSequence | None:
        """Copy what a sequence holds into main memory; of a sliding window what it sees from the end on."""
        num_bytes = self.num_state_bytes(sequence_id)
        num_tokens = llama_cpp.llama_memory_seq_pos_max(self._memory, sequence_id) + 1
        if num_bytes == 0 or num_tokens == 0:
            return None
        try:
            state = SavedSequence(num_bytes, num_tokens)
        except MemoryError:
            return None
        written = llama_cpp.llama_state_seq_get_data(self._context, state.pointer, num_bytes, sequence_id)
        return state if written == num_bytes else None

    def restore(self, sequence_id: int, state: State) -> bool:
        """Fill an empty sequence with what was saved of any; ``False`` if it cannot, and then it is empty again."""
        is_copying = any(sequence_id in pair for pair in self._copying)
        if isinstance(state, SavedSequence) and not is_copying:
            read = llama_cpp.llama_state_seq_set_data(self._context, state.pointer, state.num_bytes, sequence_id)
            held = llama_cpp.llama_memory_seq_pos_max(self._memory, sequence_id) + 1
            if read == state.num_bytes and self._can_take(sequence_id, state.num_tokens, held):
                return True
        self.clear(sequence_id)
        return False

    def rest(self) -> None:
        """End the threads that wait for this one's next computation, if there are other contexts to be slowed down.

        Alone it keeps them: the first step with new ones takes some milliseconds longer.
        """
        if len(_contexts) > 1:
            end_workers()

    def close(self) -> None:
        """Free the context. May be called again."""
        if self._context is not None:
            llama_cpp.llama_free(self._context)
            self._context = None
            _contexts.discard(self)
        if self._samplers is not None:
            self._samplers.free()
            self._samplers = None

    def _can_take(self, source: int, length: int, held: int) -> bool:
        """Whether the first ``length`` of ``held`` tokens can be had without what follows them.

        Recurrent state only exists at the end of a sequence. A sliding window has forgotten what lies before it; with
        llama.cpp's full-size window cache nothing is forgotten, which its lowest position tells.
        """
        if held < length:
            return False
        if not self._shape.memory.can_cut:
            return held == length
        lowest = llama_cpp.llama_memory_seq_pos_min(self._memory, source)
        return self._shape.memory.can_take(length, num_computed=held, lowest=lowest)

    def _logits(self, num_rows: int) -> Logits:
        if num_rows == 0:
            return np.empty((0, self._shape.vocabulary_size), dtype=np.float32)
        # Blocks until the device is done. Rows are in batch order, without gaps.
        pointer = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(num_rows, self._shape.vocabulary_size))


class _Batch:
    """A ``llama_batch`` whose arrays are numpy's: filled by slices, allocated once.

    Every token belongs to one sequence, so the array of sequence-id arrays points into one flat array.
    """

    def __init__(self, size: int) -> None:
        self._tokens = np.zeros(size, dtype=np.int32)
        self._positions = np.zeros(size, dtype=np.int32)
        self._sequence_counts = np.ones(size, dtype=np.int32)
        self._sequence_ids = np.zeros(size, dtype=np.int32)
        self._sequence_pointers = self._sequence_ids.ctypes.data + np.arange(size, dtype=np.uintp) * 4
        self._wants_logits = np.zeros(size, dtype=np.int8)
        self._native = llama_cpp.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._sequence_counts, ctypes.c_int32),
            seq_id=_pointer(self._sequence_pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._wants_logits, ctypes.c_int8),
        )

    def fill(self, chunks: Sequence[Chunk]) -> tuple[Any, int]:
        """Write the chunks and return the native batch with the number of rows of logits it asks for."""
        begin = num_rows = 0
        self._wants_logits[:] = 0
        for chunk in chunks:
            end = begin + len(chunk.tokens)
            self._tokens[begin:end] = chunk.tokens
            self._positions[begin:end] = np.arange(chunk.start, chunk.start + len(chunk.tokens))
            self._sequence_ids[begin:end] = chunk.sequence_id
            self._wants_logits[end - chunk.num_rows : end] = 1
            num_rows += chunk.num_rows
            begin = end
        self._native.n_tokens = begin
        return self._native, num_rows


def _pointer(array: npt.NDArray[Any], element: Any) -> Any:  # noqa: ANN401 -- ctypes types
    return array.ctypes.data_as(ctypes.POINTER(element))


def _context_params(options: ContextOptions) -> Any:  # noqa: ANN401 -- a ctypes structure
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = options.num_cells
    params.n_seq_max = options.num_sequences
    # without this the output buffers are sized for a row per token
    params.n_outputs_max = options.num_rows
    params.n_batch = params.n_ubatch = options.batch_size
    params.n_threads = params.n_threads_batch = options.num_threads
    params.kv_unified = options.is_unified
    params.type_k = params.type_v = _CACHE_TYPES[options.kv_cache_type]
    params.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
    return params
