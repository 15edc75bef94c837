"""A GGUF file in memory: weights, vocabulary and metadata."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp

from server.core.batch import most_rows
from server.core.errors import ModelLoadingFailed
from server.llama import library
from server.llama.cores import usable_cores
from server.llama.devices import gpu_handles
from server.llama.vocabulary import LlamaVocabulary

_LOAD_MODES = {
    (False, False): llama_cpp.LLAMA_LOAD_MODE_NONE,
    (True, False): llama_cpp.LLAMA_LOAD_MODE_MMAP,
    (False, True): llama_cpp.LLAMA_LOAD_MODE_MLOCK,
    (True, True): llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK,
}
"""By whether the file is mapped, and whether memory is locked."""


class LoadAborted(Exception):
    """A load was ended by its progress callback; nothing is in memory."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Where the weights of a model go.

    Attributes:
        gpu_layers: layers kept on GPUs, the output matrix counted as one and first; negative for all. With 0 no GPU has
            any part in the model.
        use_mmap: map the file instead of reading it.
        use_mlock: keep the weights from being swapped out.
        tensor_split: the share of the layers that each GPU takes, in the order of ``devices()``; GPUs beyond the last
            share, or with a share of 0, take none. Empty leaves it to llama.cpp, which goes by free memory.

    """

    gpu_layers: int = 0
    use_mmap: bool = True
    use_mlock: bool = False
    tensor_split: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """How the KV cache of a model is laid out.

    Attributes:
        num_sequences: sequences held at once, 1 to 256.
        num_cells: KV cells shared by all sequences.
        sequence_len: most tokens of one sequence, at most ``num_cells``.
        batch_size: most tokens of one decode call.
        threads: CPU threads; 0 means one for each physical core that may be used.
        kv_cache_type: ``f16``, ``q8_0`` or ``q4_0``.
        flash_attention: ``on``, ``off`` or ``auto``, which is on where the device can.
        is_unified: all sequences share the cells; otherwise each has ``num_cells // num_sequences`` of its own.
        device_sampling: the device can be asked to draw tokens, which takes more memory.

    """

    num_sequences: int
    num_cells: int
    sequence_len: int
    batch_size: int
    threads: int = 0
    kv_cache_type: str = "f16"
    flash_attention: str = "auto"
    is_unified: bool = True
    device_sampling: bool = False

    @property
    def num_rows(self) -> int:
        """Most rows of logits of a step."""
        return most_rows(self.num_sequences)

    @property
    def num_threads(self) -> int:
        """The number of threads to compute with."""
        return self.threads or usable_cores()


class LlamaModel:
    """Loaded weights. Create with ``load``; ``close`` gives the memory back and invalidates the vocabulary."""

    def __init__(self, path: Path, handle: ctypes.c_void_p) -> None:
        """Own ``handle``, a ``llama_model`` pointer."""
        self.path = path
        self.handle = handle
        self._vocabulary_handle = llama_cpp.llama_model_get_vocab(handle)
        self.vocabulary_size: int = llama_cpp.llama_vocab_n_tokens(self._vocabulary_handle)
        self.trained_context_length: int = llama_cpp.llama_model_n_ctx_train(handle)
        self.window_len: int = llama_cpp.llama_model_n_swa(handle)
        is_recurrent = llama_cpp.llama_model_is_recurrent(handle) or llama_cpp.llama_model_is_hybrid(handle)
        self.can_cut: bool = not is_recurrent
        template = llama_cpp.llama_model_chat_template(handle, None)
        self.chat_template: str | None = template.decode("utf-8", "replace") if template else None

    @classmethod
    def load(
        cls, path: Path, options: LoadOptions, on_progress: Callable[[float], bool] = lambda _fraction: True
    ) -> LlamaModel:
        """Load a model file, which ``store.check_gguf`` has found sane.

        Args:
            path: the GGUF file, or the first part of a split one.
            options: where the weights go.
            on_progress: called in this thread with what is done, from 0 to 1, before each tensor; ends the load by
                returning ``False``. What it raises ends the load, too, and is raised here.

        Raises:
            ModelLoadingFailed: llama.cpp refuses the file, or it holds no model that generates text.
            LoadAborted: ``on_progress`` returned ``False``.

        """
        progress = _Progress(on_progress)
        params, _kept_alive = _model_params(options, progress)
        with library.loading() as errors:
            handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not handle:
            progress.raise_reason()
            raise ModelLoadingFailed(f"{path} cannot be loaded: {_reason(errors)}.")
        if not llama_cpp.llama_model_has_decoder(handle):
            llama_cpp.llama_model_free(handle)
            raise ModelLoadingFailed(f"{path} does not generate text: it is an encoder, such as an embedding model.")
        try:
            return cls(path, handle)
        except BaseException:
            llama_cpp.llama_model_free(handle)
            raise

    @cached_property
    def vocabulary(self) -> LlamaVocabulary:
        """The token table, read when it is first asked for: a microsecond for each token."""
        return LlamaVocabulary(self._vocabulary_handle)

    def close(self) -> None:
        """Free the weights; every context must be closed before. May be called again."""
        if self.handle is not None:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None  # type: ignore[assignment] # no method may be called any more


class _Progress:
    """The callback that llama.cpp calls; an exception cannot pass through native code and is kept for later."""

    def __init__(self, on_progress: Callable[[float], bool]) -> None:
        self._on_progress = on_progress
        self._error: BaseException | None = None
        self._is_aborted = False

    def __call__(self, fraction: float, _user_data: object) -> bool:
        try:
            self._is_aborted = not self._on_progress(fraction)
        except BaseException as error:  # noqa: BLE001 -- raised again where the load ends
            self._error = error
        return not self._is_aborted and self._error is None

    def raise_reason(self) -> None:
        """Raise what ended the load, if that was the callback's doing."""
        if self._error is not None:
            raise self._error
        if self._is_aborted:
            raise LoadAborted


def _model_params(options: LoadOptions, progress: _Progress) -> tuple[Any, Sequence[object]]:
    """Return native parameters with what they point to, which must live as long as the load."""
    gpus, shares = _placement(options)
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = options.gpu_layers
    params.load_mode = _LOAD_MODES[options.use_mmap, options.use_mlock]
    params.progress_callback = callback = llama_cpp.llama_progress_callback(progress)
    handles = (ctypes.c_void_p * (len(gpus) + 1))(*gpus, None)
    params.devices = ctypes.cast(handles, ctypes.c_void_p)
    split = (ctypes.c_float * llama_cpp.LLAMA_MAX_DEVICES)(*shares)
    params.tensor_split = split
    return params, (handles, split, callback)


def _placement(options: LoadOptions) -> tuple[Sequence[int], Sequence[float]]:
    """Return the GPUs that take part, with their shares: one that only watched would keep a compute buffer."""
    if options.gpu_layers == 0:
        return (), ()
    gpus = gpu_handles()
    if not any(options.tensor_split[: len(gpus)]):
        return gpus, ()
    used = [(gpu, share) for gpu, share in zip(gpus, options.tensor_split, strict=False) if share]
    return [gpu for gpu, _ in used], [share for _, share in used]


def _reason(errors: list[str]) -> str:
    """The most telling of llama.cpp's error lines: the first names the cause, later ones only that loading failed."""
    if not errors:
        return "llama.cpp gives no reason"
    return errors[0].rstrip(".").removeprefix("llama_model_load: error loading model: ")
