"""Refusing model files that llama.cpp would not refuse but die of.

llama.cpp reports many faults of a file, and aborts the process over others: its assertions hold for files that were
written by its own tools. The rules here are those assertions, stated about the header. They are general; those that
depend on one architecture's graph cannot all be known here, so a loader that must survive any file tries it in a child
process first.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import cast

from server.core.errors import ModelLoadingFailed
from server.store.architectures import (
    CHOOSES_GATING,
    DOUBLE_INNER,
    EXPERTS_ONLY,
    HEADS_SPAN_WIDTH,
    RECURRENT,
    ROTATES_WHOLE_HEADS,
    SECTIONED,
)
from server.store.gguf import STRING, U16, read_gguf_header
from server.store.gguf_header import GgufHeader

TOKENS, TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
BYTE = 6  # the type of tokens that stand for one byte
MAX_LAYERS = 512
MAX_EXPERTS = 1024
GATING_FUNCTIONS = 4
MAX_WIDTH = 1 << 20  # of anything counted in values per token
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
TABLES = frozenset({"d2t", "ffn_gate_tid2eid"})  # integers
ADDED = re.compile(
    r".*norm(_\w+)?|ssm_(a|d|conv1d\w*)|shortconv|conv|token_types"
)  # operands of element-wise operations
NOT_WEIGHTS = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")
ESCAPES = {0x09: b"\\t", 0x0A: b"\\n", 0x0D: b"\\r"}  # as rwkv writes them
NO_TOKENIZERS = ("none", "no_vocab", "test")
# What llama.cpp assumes: ids of special tokens, which are added unless the file says otherwise, and which regardless.
SPECIAL_TOKENS: dict[str, dict[str, int | None]] = {
    "llama": {"bos": 1, "eos": 2},
    "gpt2": {"bos": 11, "eos": 11},
    "bert": {"bos": 101, "sep": 102},
    "t5": {"bos": None, "eos": 1},
    "rwkv": {},
    "plamo2": {"bos": 1, "eos": 2},
    "gemma4": {"bos": None, "eos": None},
}
ADDS = {"llama": ("bos",), "t5": ("eos",)}
ALWAYS = {"bert": ("bos", "sep"), "gemma4": ("bos",)}
SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
NOT_MODELS = {
    "adapter": "a LoRA adapter",
    "imatrix": "an importance matrix for quantizing",
    "mmproj": "the image projector of a multimodal model",
}


def check_gguf(path: Path) -> GgufHeader:
    """Read a model's header and check what llama.cpp takes on trust; of a split model, check all parts.

    Raises:
        ModelLoadingFailed: the file is not a model that can be loaded; the message says what to do.

    """
    header = read_gguf_header(path, keep=(TOKENS, TOKEN_TYPES))
    _check_kind(header)
    for problem in (
        *_hyperparameters(header),
        *_attention(header),
        *_heads(header),
        *_experts(header),
        *_tensors(header),
    ):
        raise ModelLoadingFailed(f"{path} is corrupt: {problem}; download it again")
    for problem in _vocabulary(header):
        raise ModelLoadingFailed(f"{path} is corrupt: {problem}; download it again")
    _check_parts(header)
    slim = {key: replace(array, values=None) for key in (TOKENS, TOKEN_TYPES) if (array := header.array(key))}
    return replace(header, metadata={**header.metadata, **slim})


def _check_kind(header: GgufHeader) -> None:
    kind = header.text("general.type") or ""
    if header.architecture == "clip":
        kind = "mmproj"
    if kind in NOT_MODELS:
        raise ModelLoadingFailed(f"{header.path} is {NOT_MODELS[kind]}, not a model; load the model it belongs to")
    if not header.architecture:
        raise ModelLoadingFailed(f"{header.path} does not name its architecture; it is not a model that llama.cpp runs")
    if not header.tensors and header.split_count == 1:
        raise ModelLoadingFailed(f"{header.path} has no weights; it is a vocabulary, not a model")


def _hyperparameters(header: GgufHeader) -> Iterator[str]:
    for suffix, most in (
        ("context_length", (1 << 31) - 1),
        ("embedding_length", MAX_WIDTH),
        ("block_count", MAX_LAYERS),
    ):
        value = header.of_architecture(suffix)
        if value is None:
            yield f"it does not say {header.architecture}.{suffix}"
        elif not 1 <= value <= most:
            yield f"{header.architecture}.{suffix} is {value}"
    nextn = header.of_architecture("nextn_predict_layers") or 0
    if not 0 <= nextn < (header.block_count or 1):
        yield f"{header.architecture}.nextn_predict_layers is {nextn}, of {header.block_count} layers"
    deepstack = header.of_architecture("n_deepstack_layers") or 0
    if not 0 <= deepstack <= (header.block_count or 0):
        yield f"{header.architecture}.n_deepstack_layers is {deepstack}, of {header.block_count} layers"
    scaling = header.text(f"{header.architecture}.rope.scaling.type")
    if scaling is not None and scaling not in ROPE_SCALINGS:
        yield f"{header.architecture}.rope.scaling.type is {scaling!r}"
    yield from _of_some_architectures(header)
    for key, small in header.metadata.items():
        if key.endswith("epsilon") and isinstance(small, float) and not 0 <= small < math.inf:
            yield f"{key} is {small}"


def _of_some_architectures(header: GgufHeader) -> Iterator[str]:
    architecture = header.architecture
    pooling = header.of_architecture("pooling_type")
    if pooling is not None and not 0 <= pooling <= 4:
        yield f"{architecture}.pooling_type is {pooling}"
    inner = header.of_architecture("ssm.inner_size")
    if architecture in DOUBLE_INNER and inner != 2 * (header.embedding_length or 0):
        yield f"{architecture}.ssm.inner_size is {inner}, not twice the embedding length"
    if architecture in EXPERTS_ONLY and not header.of_architecture("expert_count"):
        yield f"{architecture}.expert_count is missing"
    sections = header.per_layer("rope.dimension_sections")
    if architecture in SECTIONED and not any(sections[:3]):
        yield f"{architecture}.rope.dimension_sections are all zero"
    if any(not 0 <= section <= MAX_WIDTH for section in sections):
        yield f"{architecture}.rope.dimension_sections are {sections}"


def _attention(header: GgufHeader) -> Iterator[str]:
    heads, kv_heads = header.head_counts, header.kv_head_counts
    for suffix, counts in (("head_count", heads), ("head_count_kv", kv_heads)):
        if any(not 0 <= count <= MAX_WIDTH for count in counts):
            yield f"{header.architecture}.attention.{suffix} is {counts}"
    if not any(heads) and header.architecture not in RECURRENT:
        yield f"{header.architecture}.attention.head_count is {heads[0] if heads else 'missing'}"
    num_layers = max(len(heads), len(kv_heads))
    for layer in range(num_layers):
        count, kv_count = (counts[min(layer, len(counts) - 1)] if counts else 0 for counts in (heads, kv_heads))
        if kv_count and count % kv_count:
            yield f"{count} attention heads cannot share {kv_count} heads of keys and values"


def _heads(header: GgufHeader) -> Iterator[str]:
    """Find widths of attention heads that do not fit together."""
    width, heads = header.embedding_length or 0, max(header.head_counts, default=0)
    architecture = header.architecture
    if not heads or f"{architecture}.attention.key_length_swa" in header.metadata:
        return
    keys = header.of_architecture("attention.key_length")
    values = header.of_architecture("attention.value_length")
    if keys is None and width % heads:
        yield f"{architecture}.embedding_length {width} cannot be divided among {heads} attention heads"
    keys = width // heads if keys is None else keys
    values = width // heads if values is None else values
    rotated = header.of_architecture("rope.dimension_count")
    rotated = keys if rotated is None else rotated
    if not (0 < keys <= MAX_WIDTH and 0 < values <= MAX_WIDTH and 0 <= rotated <= keys and rotated % 2 == 0):
        yield f"its attention heads have {keys} keys, {values} values and {rotated} rotated dimensions"
    elif architecture in ROTATES_WHOLE_HEADS and not keys == values == rotated:
        yield f"its attention heads have {keys} keys, {values} values and {rotated} rotated dimensions, not the same"
    elif sum(header.per_layer("rope.dimension_sections")) > keys:
        yield f"{architecture}.rope.dimension_sections are more than its {keys} keys"
    if architecture in HEADS_SPAN_WIDTH and not heads * keys == heads * values == width:
        yield f"{heads} attention heads of {keys} keys and {values} values do not make {width}, its embedding length"


def _experts(header: GgufHeader) -> Iterator[str]:
    count = header.of_architecture("expert_count") or 0
    used = max(header.per_layer("expert_used_count"), default=0)
    if not 0 <= count <= MAX_EXPERTS or not (1 <= used <= count or used == count == 0):
        yield f"it uses {used} of {count} experts"
    gating = header.of_architecture("expert_gating_func") or 0
    if not 0 <= gating <= GATING_FUNCTIONS or (header.architecture in CHOOSES_GATING and not gating):
        yield f"{header.architecture}.expert_gating_func is {gating}"
    groups = header.of_architecture("expert_group_count") or 0
    groups_used = header.of_architecture("expert_group_used_count") or 0
    if groups and not groups < count:
        yield f"{count} experts are in {groups} groups"
    if groups > 1 and (count % groups or not 0 < groups_used < groups):
        yield f"{groups_used} of {groups} groups of {count} experts are used"


def _tensors(header: GgufHeader) -> Iterator[str]:
    """Find tensors in formats that their operations lack: they end in an assertion or a null function pointer."""
    for tensor in header.tensors:
        parts = tensor.name.split(".")
        if not TABLES.isdisjoint(parts):
            continue
        added = len(tensor.shape) == 1 or parts[-1] == "bias" or any(ADDED.fullmatch(part) for part in parts)
        if added and tensor.format.name != "F32":
            yield f"tensor {tensor.name!r} is {tensor.format.name} and not F32"
        if tensor.format.name in NOT_WEIGHTS:
            yield f"tensor {tensor.name!r} is {tensor.format.name}, which no matrix of weights is"


def _vocabulary(header: GgufHeader) -> Iterator[str]:
    tokenizer, tokens = header.text("tokenizer.ggml.model"), header.array(TOKENS)
    if tokenizer is None or tokens is None or tokens.element_type != STRING or tokenizer in NO_TOKENIZERS:
        yield "it has no vocabulary"
        return
    ids: dict[bytes, int] = {}
    for index, token in enumerate(cast("tuple[bytes, ...]", tokens.values)):
        text = token.partition(b"\0")[0] or b"[EMPTY_%d]" % index
        if text in ids:
            yield f"token {index}, {text[:32]!r}, is in its vocabulary twice"
        ids[text] = index
    yield from _special_tokens(header, tokenizer, len(ids))
    if missing := [byte for byte in _bytes_of_text() if not _spelled(byte, tokenizer, ids)]:
        yield f"its vocabulary cannot spell the byte {missing[0]:#04x}"
    types = header.array(TOKEN_TYPES)
    if tokenizer == "bert" and types and BYTE in (types.values or ()):
        yield "its vocabulary has tokens for bytes, which its tokenizer does not"
    if header.text("tokenizer.ggml.pre") == "whitespace" and tokenizer != "whitespace":
        yield f"the tokenizer {tokenizer!r} cannot split text at spaces"


def _special_tokens(header: GgufHeader, tokenizer: str, size: int) -> Iterator[str]:
    """Find special tokens that tokenizing asserts; an id outside the vocabulary counts as none given."""
    for name, default in SPECIAL_TOKENS.get(tokenizer, SPECIAL_TOKENS["gpt2"]).items():
        kind = {"eos": "eos", "bos": "bos", "sep": "seperator"}[name]  # as llama.cpp spells it
        given = header.integer(f"tokenizer.ggml.{kind}_token_id")
        found = any(number is not None and 0 <= number < size for number in (given, default))
        added = header.metadata.get(f"tokenizer.ggml.add_{name}_token", name in ADDS.get(tokenizer, ()))
        if (added or name in ALWAYS.get(tokenizer, ())) and not found:
            yield f"it adds a {name.upper()} token to prompts and has none"


def _bytes_of_text() -> Iterator[int]:
    """All bytes that UTF-8 uses."""
    return chain(range(0x80), range(0x80, 0xC0), range(0xC2, 0xF5))


def _spelled(byte: int, tokenizer: str, ids: Mapping[bytes, int]) -> bool:
    """Say whether there is a token for a byte, where llama.cpp needs one: it throws or loops without end otherwise."""
    if tokenizer == "llama":
        return b"<0x%02X>" % byte in ids or (0 < byte < 0x80 and bytes([byte]) in ids)
    if tokenizer == "rwkv":
        spellings = (b"\\x%02x" % byte, bytes([byte]), b"\\" + bytes([byte]), ESCAPES.get(byte, b"\\"))
        return any(spelling in ids for spelling in spellings if spelling != b"\\")
    return True


def split_parts(path: Path) -> tuple[Path, ...]:
    """Return where the other parts of a split model must be, by the name of its first part; none for other names."""
    named = SPLIT_NAME.fullmatch(path.name)
    if named is None or int(named["number"]) != 1:
        return ()
    count = int(named["count"])
    return tuple(_part(path, named["stem"], number, count) for number in range(2, count + 1))


def _part(path: Path, stem: str, number: int, count: int) -> Path:
    return path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf")


def _check_parts(header: GgufHeader) -> None:
    if header.split_count == 1:
        return
    path, count = header.path, header.split_count
    named = SPLIT_NAME.fullmatch(path.name)
    if named is None or int(named["count"]) != count:
        raise ModelLoadingFailed(
            f"{path} is a part of a model in {count} files; keep the names they came with (….-00001-of-{count:05}.gguf)"
        )
    first = _part(path, named["stem"], 1, count)
    if int(named["number"]) != 1 or header.integer("split.no"):
        raise ModelLoadingFailed(f"{path} is part {named['number']} of a split model; load its first part, {first}")
    parts = split_parts(path)
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelLoadingFailed(f"{path} is incomplete: {missing[0]}{others} of its {count} files is missing")
    for number, part in enumerate(parts, start=1):
        other = read_gguf_header(part)
        if other.integer("split.no") != number or other.value_types["split.no"] != U16:
            raise ModelLoadingFailed(
                f"{part} is corrupt: it does not say that it is part {number + 1}; download it again"
            )
