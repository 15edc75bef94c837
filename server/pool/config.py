"""What an operator can say about the in-process pool and about each of its models."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class KvCacheType(StrEnum):
    """Element type of the KV cache."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Section ``[llamacpp]``: defaults for every model of the pool.

    Attributes:
        max_sequences: sequences that one model decodes together in a batch.
        queue_size: requests of one model that may wait for a sequence or for KV cells; more are refused with 429.
        batch_size: most tokens that one step computes; a cancelled prompt stops after at most this many.
        inter_token_target_ms: while streams decode, prompts are computed in chunks that keep one step under this time.
        threads: CPU threads of a step; 0 means one for each physical core that this process may use.

    """

    max_sequences: int = 16
    queue_size: int = 64
    batch_size: int = 512
    inter_token_target_ms: int = 200
    threads: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Section ``[models."local/…"]``: one model of the pool.

    Attributes:
        path: the GGUF file (the first part of a split one).
        context_length: tokens that one sequence may hold, prompt and completion; 0 means what the model was trained
            for, at most 8192.
        kv_cells: tokens that all sequences together may hold; 0 means ``context_length`` times ``max_sequences``, at
            most 32768 but never less than one full sequence.
        n_gpu_layers: layers kept on the GPU; -1 means all.
        max_sequences: overrides ``[llamacpp] max_sequences``; 0 means not overridden.
        preload: load at start; the server is ready when all preloaded models can answer.
        chat_template: a Jinja file that replaces the template in the GGUF; empty means the GGUF's own.
        kv_cache_type: element type of the KV cache; the quantized ones need less memory and are slightly less exact.

    """

    path: str
    context_length: int = 0
    kv_cells: int = 0
    n_gpu_layers: int = -1
    max_sequences: int = 0
    preload: bool = True
    chat_template: str = ""
    kv_cache_type: KvCacheType = KvCacheType.F16
