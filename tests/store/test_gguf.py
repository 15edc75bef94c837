"""The header reader: the same facts as the reference reader, and an error a person can act on for every other file."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter
from gguf_shapes import CHATML, LlamaShape, write_embedding, write_hybrid, write_llama, write_recurrent
from gguf_shapes import write_sliding_window as write_window
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.errors import ModelLoadingFailed
from server.store.ggml_types import TENSOR_FORMATS
from server.store.gguf import STRING, read_gguf_header
from server.store.gguf_header import GgufArray

WRITERS: dict[str, Callable[[Path], object]] = {
    "llama": write_llama,
    "gemma2": write_window,
    "mamba": write_recurrent,
    "jamba": write_hybrid,
    "bert": write_embedding,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_llama(path)
    return path.read_bytes()


def refused(path: Path) -> str:
    with pytest.raises(ModelLoadingFailed) as error:
        read_gguf_header(path)
    return error.value.message.removeprefix(f"{path} ")


@pytest.mark.parametrize("kind", WRITERS)
def test_agrees_with_the_reference_reader(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    WRITERS[kind](path)
    header, reference = read_gguf_header(path), GGUFReader(path)

    assert header.architecture == kind
    assert header.data_offset == reference.data_offset
    assert [(t.name, list(t.shape), t.size, t.offset) for t in header.tensors] == [
        (t.name, t.shape.tolist(), t.n_bytes, t.data_offset) for t in reference.tensors
    ]
    fields = {key: field for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert set(fields) == set(header.metadata)
    for key, value in header.metadata.items():
        if not isinstance(value, GgufArray):
            assert value == fields[key].contents()
        elif value.values is not None:
            assert list(value.values) == fields[key].contents()
        else:
            assert value.length == len(fields[key].data)


def test_says_what_the_model_is(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_llama(path, LlamaShape(vocabulary=1000, weights="Q8_0"), name="a name")
    header = read_gguf_header(path)

    assert (header.version, header.alignment, header.file_size) == (3, 32, path.stat().st_size)
    assert (header.name, header.chat_template, header.vocabulary_size) == ("a name", CHATML, 1000)
    assert (header.context_length, header.block_count, header.embedding_length) == (512, 2, 64)
    assert (header.head_counts, header.kv_head_counts, header.split_count) == ((4,), (2,), 1)
    assert {tensor.format.name for tensor in header.tensors} == {"F32", "Q8_0"}
    assert header.tensor_bytes <= header.file_size - header.data_offset


def test_reads_one_value_per_layer(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_hybrid(path, LlamaShape(layers=4))

    assert read_gguf_header(path).kv_head_counts == (0, 2, 0, 2)


def test_missing_facts_are_none(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    header = read_gguf_header(path)

    assert header.architecture == ""
    assert header.context_length is None
    assert header.vocabulary_size is None
    assert header.head_counts == header.kv_head_counts == ()


def test_keeps_the_strings_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    vocabulary = write_llama(path)
    key = "tokenizer.ggml.tokens"

    assert read_gguf_header(path).metadata[key] == GgufArray(STRING, 512, None)
    kept = read_gguf_header(path, keep=(key,)).metadata[key]
    assert isinstance(kept, GgufArray)
    assert kept.values == tuple(token.encode() for token in vocabulary.tokens)


def test_reads_version_2(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny[:4] + struct.pack("<I", 2) + tiny[8:])

    assert read_gguf_header(path).version == 2


def test_text_that_is_not_utf8_is_replaced(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny.replace(b"random llama", b"random \xffllam"))

    assert read_gguf_header(path).name == "random �llam"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"GG", "is not a GGUF file: it begins with b'GG'"),
        (b"GGUF", "is truncated"),
        (b"\x80\x04\x95\x00" * 20, "is not a GGUF file: it begins with"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"lmgg" + bytes(100), "convert the model to GGUF"),
        (bytes(1000), "the download did not finish"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), "is GGUF version 0"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "is GGUF version 4"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "it claims 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "it claims 1152921504606846976 metadata entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 9), "is truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "is truncated or corrupt: its header needs byte"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)

    assert reason in refused(path)


def entry(key: bytes, value_type: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", value_type) + value


def tensor(name: bytes, shape: tuple[int, ...], number: int = 0, offset: int = 0) -> bytes:
    return struct.pack(f"<Q{len(name)}sI{len(shape)}QIQ", len(name), name, len(shape), *shape, number, offset)


NUMBER = struct.pack("<I", 7)


@pytest.mark.parametrize(
    ("entries", "tensors", "reason"),
    [
        ([entry(b"", 4, NUMBER)], [], "the metadata key '' is empty"),
        ([entry(b"a", 4, NUMBER)] * 2, [], "comes twice"),
        ([entry(b"\xff", 4, NUMBER)], [], "is not UTF-8"),
        ([entry(b"a", 13, NUMBER)], [], "'a' has the unknown type 13"),
        ([entry(b"a", 9, struct.pack("<IQ", 9, 1))], [], "'a' is an array of unknown type 9"),
        ([entry(b"a", 9, struct.pack("<IQ", 4, 1 << 40))], [], "is truncated or corrupt"),
        ([entry(b"a", 9, struct.pack("<IQ", 8, 1 << 40))], [], "it claims 1099511627776 strings in 'a'"),
        ([entry(b"general.alignment", 4, NUMBER)], [], "its alignment is 7, not a power of two"),
        ([entry(b"general.alignment", 4, bytes(4))], [], "its alignment is 0, not a power of two"),
        ([entry(b"general.alignment", 5, NUMBER)], [], "its alignment is not a 32-bit integer"),
        ([], [tensor(b"a" * 64, (1,))], "cannot be the name of a tensor"),
        ([], [tensor(b"a\0b", (1,))], "cannot be the name of a tensor"),
        ([], [tensor(b"a", (1,) * 5)], "has 5 dimensions"),
        ([], [tensor(b"a", (0,))], "has the shape (0,)"),
        ([], [tensor(b"a", (1 << 63, 2))], "has the shape"),
        ([], [tensor(b"a", (1,), 4)], "of the unknown type 4"),
        ([], [tensor(b"a", (100,), 12)], "which Q4_K cannot hold (a multiple of 256)"),
        ([], [tensor(b"a", (8,), offset=32)], "is said to start at 32 and not at 0"),
        ([], [tensor(b"a", (8,)), tensor(b"b", (8,))], "is said to start at 0 and not at 32"),
        ([], [tensor(b"a", (8,)), tensor(b"a", (8,), offset=32)], "'a' comes twice"),
        ([], [tensor(b"a", (1 << 40,) * 4)], "is truncated: tensor 'a' ends at byte"),
        ([], [tensor(b"a", (100,))], "is truncated: tensor 'a' ends at byte 464 of 128"),
    ],
)
def test_corrupt_headers(tmp_path: Path, entries: list[bytes], tensors: list[bytes], reason: str) -> None:
    path = tmp_path / "model.gguf"
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    path.write_bytes(header.ljust(128, b"\0"))

    assert reason in refused(path)


def test_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.gguf") == "cannot be read: No such file or directory"


def test_path_with_nul(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "a\0b")


def test_directory(tmp_path: Path) -> None:
    assert refused(tmp_path) == "is a directory; name the .gguf file in it"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")

    assert refused(tmp_path / "pipe.gguf") == "is not a regular file"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device here")
def test_device() -> None:
    assert refused(Path("/dev/zero")) == "is not a regular file"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)

    assert refused(path) == "cannot be read: Permission denied"


def test_every_truncation_is_refused(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "model.gguf"
    for length in [*range(0, 2000, 37), *range(2000, len(tiny), 9973), len(tiny) - 1]:
        path.write_bytes(tiny[:length])
        refused(path)


def test_tensor_formats_are_those_of_llama_cpp() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    from ctypes import CDLL, c_int, c_int64, c_size_t  # noqa: PLC0415 - only here

    folder = Path(llama_cpp.__file__).parent / "lib"
    library = CDLL(str(next(folder.glob("*ggml-base.*"))))
    block_len, block_bytes = library.ggml_blck_size, library.ggml_type_size
    block_len.restype, block_len.argtypes = c_int64, [c_int]
    block_bytes.restype, block_bytes.argtypes = c_size_t, [c_int]

    for number, form in TENSOR_FORMATS.items():
        assert (form.block_len, form.block_bytes) == (block_len(number), block_bytes(number)), form.name


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_edits_are_read_or_refused(
    tiny: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    edited = bytearray(tiny)
    header_len = len(tiny) - 420_000  # most edits should hit the header
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, header_len))
        what = data.draw(st.binary(min_size=1, max_size=8))
        edited[where : where + len(what)] = what
    path = tmp_path_factory.getbasetemp() / "edited.gguf"
    path.write_bytes(bytes(edited[: data.draw(st.integers(0, len(edited)))] if data.draw(st.booleans()) else edited))

    try:
        read_gguf_header(path)
    except ModelLoadingFailed as error:
        assert str(path) in error.message  # noqa: PT017 - both outcomes are right


def test_text_ends_at_a_nul(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny.replace(b"random llama", b"random\0llama"))

    assert read_gguf_header(path).name == "random", "as llama.cpp sees it"


def test_learned_positions_limit_the_context(tmp_path: Path) -> None:
    write_embedding(tmp_path / "bert.gguf")
    write_llama(tmp_path / "llama.gguf")

    assert read_gguf_header(tmp_path / "bert.gguf").position_limit == 512
    assert read_gguf_header(tmp_path / "llama.gguf").position_limit is None


def test_long_arrays_are_kept_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_array("short", [1, 2, 3])
    writer.add_array("long", list(range(2000)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    header = read_gguf_header(path)

    assert header.metadata["short"] == GgufArray(5, 3, (1, 2, 3))
    assert header.metadata["long"] == GgufArray(5, 2000, None)
    assert read_gguf_header(path, keep=("long",)).metadata["long"] == GgufArray(5, 2000, tuple(range(2000)))
