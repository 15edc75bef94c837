"""Plans for real files on invented machines."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from files import rewrite
from gguf_shapes import LlamaShape, write_llama

from server.core.errors import ModelLoadingFailed
from server.llama.devices import Device
from server.llama.model import LoadOptions
from server.pool.config import KvCacheType, ModelConfig, PoolConfig, Switch
from server.pool.plan import LoadPlan, Machine, make_plan

GIB = 1 << 30
POOL = PoolConfig()
CPU = Device("CPU", "Abacus", is_gpu=False, free=16 * GIB, total=16 * GIB)


def machine(*gpu_gib: float, info: str = "CPU : AVX2 = 1 | REPACK = 1 | ") -> Machine:
    gpus = [
        Device(f"CUDA{at}", "Sandbox", is_gpu=True, free=int(gib * GIB), total=int(gib * GIB))
        for at, gib in enumerate(gpu_gib)
    ]
    return Machine((CPU, *gpus), info)


def plan_of(path: Path, *gpu_gib: float, pool: PoolConfig = POOL, **settings: object) -> LoadPlan:
    there = machine(*gpu_gib)
    config = replace(ModelConfig(str(path)), **settings)  # type: ignore[arg-type] # each test knows its types
    return make_plan(config, pool, there, {device.name: device.free for device in there.devices})


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, whose heads are 32 wide."""
    path = tmp_path_factory.mktemp("plan") / "tiny.gguf"
    write_llama(path, LlamaShape(width=128))
    return path


def test_a_plan_without_a_gpu(model_path: Path) -> None:
    plan = plan_of(model_path)

    assert plan.path == model_path
    assert plan.load == LoadOptions(gpu_layers=0, use_mmap=True, use_mlock=False)
    assert plan.context.num_sequences == 16
    assert (plan.context.sequence_len, plan.context.num_cells) == (512, 8192)
    assert set(plan.predicted) == {"CPU"}
    assert model_path.stat().st_size < plan.predicted["CPU"] < 100 << 20
    assert 0 < plan.later < plan.predicted["CPU"]
    assert "all 3 layers on the CPU, 512 tokens of context, 8192 KV cells (f16), mapped" in plan.choice


def test_a_plan_with_a_gpu(model_path: Path) -> None:
    plan = plan_of(model_path, 24)

    assert plan.load == LoadOptions(gpu_layers=3, use_mmap=True, use_mlock=False)
    assert set(plan.predicted) == {"CPU", "CUDA0"}
    assert "all 3 layers on CUDA0" in plan.choice


def test_a_plan_with_two_gpus(model_path: Path) -> None:
    plan = plan_of(model_path, 24, 8)

    assert plan.load.tensor_split == (0.75, 0.25)
    assert set(plan.predicted) == {"CPU", "CUDA0", "CUDA1"}
    assert "all 3 layers on CUDA0 and CUDA1" in plan.choice


def test_what_the_log_says_about_less_than_everything(model_path: Path) -> None:
    config = ModelConfig(str(model_path))
    small = {"CPU": 16 * GIB, "CUDA0": 24_600_000}
    partly, not_at_all, nowhere = (
        make_plan(config, POOL, machine(24), limits).choice
        for limits in (small, {"CPU": 16 * GIB}, {"CPU": 1 << 20, "CUDA0": 1 << 20})
    )
    assert partly.startswith("2 of 3 layers on CUDA0, 512 tokens of context, 512 KV cells")
    assert partly.endswith("more layers do not fit on the GPU, 8192 KV cells do not fit")
    assert not_at_all.endswith("no layer fits on the GPU")
    assert nowhere.endswith("this does not fit")


def test_settings_reach_the_plan(model_path: Path) -> None:
    plan = plan_of(
        model_path,
        8,
        8,
        n_gpu_layers=2,
        context_length=300,
        kv_cells=1000,
        max_sequences=3,
        kv_cache_type=KvCacheType.Q8_0,
        flash_attention=Switch.ON,
        mmap=Switch.OFF,
        mlock=True,
        threads=5,
        tensor_split=(1.0, 3.0),
    )
    assert plan.load == LoadOptions(2, use_mmap=False, use_mlock=True, tensor_split=(0.25, 0.75))
    context = plan.context
    assert (context.sequence_len, context.num_cells, context.num_sequences) == (300, 1024, 3)
    assert (context.kv_cache_type, context.flash_attention, context.threads) == ("q8_0", "on", 5)


def test_settings_of_the_pool_hold_where_the_model_says_nothing(model_path: Path) -> None:
    pool = PoolConfig(max_sequences=40, batch_size=32, threads=7)
    context = plan_of(model_path, pool=pool).context
    assert (context.num_sequences, context.batch_size, context.threads) == (40, 40, 7)


@pytest.mark.parametrize("layers", [-1, 1, 99])
def test_gpu_layers_without_a_gpu_are_on_the_cpu(model_path: Path, layers: int) -> None:
    assert plan_of(model_path, n_gpu_layers=layers).load.gpu_layers == 0


def test_zeros_mean_auto(model_path: Path) -> None:
    assert plan_of(model_path, context_length=0, kv_cells=0).context == plan_of(model_path).context


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"this is not a model", "not a GGUF file"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 100, "corrupt"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadingFailed, match=rf"model\.gguf.*{said}"):
        plan_of(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadingFailed, match="directory"):
        plan_of(tmp_path)
    with pytest.raises(ModelLoadingFailed, match="cannot be read"):
        plan_of(tmp_path / "a\0b")


def test_a_truncated_file(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_path.read_bytes()[:-1000])
    with pytest.raises(ModelLoadingFailed, match="truncated"):
        plan_of(path)


@pytest.mark.parametrize(
    ("source", "said"),
    [(None, "cannot be read"), (b"\xff\xfe", "cannot be read"), (b"{% for %}", "not valid Jinja")],
)
def test_chat_templates_that_cannot_be_used(model_path: Path, tmp_path: Path, source: bytes | None, said: str) -> None:
    template = tmp_path / "template.jinja"
    if source is not None:
        template.write_bytes(source)
    with pytest.raises(ModelLoadingFailed, match=said):
        plan_of(model_path, chat_template=str(template))


def test_quantized_cells_need_flash_attention(model_path: Path) -> None:
    with pytest.raises(ModelLoadingFailed, match="kv_cache_type q8_0 needs flash_attention"):
        plan_of(model_path, kv_cache_type=KvCacheType.Q8_0, flash_attention=Switch.OFF)
    assert plan_of(model_path, flash_attention=Switch.OFF).context.flash_attention == "off"


def test_quantized_cells_need_wide_heads(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_llama(path, LlamaShape(width=96))
    with pytest.raises(ModelLoadingFailed, match=r"kv_cache_type q4_0 .* heads have 24; use f16"):
        plan_of(path, kv_cache_type=KvCacheType.Q4_0)
    assert plan_of(path).context.kv_cache_type == "f16"


def test_the_main_gpu_holds_the_whole_model(model_path: Path) -> None:
    plan = plan_of(model_path, 8, 8, main_gpu=1)
    assert plan.load.tensor_split == (0.0, 1.0)
    assert plan.predicted.keys() == {"CPU", "CUDA1"}
    with pytest.raises(ModelLoadingFailed, match="main_gpu is 2, but the GPUs are 0 to 1"):
        plan_of(model_path, 8, 8, main_gpu=2)
    with pytest.raises(ModelLoadingFailed, match="tensor_split and main_gpu contradict each other"):
        plan_of(model_path, 8, 8, main_gpu=0, tensor_split=(1.0, 1.0))
    assert plan_of(model_path, main_gpu=2).load.gpu_layers == 0


def test_more_shares_than_gpus(model_path: Path) -> None:
    with pytest.raises(ModelLoadingFailed, match="tensor_split has 3 shares, but there are 2 GPUs"):
        plan_of(model_path, 8, 8, tensor_split=(1.0, 1.0, 1.0))
    assert plan_of(model_path, tensor_split=(1.0, 1.0, 1.0)).load.tensor_split == ()


def test_a_context_beyond_the_learned_positions(tmp_path: Path) -> None:
    write_llama(tmp_path / "plain.gguf")
    path = rewrite(tmp_path / "plain.gguf", tmp_path / "learned.gguf", positions=200)

    with pytest.raises(ModelLoadingFailed, match="knows 200 positions; its context_length cannot be 201"):
        plan_of(path, context_length=201)
    assert plan_of(path).context.sequence_len == 200


def test_fingerprints_stand_for_what_decides_the_bytes(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(model_path, path)
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    first = plan_of(path).fingerprint

    assert plan_of(path).fingerprint == first
    assert plan_of(link).fingerprint == first
    others = [
        plan_of(path, context_length=300),
        plan_of(path, kv_cache_type=KvCacheType.Q8_0),
        plan_of(path, mmap=Switch.OFF),
        plan_of(path, 8),
        plan_of(model_path),
    ]
    os.utime(path, ns=(1, 1))
    others.append(plan_of(path))
    assert len({first, *(other.fingerprint for other in others)}) == len(others) + 1


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_llama(path)
    before = plan_of(path)
    write_llama(path, LlamaShape(layers=3, context=300))
    after = plan_of(path)

    assert (before.context.sequence_len, after.context.sequence_len) == (512, 300)
    assert before.identity != after.identity


def test_all_parts_of_a_split_model_count(tmp_path: Path) -> None:
    shape = LlamaShape(4, 512, 8, 8, 1024)
    write_llama(tmp_path / "whole.gguf", shape)
    first = rewrite(tmp_path / "whole.gguf", tmp_path / "model.gguf", tensors_per_part=8)
    whole, split = plan_of(tmp_path / "whole.gguf"), plan_of(first)

    assert first.name == "model-00001-of-00005.gguf"
    assert len(split.identity.parts) == 4
    assert split.predicted["CPU"] == pytest.approx(whole.predicted["CPU"], rel=0.01)
    second = first.with_name("model-00002-of-00005.gguf")
    os.utime(second, ns=(1, 1))
    assert plan_of(first).identity != split.identity
    second.unlink()
    with pytest.raises(ModelLoadingFailed, match="00002-of-00005"):
        plan_of(first)


def test_this_machine() -> None:
    there = Machine.this()
    assert there.devices[0].name == "CPU"
    assert "CPU" in there.system_info
    assert len(there.gpus) == len(there.devices) - 1
