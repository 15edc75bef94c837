"""The prediction of memory: known models, every architecture, and what must hold for any header."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.store import architectures
from server.store.footprint import (
    ContextShape,
    FlashAttention,
    cache_bytes,
    layers_that_fit,
    predict_footprint,
    repacked_formats,
)
from server.store.ggml_types import TENSOR_FORMATS
from server.store.gguf_header import GgufArray, GgufHeader, GgufScalar, GgufTensor
from server.store.layer_shapes import layer_shapes

FORMATS = {known.name: known for known in TENSOR_FORMATS.values()}
MIB = 1 << 20
ONE_TOKEN = ContextShape(256)


def header(
    architecture: str, values: Mapping[str, GgufScalar | tuple[int, ...]], tensors: Iterable[GgufTensor] = ()
) -> GgufHeader:
    """A header with hyperparameters as published; tuples are one value for each layer."""
    metadata: dict[str, GgufScalar | GgufArray] = {"general.architecture": architecture}
    for key, value in values.items():
        kept = GgufArray(5, len(value), value) if isinstance(value, tuple) else value
        metadata[key if "." in key and key.startswith("split") else f"{architecture}.{key}"] = kept
    return GgufHeader(Path("model.gguf"), 3, 0, 32, 0, metadata, {}, tuple(tensors))


def sizes(
    layers: int, width: int, heads: int, kv_heads: int, keys: int = 0, **others: GgufScalar
) -> dict[str, GgufScalar | tuple[int, ...]]:
    known: dict[str, GgufScalar | tuple[int, ...]] = {
        "block_count": layers,
        "embedding_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
    }
    if keys:
        known |= {"attention.key_length": keys, "attention.value_length": keys}
    return known | others


LATENT = {"attention.key_length": 576, "attention.value_length": 512}
LATENT_HEADS = {"attention.key_length_mla": 192, "attention.value_length_mla": 128}
KNOWN = {
    "Llama-3.1-8B": (header("llama", sizes(32, 4096, 32, 8)), 131_072),
    "Llama-3.2-1B": (header("llama", sizes(16, 2048, 32, 8, 64)), 32_768),
    "Llama-2-7B": (header("llama", sizes(32, 4096, 32, 32)), 524_288),
    "Qwen2.5-7B": (header("qwen2", sizes(28, 3584, 28, 4)), 57_344),
    "Qwen3-30B-A3B": (header("qwen3moe", sizes(48, 2048, 32, 4, 128)), 98_304),
    "Mistral-7B": (header("llama", sizes(32, 4096, 32, 8, 128)), 131_072),
    "Mixtral-8x7B": (header("llama", sizes(32, 4096, 32, 8, expert_count=8, expert_used_count=2)), 131_072),
    "Phi-3-mini": (header("phi3", sizes(32, 3072, 32, 32) | {"attention.sliding_window": 2047}), 393_216),
    "Gemma-2-9B": (header("gemma2", sizes(42, 3584, 16, 8, 256) | {"attention.sliding_window": 4096}), 344_064),
    "Gemma-3-4B": (header("gemma3", sizes(34, 2560, 8, 4, 256) | {"attention.sliding_window": 1024}), 139_264),
    "gpt-oss-20b": (header("gpt-oss", sizes(24, 2880, 64, 8, 64) | {"attention.sliding_window": 128}), 49_152),
    "DeepSeek-V2-Lite": (header("deepseek2", sizes(27, 2048, 16, 1) | LATENT | LATENT_HEADS), 31_104),
    "DeepSeek-V2-Lite, old file": (
        header("deepseek2", sizes(27, 2048, 16, 16) | {"attention.key_length": 192, "attention.value_length": 128}),
        276_480,
    ),
    "Qwen3-Next-80B": (header("qwen3next", sizes(48, 2048, 16, 2, 256)), 24_576),
}


@pytest.mark.parametrize("name", KNOWN)
def test_bytes_of_a_token_in_known_models(name: str) -> None:
    model, expected = KNOWN[name]
    fewer, more = (predict_footprint(model, ContextShape(cells)).kv_cpu for cells in (4096, 8192))

    assert (more - fewer) / 4096 == expected


STATES = {
    "mamba-130m": (
        header(
            "mamba",
            sizes(24, 768, 0, 0)
            | {"ssm.conv_kernel": 4, "ssm.inner_size": 1536, "ssm.state_size": 16, "ssm.time_step_rank": 48},
        ),
        24 * 4 * (3 * 1536 + 16 * 1536),
    ),
    "rwkv7-1.5b": (header("rwkv7", sizes(24, 2048, 0, 0) | {"wkv.head_size": 64}), 24 * 4 * (2 + 64) * 2048),
    "lfm2": (
        header("lfm2", sizes(4, 1024, 16, 8) | {"attention.head_count_kv": (0, 8, 0, 8), "shortconv.l_cache": 3}),
        2 * 4 * 2 * 1024,
    ),
    "Qwen3-Next-80B": (
        header(
            "qwen3next",
            sizes(48, 2048, 16, 2, 256)
            | {"ssm.conv_kernel": 4, "ssm.inner_size": 4096, "ssm.state_size": 128, "ssm.group_count": 16},
        ),
        36 * 4 * (3 * (4096 + 2 * 16 * 128) + 128 * 4096),
    ),
    "nemotron-h": (
        header(
            "nemotron_h",
            sizes(3, 512, 8, 2)
            | {"attention.head_count_kv": (0, 2, 0), "feed_forward_length": (0, 0, 1024)}
            | {"ssm.conv_kernel": 4, "ssm.inner_size": 1024, "ssm.state_size": 128, "ssm.group_count": 8},
        ),
        4 * (3 * (1024 + 2 * 8 * 128) + 128 * 1024),  # the third layer only feeds forward
    ),
    "falcon-h1": (
        header(
            "falcon-h1",
            sizes(2, 512, 8, 2) | {"ssm.conv_kernel": 4, "ssm.inner_size": 1024, "ssm.state_size": 128},
        ),
        2 * 4 * (3 * 1024 + 128 * 1024),
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_bytes_of_a_sequence_in_models_with_a_state(name: str) -> None:
    model, expected = STATES[name]
    one, two = (predict_footprint(model, ContextShape(4096, count)).kv_cpu for count in (1, 2))

    assert two - one == expected


@pytest.mark.parametrize(("kind", "share"), [("f16", 2), ("q8_0", 34 / 32), ("q4_0", 18 / 32)])
def test_types_of_the_cache(kind: str, share: float) -> None:
    model, _ = KNOWN["Llama-3.1-8B"]
    assert predict_footprint(model, ContextShape(4096, kv_cache_type=kind)).kv_cpu == 4096 * 65_536 * share


def test_small_windows_hold_each_sequences_window_and_one_batch() -> None:
    model, _ = KNOWN["Gemma-3-4B"]
    shape = ContextShape(32_768, 4, full_windows=False)
    windowed = [layer for layer in layer_shapes(model) if layer.window]

    assert len(windowed) == 29  # all but every sixth
    assert cache_bytes(windowed[0], shape) == 4 * 256 * 2 * 2 * (4 * 1024 + 512)
    assert cache_bytes(windowed[0], replace(shape, full_windows=True)) == 4 * 256 * 2 * 2 * 32_768


def test_values_are_padded_to_the_widest_layer_without_flash_attention() -> None:
    model = header("deci", sizes(2, 512, 8, 8) | {"attention.head_count_kv": (8, 2)})
    on, off = (
        predict_footprint(model, ContextShape(256, flash_attention=flash)).kv_cpu
        for flash in (FlashAttention.ON, FlashAttention.OFF)
    )
    assert (on, off) == (256 * 2 * 64 * (16 + 4), 256 * 2 * 64 * (8 + 2 + 16))


def matrix(name: str, kind: str, *shape: int) -> GgufTensor:
    count = 1
    for size in shape:
        count *= size
    return GgufTensor(name, shape, FORMATS[kind], 0, count // FORMATS[kind].block_len * FORMATS[kind].block_bytes)


def placed(tensors: Iterable[GgufTensor]) -> Iterable[GgufTensor]:
    offset = 0
    for tensor in tensors:
        yield replace(tensor, offset=offset)
        offset += tensor.size


def mistral() -> GgufHeader:
    """Mistral-7B as Q4_K_M: half of the values and down projections are Q6_K, and the output."""
    tensors = [matrix("token_embd.weight", "Q4_K", 4096, 32_768)]
    for layer in range(32):
        finer = "Q6_K" if layer % 2 else "Q4_K"
        shapes = {
            "attn_q": ("Q4_K", 4096, 4096),
            "attn_k": ("Q4_K", 4096, 1024),
            "attn_v": (finer, 4096, 1024),
            "attn_output": ("Q4_K", 4096, 4096),
            "ffn_gate": ("Q4_K", 4096, 14_336),
            "ffn_up": ("Q4_K", 4096, 14_336),
            "ffn_down": (finer, 14_336, 4096),
        }
        tensors += [matrix(f"blk.{layer}.{name}.weight", kind, *dims) for name, (kind, *dims) in shapes.items()]
        tensors += [matrix(f"blk.{layer}.{name}.weight", "F32", 4096) for name in ("attn_norm", "ffn_norm")]
    tensors += [matrix("output_norm.weight", "F32", 4096), matrix("output.weight", "Q6_K", 4096, 32_768)]
    return header("llama", sizes(32, 4096, 32, 8, 128) | {"vocab_size": 32_768}, placed(tensors))


MISTRAL = mistral()
WHOLE = sum(tensor.size for tensor in MISTRAL.tensors)


def test_a_7b_model_with_4096_tokens_takes_less_than_5_gb() -> None:
    on_gpu = predict_footprint(MISTRAL, ContextShape(4096, num_gpu_layers=-1))
    on_cpu = predict_footprint(MISTRAL, ContextShape(4096, use_mmap=False, kv_cache_type="q8_0"))

    assert 4.3e9 < WHOLE < 4.5e9
    assert on_gpu.buffers_gpu < 5e9
    assert on_cpu.total_cpu < 5e9


def test_a_mapped_file_is_counted_beside_what_is_rearranged_for_the_processor() -> None:
    mapped = predict_footprint(MISTRAL, ContextShape(4096))
    read = predict_footprint(MISTRAL, ContextShape(4096, use_mmap=False))
    plain = predict_footprint(MISTRAL, ContextShape(4096, repacked=frozenset()))

    assert mapped.weights_mapped == WHOLE
    assert WHOLE / 2 < mapped.weights_cpu < WHOLE
    assert (read.weights_mapped, read.weights_cpu) == (0, WHOLE)
    assert (plain.weights_mapped, plain.weights_cpu) == (WHOLE, 0)


def test_layers_go_to_the_gpu_from_the_last_and_the_output_matrix_first() -> None:
    shape = ContextShape(4096, use_mmap=False)
    footprints = [predict_footprint(MISTRAL, replace(shape, num_gpu_layers=count)) for count in range(34)]
    output = sum(tensor.size for tensor in MISTRAL.tensors if tensor.name.startswith("output"))

    assert (footprints[0].total_gpu, footprints[0].weights_gpu) == (0, 0)
    assert (footprints[1].weights_gpu, footprints[1].kv_gpu) == (output, 0)
    assert all(each.weights_cpu + each.weights_gpu == WHOLE for each in footprints)
    assert all(each.kv_cpu + each.kv_gpu == 4096 * 131_072 for each in footprints)
    assert footprints[33].weights_cpu == MISTRAL.tensors[0].size  # the token embedding stays
    assert footprints[33].kv_cpu == 0
    assert predict_footprint(MISTRAL, replace(shape, num_gpu_layers=-1)) == footprints[33]


def test_tied_embeddings_are_there_twice_with_a_gpu() -> None:
    tied = replace(MISTRAL, tensors=tuple(each for each in MISTRAL.tensors if each.name != "output.weight"))
    shape = ContextShape(4096, num_gpu_layers=1, use_mmap=False)
    footprint = predict_footprint(tied, shape)

    assert footprint.weights_gpu > tied.tensors[0].size
    assert footprint.weights_cpu > tied.tensors[0].size


def test_other_parts_of_a_split_model_are_counted() -> None:
    half = len(MISTRAL.tensors) // 2
    split = {"split.count": 2}
    parts = [
        replace(MISTRAL, metadata={**MISTRAL.metadata, **split}, tensors=MISTRAL.tensors[:half]),
        replace(MISTRAL, metadata=split, tensors=MISTRAL.tensors[half:]),
    ]
    shape = ContextShape(4096, num_gpu_layers=-1)
    whole = predict_footprint(MISTRAL, shape)
    known, guessed = predict_footprint(parts[0], shape, parts[1:]), predict_footprint(parts[0], shape)

    assert known.compute_gpu == guessed.compute_gpu == whole.compute_gpu
    assert known.weights_gpu == whole.weights_gpu
    assert guessed.weights_gpu > 0.9 * whole.weights_gpu


@pytest.mark.parametrize("gpu_gib", [0, 0.2, 1, 2, 4, 5, 8])
def test_the_layers_that_fit_do_and_one_more_does_not(gpu_gib: float) -> None:
    shape, room = ContextShape(8192, 4), int(gpu_gib * (1 << 30))
    count = layers_that_fit(MISTRAL, shape, room)

    assert predict_footprint(MISTRAL, replace(shape, num_gpu_layers=count)).total_gpu <= room
    if count < 33:
        assert predict_footprint(MISTRAL, replace(shape, num_gpu_layers=count + 1)).total_gpu > room
    assert (count == 33) == (gpu_gib == 8)


def test_scores_are_only_kept_without_flash_attention() -> None:
    on, off = (
        predict_footprint(MISTRAL, ContextShape(8192, flash_attention=flash)).compute_cpu
        for flash in (FlashAttention.ON, FlashAttention.OFF)
    )
    assert off - on > 32 * 8192 * 512 * 4 // 2


@pytest.mark.parametrize(
    ("said", "holds", "lacks"),
    [
        ("CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | REPACK = 1 | ", "Q2_K", "Q8_0"),
        ("CPU : SSE3 = 1 | AVX2 = 1 | REPACK = 1 | ", "Q4_K", "Q2_K"),
        ("CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1 | REPACK = 1 | ", "Q8_0", "Q2_K"),
        ("CPU : SSE3 = 1 | REPACK = 1 | ", "", "Q4_K"),
        ("CPU : SSE3 = 1 | AVX2 = 1 | ", "", "Q4_K"),
    ],
)
def test_what_a_processor_rearranges(said: str, holds: str, lacks: str) -> None:
    assert (holds or "none") in {*repacked_formats(said), "none"}
    assert lacks not in repacked_formats(said)


ARCHITECTURES = sorted(
    frozenset().union(*(value for value in vars(architectures).values() if isinstance(value, frozenset)))
    | {"", "bert", "deepseek4", "falcon-h1", "gemma3n", "gemma4", "grok", "kimi-linear", "minimax-01", "nanbeige"}
    | {"gpt2", "gpt-oss", "graniteswitch", "nemotron_h", "plamo2", "qwen3next", "qwen4exp", "t5", "unheard-of"}
)
NUMBERS = """
    attention.head_count attention.head_count_kv attention.key_length attention.value_length attention.sliding_window
    attention.key_length_mla attention.value_length_mla attention.key_length_swa attention.sliding_window_pattern
    attention.recurrent_layers attention.shared_kv_layers attention.indexer.key_length expert_count expert_used_count
    feed_forward_length full_attention_interval ssm.conv_kernel ssm.inner_size ssm.state_size ssm.group_count
    wkv.head_size shortconv.l_cache kda.head_dim num_loops nextn_predict_layers hyper_connection.count vocab_size
    """.split()  # noqa: SIM905 - a list would take a line for each
VALUES = st.one_of(st.integers(0, 300), st.lists(st.integers(0, 64), max_size=6).map(tuple), st.just("text"))
SHAPES = st.builds(
    ContextShape,
    st.integers(1, 1 << 17),
    st.integers(1, 256),
    st.integers(1, 4096),
    st.sampled_from(["f16", "q8_0", "q4_0", "strange"]),
    st.sampled_from(FlashAttention),
    st.integers(-1, 40),
    st.booleans(),
    st.booleans(),
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_predicted(architecture: str) -> None:
    bare = header(architecture, {"block_count": 4, "embedding_length": 512})
    usual = header(architecture, sizes(4, 512, 8, 2) | {"feed_forward_length": 2048, "vocab_size": 1000})

    assert predict_footprint(bare, ONE_TOKEN).total_cpu > 0
    assert predict_footprint(usual, ONE_TOKEN).compute_cpu > MIB
    assert layers_that_fit(usual, ONE_TOKEN, 1 << 40) >= 5


@given(
    st.sampled_from(ARCHITECTURES),
    st.dictionaries(st.sampled_from([*NUMBERS, "block_count", "embedding_length"]), VALUES),
    SHAPES,
)
def test_no_hyperparameters_are_too_strange(
    architecture: str, values: dict[str, GgufScalar | tuple[int, ...]], shape: ContextShape
) -> None:
    tensors = [replace(tensor, shape=tensor.shape[:1]) for tensor in MISTRAL.tensors[:3]]
    footprint = predict_footprint(header(architecture, values, [*tensors, *MISTRAL.tensors[3:8]]), shape)

    assert all(getattr(footprint, name) >= 0 for name in footprint.__slots__)


MODELS = [model for model, _ in [*KNOWN.values(), *STATES.values()]] + [MISTRAL]


@given(st.sampled_from(MODELS), SHAPES, st.integers(1, 1 << 15))
def test_more_cells_never_take_less(model: GgufHeader, shape: ContextShape, more: int) -> None:
    less, larger = (predict_footprint(model, replace(shape, num_cells=shape.num_cells + extra)) for extra in (0, more))

    assert larger.total_cpu >= less.total_cpu
    assert larger.total_gpu >= less.total_gpu


@given(st.sampled_from(MODELS), SHAPES, st.integers(0, 6))
def test_more_sequences_never_take_less(model: GgufHeader, shape: ContextShape, power: int) -> None:
    # of those that divide the batch, which is rounded up to a multiple of them
    few, many = (
        predict_footprint(model, replace(shape, num_sequences=count, batch_size=512)) for count in (1 << power, 128)
    )
    assert many.total_cpu >= few.total_cpu
    assert many.total_gpu >= few.total_gpu


@given(st.sampled_from(MODELS), SHAPES, st.integers(0, 48))
def test_more_layers_on_the_gpu_never_take_less_there(model: GgufHeader, shape: ContextShape, layers: int) -> None:
    less, more = (predict_footprint(model, replace(shape, num_gpu_layers=layers + extra)) for extra in (0, 1))

    assert more.total_gpu >= less.total_gpu
    assert more.kv_cpu <= less.kv_cpu


@given(st.sampled_from(MODELS), SHAPES, st.integers(0, 1 << 35))
def test_what_fits_fits(model: GgufHeader, shape: ContextShape, room: int) -> None:
    count = layers_that_fit(model, shape, room)

    assert predict_footprint(model, replace(shape, num_gpu_layers=count)).total_gpu <= room
