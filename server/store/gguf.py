"""Reading GGUF headers: what a model file says about itself, without trusting a single length in it."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import BinaryIO, cast

from server.core.errors import ModelLoadingFailed
from server.store.ggml_types import TENSOR_FORMATS, TensorFormat
from server.store.gguf_header import GgufArray, GgufHeader, GgufScalar, GgufTensor
from server.store.regular_file import open_regular

MAGIC = b"GGUF"
# Far beyond any real file, and low enough that a corrupt one costs neither minutes nor gigabytes.
HEADER_LIMIT = 128 << 20  # vocabularies of 262,000 tokens make headers of 20 MiB
ENTRIES_LIMIT = 1 << 12
TENSORS_LIMIT = 1 << 16
VALUES_LIMIT = 1 << 22
KEPT_ARRAY_LEN = 1 << 10  # numeric arrays up to this length are kept: one value per layer

_U32, _U64 = Struct("<I"), Struct("<Q")
STRING, ARRAY, U16 = 8, 9, 2
_SCALARS = {
    0: Struct("<B"),
    1: Struct("<b"),
    2: Struct("<H"),
    3: Struct("<h"),
    4: Struct("<I"),
    5: Struct("<i"),
    6: Struct("<f"),
    7: Struct("<?"),
    10: Struct("<Q"),
    11: Struct("<q"),
    12: Struct("<d"),
}


class _Reader:
    """Reads little-endian fields one after the other, and never past the file or the limit for headers.

    The file is read, not mapped: a mapped file that shrinks meanwhile would kill the process.
    """

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.pos = 0
        self._file = file
        self._data = bytearray()

    def fail(self, problem: str) -> ModelLoadingFailed:
        return ModelLoadingFailed(f"{self.path} {problem}")

    def limit(self, what: str, count: int, most: int) -> None:
        if count > most:
            raise self.fail(f"is corrupt: it claims {count} {what}; download it again")

    def _fill(self, end: int) -> None:
        """Have everything before ``end`` in memory."""
        if end > self.size:
            raise self.fail(
                f"is truncated or corrupt: its header needs byte {end} of {self.size}, at {self.pos}; download it again"
            )
        if end > HEADER_LIMIT:
            raise self.fail(f"is corrupt: its header is larger than {HEADER_LIMIT >> 20} MiB; download it again")
        wanted = min(max(end, 2 * len(self._data), 1 << 16), self.size)
        self._data += self._file.read(wanted - len(self._data))
        if len(self._data) < end:
            raise self.fail("became shorter while it was read; is it still being downloaded?")

    def take(self, count: int) -> bytes:
        end = self.pos + count
        if end > len(self._data):
            self._fill(end)
        data = bytes(self._data[self.pos : end])
        self.pos = end
        return data

    def number(self, layout: Struct) -> int:
        return int(self._scalar(layout))

    def u32(self) -> int:
        return self.number(_U32)

    def u64(self) -> int:
        return self.number(_U64)

    def _scalar(self, layout: Struct) -> int | float | bool:
        end = self.pos + layout.size
        if end > len(self._data):
            self._fill(end)
        (value,) = layout.unpack_from(self._data, self.pos)
        self.pos = end
        return cast("int | float | bool", value)

    def name(self, what: str) -> str:
        """Read a string that must be UTF-8."""
        data = self.take(self.u64())
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.fail(f"is corrupt: {what} {data[:32]!r} is not UTF-8; download it again") from None

    def value(self, key: str, value_type: int, *, keep: bool) -> GgufScalar | GgufArray:
        if value_type == STRING:  # llama.cpp reads it up to a NUL
            return self.take(self.u64()).partition(b"\0")[0].decode(errors="replace")
        if value_type == ARRAY:
            return self._array(key, keep=keep)
        if value_type not in _SCALARS:
            raise self.fail(f"is corrupt: {key!r} has the unknown type {value_type}; download it again")
        return self._scalar(_SCALARS[value_type])

    def _array(self, key: str, *, keep: bool) -> GgufArray:
        element_type, length = self.u32(), self.u64()
        if element_type == STRING:
            self.limit(f"strings in {key!r}", length, VALUES_LIMIT)
            return GgufArray(element_type, length, self._strings(length, keep=keep))
        if element_type not in _SCALARS:  # llama.cpp reads no arrays of arrays either
            raise self.fail(f"is corrupt: {key!r} is an array of unknown type {element_type}; download it again")
        layout = _SCALARS[element_type]
        if length <= KEPT_ARRAY_LEN or keep:
            self.limit(f"numbers in {key!r}", length, VALUES_LIMIT)
            return GgufArray(element_type, length, self._numbers(layout, length))
        self._skip(length * layout.size)
        return GgufArray(element_type, length, None)

    def _numbers(self, layout: Struct, count: int) -> tuple[int | float | bool, ...]:
        return tuple(number for (number,) in layout.iter_unpack(self.take(count * layout.size)))

    def _skip(self, count: int) -> None:
        if self.pos + count > len(self._data):
            self._fill(self.pos + count)
        self.pos += count

    def _strings(self, count: int, *, keep: bool) -> tuple[bytes, ...] | None:
        """Walk over strings; the one loop here that runs hundreds of thousands of times."""
        unpack, data, pos = _U64.unpack_from, self._data, self.pos
        kept: list[bytes] = []
        for _ in range(count):
            start = pos + 8
            if start > len(data):
                self._fill(start)
            pos = start + unpack(data, pos)[0]
            if pos > len(data):
                self._fill(pos)
            if keep:
                kept.append(bytes(data[start:pos]))
        self.pos = pos
        return tuple(kept) if keep else None


def read_gguf_header(path: Path, *, keep: Collection[str] = ()) -> GgufHeader:
    """Read the header of a GGUF file.

    Takes about 0.1 s for each 200,000 strings in the vocabulary and its merges; remember the result by path, size and
    modification time where that matters.

    Args:
        path: the file; a symbolic link is followed.
        keep: keys of arrays whose values are wanted even if they are long.

    Raises:
        ModelLoadingFailed: it is not a GGUF file, or one that is truncated or corrupt.

    """
    with open_regular(path) as file:
        reader = _Reader(file, path, os.fstat(file.fileno()).st_size)
        version = _read_version(reader)
        num_tensors, num_entries = reader.u64(), reader.u64()
        reader.limit("tensors", num_tensors, TENSORS_LIMIT)
        reader.limit("metadata entries", num_entries, ENTRIES_LIMIT)
        metadata, value_types = _read_metadata(reader, num_entries, keep)
        alignment = _alignment(reader, metadata, value_types)
        infos = _read_tensor_infos(reader, num_tensors)
        data_offset = _padded(reader.pos, alignment)
        tensors = _placed(reader, infos, data_offset, alignment)
    return GgufHeader(path, version, reader.size, alignment, data_offset, metadata, value_types, tensors)


def _read_version(reader: _Reader) -> int:
    if not reader.size:
        raise reader.fail("is empty; download it again")
    magic = reader.take(min(len(MAGIC), reader.size))
    if magic != MAGIC:
        raise reader.fail(f"is not a GGUF file: it begins with {magic!r}{_looks_like(magic)}")
    version = reader.u32()
    if version == 1:
        raise reader.fail("is GGUF version 1, which llama.cpp reads no longer; convert the model again")
    if version and not version & 0xFFFF:
        raise reader.fail("is a big-endian GGUF file, for other processors; download the little-endian one")
    if version not in (2, 3):
        raise reader.fail(f"is GGUF version {version}; versions 2 and 3 are supported")
    return version


def _looks_like(magic: bytes) -> str:
    known = {
        b"lmgg": "an old GGML file; convert the model to GGUF",
        b"tjgg": "an old GGJT file; convert the model to GGUF",
        b"fmgg": "an old GGMF file; convert the model to GGUF",
        b"PK\x03\x04": "a zip archive or a PyTorch checkpoint",
        b"vers": "a Git LFS pointer; run `git lfs pull`",
        b"<!DO": "a web page; the download went wrong",
        b"<htm": "a web page; the download went wrong",
        b"\0\0\0\0": "zeros; the download did not finish",
    }
    return f" ({known[magic]})" if magic in known else ""


def _read_metadata(
    reader: _Reader, count: int, keep: Collection[str]
) -> tuple[dict[str, GgufScalar | GgufArray], dict[str, int]]:
    metadata: dict[str, GgufScalar | GgufArray] = {}
    value_types: dict[str, int] = {}
    for _ in range(count):
        key = reader.name("the metadata key")
        if not key or key in metadata:
            raise reader.fail(f"is corrupt: the metadata key {key!r} is empty or comes twice; download it again")
        value_types[key] = reader.u32()
        metadata[key] = reader.value(key, value_types[key], keep=key in keep)
    return metadata, value_types


def _alignment(reader: _Reader, metadata: Mapping[str, GgufScalar | GgufArray], value_types: Mapping[str, int]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or value_types.get("general.alignment", 4) != 4:
        raise reader.fail("is corrupt: its alignment is not a 32-bit integer; download it again")
    if alignment < 32 or alignment & (alignment - 1):  # ggml asserts that tensors lie at multiples of 32
        raise reader.fail(f"is corrupt: its alignment is {alignment}, not a power of two from 32; download it again")
    return alignment


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    format: TensorFormat
    offset: int


def _read_tensor_infos(reader: _Reader, count: int) -> list[_TensorInfo]:
    infos: dict[str, _TensorInfo] = {}
    for _ in range(count):
        info = _read_tensor_info(reader)
        if info.name in infos:
            raise reader.fail(f"is corrupt: tensor {info.name!r} comes twice; download it again")
        infos[info.name] = info
    return list(infos.values())


def _read_tensor_info(reader: _Reader) -> _TensorInfo:
    name = reader.name("the tensor name")
    if len(name.encode()) >= 64 or "\0" in name:
        raise reader.fail(f"is corrupt: {name[:64]!r} cannot be the name of a tensor; download it again")
    num_dimensions = reader.u32()
    if num_dimensions > 4:
        raise reader.fail(f"is corrupt: tensor {name!r} has {num_dimensions} dimensions; download it again")
    shape = tuple(reader.u64() for _ in range(num_dimensions)) or (1,)
    number = reader.u32()
    if number not in TENSOR_FORMATS:
        raise reader.fail(
            f"has tensor {name!r} of the unknown type {number}; it is corrupt, or needs a newer llama.cpp"
        )
    form = TENSOR_FORMATS[number]
    if 0 in shape or max(shape) >= 1 << 63:
        raise reader.fail(f"is corrupt: tensor {name!r} has the shape {shape}; download it again")
    if shape[0] % form.block_len:
        raise reader.fail(
            f"is corrupt: rows of tensor {name!r} have {shape[0]} values, which {form.name} cannot hold"
            f" (a multiple of {form.block_len}); download it again"
        )
    return _TensorInfo(name, shape, form, reader.u64())


def _placed(reader: _Reader, infos: list[_TensorInfo], start: int, alignment: int) -> tuple[GgufTensor, ...]:
    """Give each tensor its place; they lie one after the other, as llama.cpp demands, and inside the file."""
    tensors, expected = [], 0
    for info in infos:
        if info.offset != expected:
            raise reader.fail(
                f"is corrupt: tensor {info.name!r} is said to start at {info.offset} and not at {expected};"
                " download it again"
            )
        size = info.format.block_bytes * (_product(info.shape) // info.format.block_len)
        end = start + info.offset + size
        if end > reader.size:
            raise reader.fail(
                f"is truncated: tensor {info.name!r} ends at byte {end} of {reader.size}; download it again"
            )
        tensors.append(GgufTensor(info.name, info.shape, info.format, start + info.offset, size))
        expected = _padded(info.offset + size, alignment)
    return tuple(tensors)


def _product(numbers: tuple[int, ...]) -> int:
    product = 1
    for number in numbers:
        product *= number
    return product


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
