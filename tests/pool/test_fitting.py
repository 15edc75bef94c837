"""The choice of context and GPU layers, on invented machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import pytest
from headers import llama_header
from hypothesis import given, settings
from hypothesis import strategies as st

from server.pool.fitting import Candidate, Fitting, Wish
from server.store.context_shape import ContextShape
from server.store.gguf_header import GgufHeader

GIB, MIB = 1 << 30, 1 << 20
SEVEN_BILLION = llama_header()  # 4.2 GiB of weights, 128 KiB for a cell
ALL = 33


def fitting(
    limits: Mapping[str, float], wish: Wish | None = None, header: GgufHeader = SEVEN_BILLION, num_sequences: int = 16
) -> Fitting:
    """A model on a machine with the GPUs that are named, and so many GiB for it."""
    gpus = [device for device in limits if device != "CPU"]
    num_bytes = {device: int(gib * GIB) for device, gib in limits.items()}
    return Fitting(header, (), ContextShape(0, num_sequences), wish or Wish(), gpus, num_bytes)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        # the whole model: all cells, then fewer, then a shorter context
        ({"CPU": 16, "GPU0": 24}, (ALL, 8192, 32_768)),
        ({"CPU": 1, "GPU0": 9}, (ALL, 8192, 32_768)),
        ({"CPU": 16, "GPU0": 8}, (ALL, 8192, 16_384)),
        ({"CPU": 16, "GPU0": 6}, (ALL, 8192, 8192)),
        ({"CPU": 16, "GPU0": 5}, (ALL, 4096, 4096)),
        # a part of it
        ({"CPU": 16, "GPU0": 4}, (28, 4096, 4096)),
        ({"CPU": 16, "GPU0": 2}, (13, 4096, 4096)),
        ({"CPU": 16, "GPU0": 0.4}, (1, 4096, 4096)),
        # nothing of it
        ({"CPU": 16, "GPU0": 0.1}, (0, 8192, 32_768)),
        ({"CPU": 16, "GPU0": 0}, (0, 8192, 32_768)),
        # no room for the other part unless the context is shorter than one wants it on a GPU
        ({"CPU": 1.45, "GPU0": 3.2}, (24, 2048, 2048)),
        # no GPU
        ({"CPU": 16}, (0, 8192, 32_768)),
        ({"CPU": 8}, (0, 8192, 16_384)),
        ({"CPU": 6}, (0, 8192, 8192)),
        ({"CPU": 5}, (0, 4096, 4096)),
        ({"CPU": 4.5}, (0, 2048, 2048)),
        ({"CPU": 4.35}, (0, 1024, 1024)),
        ({"CPU": 4.2}, (0, 512, 512)),
        # two GPUs
        ({"CPU": 16, "GPU0": 12, "GPU1": 12}, (ALL, 8192, 32_768)),
        ({"CPU": 16, "GPU0": 6, "GPU1": 3}, (ALL, 8192, 32_768)),
        ({"CPU": 16, "GPU0": 3, "GPU1": 3}, (ALL, 8192, 8192)),
        ({"CPU": 16, "GPU0": 0, "GPU1": 6}, (ALL, 8192, 8192)),
        ({"CPU": 16, "GPU0": 1, "GPU1": 1}, (12, 4096, 4096)),
        ({"CPU": 16, "GPU0": 0, "GPU1": 0}, (0, 8192, 32_768)),
    ],
)
def test_what_is_chosen(limits: dict[str, float], expected: tuple[int, int, int]) -> None:
    choice = fitting(limits).choose()
    assert choice.fits
    assert choice.candidate == expected
    assert all(num <= limits[device] * GIB for device, num in choice.predicted.items())


@pytest.mark.parametrize(
    ("limits", "wish", "smallest"),
    [
        ({"CPU": 1}, Wish(), (0, 512, 512)),
        ({"CPU": 1, "GPU0": 1}, Wish(), (0, 512, 512)),
        ({"CPU": 16, "GPU0": 1}, Wish(gpu_layers=-1), (ALL, 512, 512)),
        ({"CPU": 16, "GPU0": 1}, Wish(gpu_layers=20), (20, 512, 512)),
        ({"CPU": 5}, Wish(context_length=16_384), (0, 16_384, 16_384)),
        ({"CPU": 5}, Wish(kv_cells=20_000), (0, 512, 20_224)),
        ({"CPU": 5, "GPU0": 5}, Wish(16_384, 32_768, -1), (ALL, 16_384, 32_768)),
        ({}, Wish(), (0, 512, 512)),
    ],
)
def test_what_is_said_when_nothing_fits(limits: dict[str, float], wish: Wish, smallest: tuple[int, int, int]) -> None:
    choice = fitting(limits, wish).choose()
    assert not choice.fits
    assert choice.candidate == smallest
    assert any(num > limits.get(device, 0) * GIB for device, num in choice.predicted.items())


@pytest.mark.parametrize(
    ("limits", "wish", "expected"),
    [
        ({"CPU": 16, "GPU0": 24}, Wish(context_length=1000), (ALL, 1000, 16_128)),
        ({"CPU": 16, "GPU0": 24}, Wish(context_length=16_384), (ALL, 16_384, 32_768)),
        ({"CPU": 16, "GPU0": 6}, Wish(context_length=16_384), (32, 16_384, 16_384)),
        ({"CPU": 16, "GPU0": 24}, Wish(kv_cells=20_000), (ALL, 8192, 20_224)),
        ({"CPU": 16, "GPU0": 24}, Wish(kv_cells=100), (ALL, 8192, 8192)),  # never less than a full sequence
        ({"CPU": 16, "GPU0": 24}, Wish(context_length=65_536), (ALL, 65_536, 65_536)),
        ({"CPU": 16, "GPU0": 24}, Wish(gpu_layers=0), (0, 8192, 32_768)),
        ({"CPU": 16, "GPU0": 24}, Wish(gpu_layers=10), (10, 8192, 32_768)),
        ({"CPU": 16, "GPU0": 1}, Wish(gpu_layers=5), (5, 8192, 8192)),
        ({"CPU": 16, "GPU0": 24}, Wish(gpu_layers=99), (ALL, 8192, 32_768)),
        ({"CPU": 16, "GPU0": 4.5}, Wish(gpu_layers=-1), (ALL, 2048, 2048)),  # below 4096 rather than fewer layers
        ({"CPU": 16}, Wish(gpu_layers=-1), (0, 8192, 32_768)),
        ({"CPU": 16}, Wish(gpu_layers=10), (0, 8192, 32_768)),
    ],
)
def test_what_is_configured_stays(limits: dict[str, float], wish: Wish, expected: tuple[int, int, int]) -> None:
    choice = fitting(limits, wish).choose()
    assert choice.fits
    assert choice.candidate == expected


@pytest.mark.parametrize(
    ("trained", "num_sequences", "expected"),
    [
        (2048, 16, (2048, 32_768)),
        (131_072, 16, (8192, 32_768)),
        (512, 16, (512, 8192)),
        (1000, 1, (1000, 1024)),
        (131_072, 2, (8192, 16_384)),
    ],
)
def test_the_full_context(trained: int, num_sequences: int, expected: tuple[int, int]) -> None:
    header = llama_header(layers=2, trained=trained)
    candidate = fitting({"CPU": 64}, header=header, num_sequences=num_sequences).choose().candidate
    assert candidate[1:] == expected


def test_a_context_is_not_longer_than_the_positions_that_a_model_has_learned() -> None:
    header = llama_header(layers=2, trained=2048)
    learned = replace(header.tensors[0], name="position_embd.weight", shape=(4096, 1024))
    choice = fitting({"CPU": 64}, header=replace(header, tensors=(*header.tensors, learned))).choose()
    assert choice.candidate.sequence_len == 1024


@pytest.mark.parametrize(
    ("limits", "wished", "shares"),
    [
        ({"GPU0": 24}, (), ()),
        ({"GPU0": 24}, (3, 1), ()),
        ({"GPU0": 12, "GPU1": 12}, (), (0.5, 0.5)),
        ({"GPU0": 12, "GPU1": 6}, (), (0.67, 0.33)),
        ({"GPU0": 12, "GPU1": 0}, (), (1.0, 0.0)),
        ({"GPU0": 24, "GPU1": 12}, (1, 3), (0.25, 0.75)),
        ({"GPU0": 24, "GPU1": 12}, (2,), (1.0, 0.0)),
        ({"GPU0": 24, "GPU1": 12}, (0, 0), (0.67, 0.33)),
    ],
)
def test_shares_of_several_gpus(limits: dict[str, float], wished: tuple[float, ...], shares: tuple[float, ...]) -> None:
    choice = fitting({"CPU": 16, **limits}, Wish(gpu_layers=-1, context_length=512, shares=wished)).choose()
    assert choice.shares == shares
    used = [gpu for gpu, share in zip(limits, shares or (1.0,), strict=False) if share]
    assert set(choice.predicted) == {"CPU", *used}


def test_every_layer_is_on_one_of_several_gpus() -> None:
    """The parts together are what one GPU would take, but for a compute buffer on each."""
    candidate = Candidate(ALL, 8192, 8192)
    one = fitting({"CPU": 16, "GPU0": 24}).predict(candidate)["GPU0"]
    two = fitting({"CPU": 16, "GPU0": 16, "GPU1": 8}).predict(candidate)
    three = fitting({"CPU": 16, "GPU0": 8, "GPU1": 8, "GPU2": 8}).predict(candidate)

    assert 0 < two["GPU0"] + two["GPU1"] - one < 600 * MIB
    assert 0 < sum(three[gpu] for gpu in ("GPU0", "GPU1", "GPU2")) - one < 900 * MIB
    assert 1.8 < two["GPU0"] / two["GPU1"] < 2.4


@pytest.mark.parametrize(
    ("kind", "wished", "gpu_layers", "expected"),
    [
        ("Q4_K", None, 0, False),  # rearranged by the processor: the file's pages would be there beside that
        ("Q8_0", None, 0, True),
        ("Q4_K", None, -1, True),
        ("Q4_K", True, 0, True),
        ("Q8_0", False, 0, False),
        ("Q8_0", False, -1, False),
    ],
)
def test_whether_a_file_is_mapped(kind: str, wished: bool | None, gpu_layers: int, expected: bool) -> None:  # noqa: FBT001
    limits = {"CPU": 32, "GPU0": 32}
    choice = fitting(limits, Wish(gpu_layers=gpu_layers, use_mmap=wished), llama_header(kind=kind)).choose()
    assert choice.use_mmap is expected


@pytest.mark.parametrize(
    ("kind", "wished", "gpu_layers", "expected"),
    [
        ("Q4_K", None, 0, (True, True)),
        ("Q4_K", True, 0, (True, True)),
        ("Q4_K", False, 0, (False, False)),
        ("Q8_0", None, 0, (True, False)),
        ("Q4_K", None, -1, (True, False)),
    ],
)
def test_pages_are_given_back_where_they_were_rearranged(
    kind: str,
    wished: bool | None,  # noqa: FBT001
    gpu_layers: int,
    expected: tuple[bool, bool],
) -> None:
    limits, wish = {"CPU": 32, "GPU0": 32}, Wish(gpu_layers=gpu_layers, use_mmap=wished)
    releasing = replace(fitting(limits, wish, llama_header(kind=kind)), can_release=True).choose()
    assert (releasing.use_mmap, releasing.releases_mapping) == expected
    read = fitting(limits, replace(wish, use_mmap=False), llama_header(kind=kind)).choose()
    if releasing.releases_mapping:
        assert releasing.predicted == read.predicted


SMALL = llama_header(layers=4, width=1024, heads=16, hidden=2048, vocabulary=8192)
# Memory for prompts of finished requests


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"CPU": 64}, GIB),
        ({"CPU": 16}, GIB),
        ({"CPU": 15}, 512 * MIB),  # a sixteenth, as a power of two
        ({"CPU": 8}, 512 * MIB),
        ({"CPU": 5}, 256 * MIB),
        ({"CPU": 4.7}, 0),  # what is left is less
        ({"CPU": 4.2}, 0),
        ({"CPU": 1}, 0),
        ({"CPU": 16, "GPU0": 24}, GIB),
        ({"CPU": 1, "GPU0": 9}, 64 * MIB),
    ],
)
def test_prompts_have_a_modest_share_of_what_is_left(limits: dict[str, float], expected: int) -> None:
    without, choice = fitting(limits).choose(), fitting(limits, Wish(prefix_memory=None)).choose()
    assert choice.prefix_memory == expected
    assert (choice.candidate, choice.fits) == (without.candidate, without.fits)
    assert choice.predicted["CPU"] == without.predicted["CPU"] + expected
    assert choice.later == without.later + expected


def test_prompts_have_no_more_than_the_cells() -> None:
    wish = Wish(context_length=512, kv_cells=512, prefix_memory=None)
    assert fitting({"CPU": 64}, wish).choose().prefix_memory == 64 * MIB


def test_memory_for_prompts_that_was_asked_for_comes_before_more_cells() -> None:
    asked = fitting({"CPU": 8}, Wish(prefix_memory=2 * GIB)).choose()
    assert asked.fits
    assert asked.prefix_memory == 2 * GIB
    assert asked.candidate == (0, 8192, 8192)
    assert asked.predicted["CPU"] > 7 * GIB
    assert not fitting({"CPU": 5}, Wish(prefix_memory=GIB)).choose().fits


LIMIT = st.integers(0, 1500).map(lambda mib: mib / 1024)
GPU_LIMITS = st.lists(LIMIT, max_size=2).map(lambda limits: {f"GPU{at}": limit for at, limit in enumerate(limits)})
WISHES = st.builds(
    Wish,
    st.none() | st.integers(1, 20_000),
    st.none() | st.integers(1, 40_000),
    st.none() | st.integers(-1, 7),
    st.none() | st.booleans(),
    st.lists(st.integers(0, 3), max_size=2).map(tuple),
    st.sampled_from([0, None, 100 * MIB]),
)


def within(predicted: Mapping[str, int], limits: Mapping[str, float]) -> bool:
    return all(num <= limits[device] * GIB for device, num in predicted.items())


@settings(deadline=None)
@given(LIMIT, GPU_LIMITS, WISHES)
def test_what_is_chosen_fits_if_it_says_so(cpu: float, gpus: dict[str, float], wish: Wish) -> None:
    limits = {"CPU": cpu, **gpus}
    choice = fitting(limits, wish, SMALL).choose()
    assert choice.fits == within(choice.predicted, limits)
    candidate = choice.candidate
    assert candidate.cells >= candidate.sequence_len >= 1
    assert candidate.cells % 256 == 0
    assert wish.context_length in (None, candidate.sequence_len)


@settings(deadline=None)
@given(LIMIT, GPU_LIMITS)
def test_something_is_chosen_whenever_anything_fits(cpu: float, gpus: dict[str, float]) -> None:
    limits = {"CPU": cpu, **gpus}
    made = fitting(limits, header=SMALL)
    anything = any(
        within(made.predict(Candidate(layers, context, context)), limits)
        for layers, context in product(range(made.all_layers + 1 if gpus else 1), (512, 1024, 4096, 8192))
    )
    assert made.choose().fits or not anything


@settings(deadline=None)
@given(LIMIT, st.floats(0, 1), WISHES)
def test_more_main_memory_never_gives_less_context(cpu: float, more: float, wish: Wish) -> None:
    less, larger = (fitting({"CPU": limit}, wish, SMALL).choose() for limit in (cpu, cpu + more))
    assert larger.candidate.sequence_len >= less.candidate.sequence_len
    assert larger.candidate.cells >= less.candidate.cells
    assert larger.fits >= less.fits


@settings(deadline=None)
@given(LIMIT, LIMIT, st.floats(0, 1), st.floats(0, 1))
def test_a_model_that_is_whole_on_the_gpu_only_grows_with_memory(
    cpu: float, gpu: float, more_cpu: float, more_gpu: float
) -> None:
    less = fitting({"CPU": cpu, "GPU0": gpu}, header=SMALL).choose()
    more = fitting({"CPU": cpu + more_cpu, "GPU0": gpu + more_gpu}, header=SMALL).choose()
    # with a context below 4096 it is the last resort, before which some layers with a longer context come
    if less.candidate.gpu_layers == 5 and less.candidate.sequence_len >= 4096:
        assert more.candidate.gpu_layers == 5
        assert more.candidate.sequence_len >= less.candidate.sequence_len
        assert more.candidate.cells >= less.candidate.cells


@settings(deadline=None)
@given(LIMIT, st.floats(0, 1))
def test_more_memory_of_the_gpu_never_takes_layers_from_it(gpu: float, more: float) -> None:
    less, larger = (fitting({"CPU": 16, "GPU0": limit}, header=SMALL).choose() for limit in (gpu, gpu + more))
    assert larger.candidate.gpu_layers >= less.candidate.gpu_layers
