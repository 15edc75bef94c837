"""What an operator can say about the in-process pool and about each of its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from server.core.duration import Duration
from server.core.request import ReasoningOutput

AutoInt = int | Literal["auto"]
"""A number, or ``"auto"`` for one that is chosen to fit."""
MemoryBudget = str | int | Mapping[str, str | int]
"""A size, ``"auto"``, or sizes by device; ``ledger.parse_memory_size`` reads a size."""
MemorySize = str | int
"""A size or ``"auto"``."""


class KvCacheType(StrEnum):
    """Element type of the KV cache."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class Switch(StrEnum):
    """A choice that can be left to the server."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class PrefixIsolation(StrEnum):
    """Whose prompts may share the computation of a common prefix."""

    OFF = "off"
    KEY = "key"


class Speculation(StrEnum):
    """How the next tokens are guessed, to be verified in one step."""

    OFF = "off"
    PROMPT_LOOKUP = "prompt-lookup"


class KvLayout(StrEnum):
    """Whether sequences have the KV cells together, or each its own."""

    AUTO = "auto"
    UNIFIED = "unified"
    SEPARATE = "separate"


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Section ``[llamacpp]``: the memory that models share, and defaults for every model of the pool.

    Attributes:
        model_dirs: folders with .gguf files, or stores of Ollama, whose models are served besides those of [store];
            docs/models.md says by which names.
        memory_budget: what all models together may take: "auto" for what is free when the server starts, less a
            reserve; a size such as "12GiB" for the GPU (or for main memory where there is no GPU); or a table of sizes
            by device such as { CUDA0 = "40GiB", CPU = "16GiB" }.
        keep_alive: how long a model stays in memory after its last request, where neither the model's own table nor
            the request says: a duration such as "5m", "0s" for not at all, or "-1s" for as long as there is room.
        load_timeout: how long a request waits until its model is in memory, a duration.
        longest_wait_seconds: a request that has waited this long for memory takes it from models in use, which finish
            what they have; until then models that do not fit together take turns as they fall idle.
        ttft_target_ms: the time to the first token that requests should meet; 0 means no target.
        max_sequences: sequences that one model decodes together in a batch.
        queue_size: requests of one model that may wait for a sequence or for KV cells; more are refused with 429.
        batch_size: most tokens that one step computes; a cancelled prompt stops after at most this many.
        inter_token_target_ms: while streams decode, prompts are computed in chunks that keep one step under this time.
            Less is smoother for who reads, and later for who waits with a long prompt. It matters on slow machines.
        prefix_isolation: "off" lets all requests share what their prompts begin with; with "key" only those with the
            same API key do, so that nobody can tell by the time to the first token what somebody else has asked.
        public_system_prompts: system prompts that requests share in spite of prefix_isolation, each exactly as
            requests contain it.
        prefix_memory: main memory that each model may take for prompts of finished requests when others need their KV
            cells; a prompt that goes on with one of them is not computed again. "auto" is a sixteenth of what the model
            may take of main memory, at most 1 GiB, no more than its KV cache has, and 0 where that does not fit; 0
            keeps none.
        speculation: "prompt-lookup" guesses that a completion goes on as its prompt did after the same words, where
            that pays: it is faster and says the same.
        device_sampling: choose tokens on the device that computes the logits, where the request allows it (no
            penalties, no logprobs). Experimental: a seed gives other tokens than without.
        threads: CPU threads of a step; 0 means one for each physical core that this process may use.

    """

    model_dirs: tuple[str, ...] = ()
    memory_budget: MemoryBudget = "auto"
    keep_alive: Duration = Duration("-1s")
    load_timeout: Duration = Duration("10m")
    longest_wait_seconds: float = 10.0
    ttft_target_ms: int = 200
    max_sequences: int = 16
    queue_size: int = 64
    batch_size: int = 512
    inter_token_target_ms: int = 500
    prefix_isolation: PrefixIsolation = PrefixIsolation.OFF
    public_system_prompts: tuple[str, ...] = ()
    prefix_memory: MemorySize = "auto"
    speculation: Speculation = Speculation.PROMPT_LOOKUP
    device_sampling: bool = False
    threads: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Section ``[models."local/…"]``: one model of the pool; reasoning is for models of Ollama, too.

    Attributes:
        path: the GGUF file (the first part of a split one); empty means the one of this name that is found on this
            machine (docs/models.md).
        context_length: tokens that one sequence may hold, prompt and completion; "auto" means what the model was
            trained for, at most 8192, and less where that does not fit into memory.
        kv_cells: tokens that all sequences together may hold; "auto" means ``context_length`` times
            ``max_sequences``, at most 32768, and less where that does not fit, but never less than one full sequence.
        n_gpu_layers: layers kept on the GPU, the output matrix counted as one; -1 means all, "auto" as many as fit.
        max_sequences: overrides ``[llamacpp] max_sequences``; 0 means not overridden.
        preload: load at start; the server is ready when all preloaded models have been loaded. Models that are not
            preloaded are loaded by the first request for them.
        pin: never unload it to make room for others, nor when its keep_alive is over.
        keep_alive: overrides ``[llamacpp] keep_alive``; empty means not overridden.
        ttft_target_ms: overrides ``[llamacpp] ttft_target_ms``; -1 means not overridden.
        chat_template: a Jinja file that replaces the template in the GGUF; empty means the GGUF's own.
        reasoning: what becomes of what a model thinks before it answers: "split" gives it as reasoning_content and
            reasoning, apart from content; "hide" leaves it out; "raw" leaves it in content, with its tags, for clients
            that split it themselves.
        kv_cache_type: element type of the KV cache; the quantized ones need less memory and are slightly less exact.
        kv_layout: "unified" lets all sequences share kv_cells, and prompts that begin alike share cells; "separate"
            gives each kv_cells / max_sequences of its own, which bounds context_length; "auto" is unified.
        flash_attention: compute attention without keeping all its scores; "auto" where the device can.
        mmap: map the file instead of reading it, so that its pages are shared and can be dropped; "auto" means where
            that does not cost memory twice (a CPU rearranges some formats; on Linux the pages are then given back).
        mlock: keep the weights from being swapped out.
        threads: overrides ``[llamacpp] threads``; 0 means not overridden.
        tensor_split: with several GPUs, the share of the model that each one takes, such as [3, 1]; empty means by free
            memory.
        main_gpu: with several GPUs, the number of the one that holds all of the model; -1 divides it among them.

    """

    path: str = ""
    context_length: AutoInt = "auto"
    kv_cells: AutoInt = "auto"
    n_gpu_layers: AutoInt = "auto"
    max_sequences: int = 0
    preload: bool = False
    pin: bool = False
    keep_alive: Duration = Duration("")
    ttft_target_ms: int = -1
    chat_template: str = ""
    reasoning: ReasoningOutput = ReasoningOutput.SPLIT
    kv_cache_type: KvCacheType = KvCacheType.F16
    kv_layout: KvLayout = KvLayout.AUTO
    flash_attention: Switch = Switch.AUTO
    mmap: Switch = Switch.AUTO
    mlock: bool = False
    threads: int = 0
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = -1
