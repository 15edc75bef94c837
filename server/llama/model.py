"""A GGUF file in memory: weights, vocabulary and metadata."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from llama_cpp import llama_cpp

from server.core.errors import ModelLoadingFailed
from server.llama import library
from server.llama.cores import usable_cores
from server.llama.vocabulary import LlamaVocabulary


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

    """

    num_sequences: int
    num_cells: int
    sequence_len: int
    batch_size: int
    threads: int = 0
    kv_cache_type: str = "f16"

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
        self.vocabulary = LlamaVocabulary(llama_cpp.llama_model_get_vocab(handle))
        self.trained_context_length: int = llama_cpp.llama_model_n_ctx_train(handle)
        self.window_len: int = llama_cpp.llama_model_n_swa(handle)
        template = llama_cpp.llama_model_chat_template(handle, None)
        self.chat_template: str | None = template.decode("utf-8", "replace") if template else None

    @classmethod
    def load(cls, path: Path, *, n_gpu_layers: int) -> LlamaModel:
        """Load a model file, which ``store.check_gguf`` has found sane.

        Args:
            path: the GGUF file, or the first part of a split one.
            n_gpu_layers: layers kept on the GPU, all if negative.

        Raises:
            ModelLoadingFailed: llama.cpp refuses the file, or it holds no model that generates text.

        """
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        with library.loading() as errors:
            handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
            if not handle:
                raise ModelLoadingFailed(f"{path} cannot be loaded: {_reason(errors)}.")
        if not llama_cpp.llama_model_has_decoder(handle):
            llama_cpp.llama_model_free(handle)
            raise ModelLoadingFailed(f"{path} does not generate text: it is an encoder, such as an embedding model.")
        try:
            return cls(path, handle)
        except BaseException:
            llama_cpp.llama_model_free(handle)
            raise

    def close(self) -> None:
        """Free the weights; every context must be closed before. May be called again."""
        if self.handle is not None:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None  # type: ignore[assignment] # no method may be called any more


def _reason(errors: list[str]) -> str:
    """The most telling of llama.cpp's error lines: the first names the cause, later ones only that loading failed."""
    if not errors:
        return "llama.cpp gives no reason"
    return errors[0].rstrip(".").removeprefix("llama_model_load: error loading model: ")
