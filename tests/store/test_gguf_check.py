"""What is refused before llama.cpp sees it: faults that it would not report but abort on."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf_shapes import LlamaShape, write_embedding, write_hybrid, write_llama, write_recurrent, write_sliding_window
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.errors import ModelLoadingFailed
from server.store.gguf_check import check_gguf

Edit = Callable[[GGUFWriter], None]


def minimal(path: Path, *edits: Edit, architecture: str = "llama", without: str = "") -> Path:
    """Write the smallest header that passes, changed by the edits; keys given again replace what was there."""
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(200)])
    values = writer.kv_data[0]
    for edit in edits:
        edit(writer)
    if without:
        del values[without]
    if not writer.tensors[0]:
        writer.add_tensor("token_embd.weight", np.zeros((200, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def put(key: str, value: object) -> Edit:
    """Set a key, of the type that llama.cpp expects for such a value."""

    def edit(writer: GGUFWriter) -> None:
        writer.kv_data[0].pop(key, None)
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, cast("list[int]", value))

    return edit


def tensor(name: str, shape: tuple[int, ...], kind: Type) -> Edit:
    def edit(writer: GGUFWriter) -> None:
        block_len, block_bytes = {Type.F32: (1, 4), Type.F16: (1, 2), Type.F64: (1, 8), Type.Q8_0: (32, 34)}[kind]
        data = np.zeros((*shape[:-1], shape[-1] // block_len * block_bytes), np.uint8)
        writer.add_tensor(name, data, raw_dtype=kind)

    return edit


def refused(path: Path) -> str:
    with pytest.raises(ModelLoadingFailed) as error:
        check_gguf(path)
    return error.value.message


@pytest.mark.parametrize("write", [write_llama, write_sliding_window, write_recurrent, write_hybrid, write_embedding])
def test_sound_models_pass(tmp_path: Path, write: Callable[[Path], object]) -> None:
    path = tmp_path / "model.gguf"
    write(path)
    header = check_gguf(path)

    assert header.context_length == 512
    tokens = header.array("tokenizer.ggml.tokens")
    assert tokens is not None
    assert tokens.values is None, "the vocabulary is not kept in memory"


def test_a_model_of_experts_passes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_llama(path, LlamaShape(experts=4))

    assert check_gguf(path).of_architecture("expert_count") == 4


def test_the_minimal_header_passes(tmp_path: Path) -> None:
    assert check_gguf(minimal(tmp_path / "model.gguf")).architecture == "llama"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("llama.context_length", 0, "llama.context_length is 0"),
        ("llama.context_length", "64", "it does not say llama.context_length"),
        ("llama.embedding_length", 1 << 31, "llama.embedding_length is 2147483648"),
        ("llama.block_count", 0, "llama.block_count is 0"),
        ("llama.block_count", 513, "llama.block_count is 513"),
        ("llama.nextn_predict_layers", 2, "llama.nextn_predict_layers is 2, of 2 layers"),
        ("llama.n_deepstack_layers", 3, "llama.n_deepstack_layers is 3, of 2 layers"),
        ("llama.attention.head_count", 0, "llama.attention.head_count is 0"),
        ("llama.attention.head_count_kv", 3, "4 attention heads cannot share 3 heads"),
        ("llama.attention.head_count_kv", [2, 3], "4 attention heads cannot share 3 heads"),
        ("llama.attention.head_count_kv", [2, -1], "llama.attention.head_count_kv is (2, -1)"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "layer_norm_rms_epsilon is nan"),
        ("llama.attention.layer_norm_rms_epsilon", -1.0, "layer_norm_rms_epsilon is -1.0"),
        ("llama.rope.scaling.type", "su", "llama.rope.scaling.type is 'su'"),
        ("llama.pooling_type", 9, "llama.pooling_type is 9"),
        ("llama.expert_count", 8, "it uses 0 of 8 experts"),
        ("llama.expert_gating_func", 5, "llama.expert_gating_func is 5"),
        ("llama.expert_used_count", 2, "it uses 2 of 0 experts"),
        ("tokenizer.ggml.model", "no_vocab", "it has no vocabulary"),
        ("tokenizer.ggml.tokens", [1, 2, 3], "it has no vocabulary"),
        ("tokenizer.ggml.tokens", ["a", "b", "a"], "token 2, b'a', is in its vocabulary twice"),
        ("tokenizer.ggml.tokens", ["a", "b\0c", "b"], "token 2, b'b', is in its vocabulary twice"),
        ("tokenizer.ggml.tokens", ["[EMPTY_1]", ""], "token 1, b'[EMPTY_1]', is in its vocabulary twice"),
        ("tokenizer.ggml.model", "gemma4", "it adds a BOS token to prompts and has none"),
        ("tokenizer.ggml.model", "llama", "its vocabulary cannot spell the byte 0x00"),
        ("tokenizer.ggml.model", "rwkv", "its vocabulary cannot spell the byte 0x00"),
        ("tokenizer.ggml.pre", "whitespace", "the tokenizer 'gpt2' cannot split text at spaces"),
        ("llama.embedding_length", 33, "llama.embedding_length 33 cannot be divided among 4 attention heads"),
        ("llama.attention.key_length", 0, "its attention heads have 0 keys, 8 values and 0 rotated dimensions"),
        ("llama.attention.value_length", 16, "8 keys, 16 values and 8 rotated dimensions, not the same"),
        ("llama.rope.dimension_count", 4, "8 keys, 8 values and 4 rotated dimensions, not the same"),
        ("llama.rope.dimension_count", 9, "8 values and 9 rotated dimensions"),
        ("llama.rope.dimension_sections", [4, 4, 4, 0], "llama.rope.dimension_sections are more than its 8 keys"),
        ("llama.rope.dimension_sections", [-4, 4], "llama.rope.dimension_sections are (-4, 4)"),
        ("llama.context_length", 1 << 31, "llama.context_length is 2147483648"),
    ],
)
def test_values_that_llama_cpp_aborts_on(tmp_path: Path, key: str, value: object, reason: str) -> None:
    message = refused(minimal(tmp_path / "model.gguf", put(key, value)))

    assert reason in message
    assert message.endswith("; download it again")


@pytest.mark.parametrize("key", ["context_length", "embedding_length", "block_count", "attention.head_count"])
def test_missing_values(tmp_path: Path, key: str) -> None:
    assert f"llama.{key}" in refused(minimal(tmp_path / "model.gguf", without=f"llama.{key}"))


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("jamba", "jamba.ssm.inner_size is None"),
        ("bailingmoe2", "bailingmoe2.expert_count is missing"),
        ("smallthinker", "smallthinker.expert_count is missing"),
        ("qwen2vl", "qwen2vl.rope.dimension_sections are all zero"),
    ],
)
def test_what_some_architectures_assert(tmp_path: Path, architecture: str, reason: str) -> None:
    assert reason in refused(minimal(tmp_path / "model.gguf", architecture=architecture))


def test_heads_that_must_span_the_width(tmp_path: Path) -> None:
    edits = [put("qwen2.attention.key_length", 4), put("qwen2.attention.value_length", 4)]

    path = minimal(tmp_path / "model.gguf", *edits, architecture="qwen2")
    assert "4 attention heads of 4 keys and 4 values do not make 32, its embedding length" in refused(path)


def test_tokens_for_bytes_where_there_are_none(tmp_path: Path) -> None:
    edits = [put("tokenizer.ggml.model", "bert"), put("tokenizer.ggml.token_type", [6] * 200)]

    assert "its vocabulary has tokens for bytes" in refused(minimal(tmp_path / "model.gguf", *edits))


def test_groups_of_experts(tmp_path: Path) -> None:
    edits = [put("llama.expert_count", 8), put("llama.expert_used_count", 2), put("llama.expert_group_count", 3)]

    assert "0 of 3 groups of 8 experts are used" in refused(minimal(tmp_path / "model.gguf", *edits))


@pytest.mark.parametrize(
    ("name", "shape", "kind", "reason"),
    [
        ("output_norm.weight", (32,), Type.F16, "is F16 and not F32"),
        ("blk.0.attn_q.bias", (32,), Type.Q8_0, "is Q8_0 and not F32"),
        ("blk.0.ssm_conv1d.weight", (4, 32), Type.F16, "is F16 and not F32"),
        ("blk.0.attn_q.weight", (32, 32), Type.F64, "is F64, which no matrix of weights is"),
    ],
)
def test_tensors_in_formats_without_an_operation(
    tmp_path: Path, name: str, shape: tuple[int, ...], kind: Type, reason: str
) -> None:
    assert f"tensor {name!r} {reason}" in refused(minimal(tmp_path / "model.gguf", tensor(name, shape, kind)))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("general.type", "adapter", "is a LoRA adapter, not a model"),
        ("general.type", "mmproj", "is the image projector of a multimodal model, not a model"),
        ("general.architecture", "clip", "is the image projector of a multimodal model, not a model"),
        ("general.architecture", "", "does not name its architecture"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, key: str, value: str, reason: str) -> None:
    assert reason in refused(minimal(tmp_path / "model.gguf", put(key, value)))


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "vocab.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    assert "has no weights" in refused(tmp_path / "vocab.gguf")


def part(folder: Path, number: int, count: int = 3, *, says: int | None = None) -> Path:
    def edit(writer: GGUFWriter) -> None:
        writer.add_uint16("split.no", number - 1 if says is None else says)
        writer.add_uint16("split.count", count)

    return minimal(folder / f"model-{number:05}-of-{count:05}.gguf", edit)


def test_a_split_model_passes(tmp_path: Path) -> None:
    first, *_ = [part(tmp_path, number) for number in (1, 2, 3)]

    assert check_gguf(first).split_count == 3


def test_a_missing_part(tmp_path: Path) -> None:
    first = part(tmp_path, 1)

    assert "is incomplete: model-00002-of-00003.gguf and 1 more of its 3 files is missing" in refused(first)


def test_the_wrong_part(tmp_path: Path) -> None:
    assert f"load its first part, {tmp_path / 'model-00001-of-00003.gguf'}" in refused(part(tmp_path, 2))


def test_parts_that_were_renamed(tmp_path: Path) -> None:
    path = part(tmp_path, 1).rename(tmp_path / "model.gguf")

    assert "keep the names they came with (….-00001-of-00003.gguf)" in refused(path)


def test_parts_that_were_mixed_up(tmp_path: Path) -> None:
    first = part(tmp_path, 1)
    part(tmp_path, 2, says=2)
    part(tmp_path, 3)

    assert "it does not say that it is part 2" in refused(first)


def test_a_truncated_part(tmp_path: Path) -> None:
    first = part(tmp_path, 1)
    second = part(tmp_path, 2)
    part(tmp_path, 3)
    second.write_bytes(second.read_bytes()[:-100])

    assert refused(first).startswith(f"{second} is truncated")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return minimal(tmp_path_factory.mktemp("gguf") / "model.gguf").read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_edits_pass_or_are_refused(
    sound: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    edited = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, 4500))
        what = data.draw(st.binary(min_size=1, max_size=8))
        edited[where : where + len(what)] = what
    path = tmp_path_factory.getbasetemp() / "edited.gguf"
    path.write_bytes(edited)

    try:
        check_gguf(path)
    except ModelLoadingFailed as error:
        assert str(path) in error.message  # noqa: PT017 - both outcomes are right
