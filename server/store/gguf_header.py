"""The header of a GGUF file: what a model says about itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.store.ggml_types import TensorFormat

GgufScalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array in the metadata; ``values`` are kept for short numeric arrays and for those asked for."""

    element_type: int
    length: int
    values: tuple[int | float | bool | bytes, ...] | None


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies and what it holds; ``offset`` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    format: TensorFormat
    offset: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """The header of one GGUF file."""

    path: Path
    version: int
    file_size: int
    alignment: int
    data_offset: int
    metadata: Mapping[str, GgufScalar | GgufArray]
    value_types: Mapping[str, int]
    tensors: tuple[GgufTensor, ...]

    def integer(self, key: str) -> int | None:
        """Return an integer, or ``None`` if the file has no such key or another type under it."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def text(self, key: str) -> str | None:
        """Return a string, or ``None`` if the file has no such key or another type under it."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def array(self, key: str) -> GgufArray | None:
        """Return an array, or ``None`` if the file has no such key or another type under it."""
        value = self.metadata.get(key)
        return value if isinstance(value, GgufArray) else None

    def of_architecture(self, suffix: str) -> int | None:
        """Return the integer hyperparameter ``<architecture>.<suffix>``."""
        return self.integer(f"{self.architecture}.{suffix}")

    def per_layer(self, suffix: str) -> tuple[int, ...]:
        """Return a hyperparameter that is one integer or one for each layer; empty if it is missing."""
        value = self.metadata.get(f"{self.architecture}.{suffix}")
        if isinstance(value, GgufArray):
            return tuple(item for item in value.values or () if isinstance(item, int))
        return () if value is None or isinstance(value, str | float) else (int(value),)

    @property
    def architecture(self) -> str:
        """Name of the architecture (``llama``, ``qwen3``); empty if the file does not say."""
        return self.text("general.architecture") or ""

    @property
    def name(self) -> str | None:
        """What its maker calls the model."""
        return self.text("general.name")

    @property
    def file_type(self) -> int | None:
        """llama.cpp's number for the quantization of most tensors."""
        return self.integer("general.file_type")

    @property
    def context_length(self) -> int | None:
        """Number of tokens that the model was trained for."""
        return self.of_architecture("context_length")

    @property
    def block_count(self) -> int | None:
        """Number of layers."""
        return self.of_architecture("block_count")

    @property
    def embedding_length(self) -> int | None:
        """Width of the hidden state."""
        return self.of_architecture("embedding_length")

    @property
    def head_counts(self) -> tuple[int, ...]:
        """Attention heads: one number, or one for each layer."""
        return self.per_layer("attention.head_count")

    @property
    def kv_head_counts(self) -> tuple[int, ...]:
        """Heads of keys and values: one number, or one for each layer; as many as attention heads if not given."""
        return self.per_layer("attention.head_count_kv") or self.head_counts

    @property
    def vocabulary_size(self) -> int | None:
        """Number of tokens."""
        tokens = self.array("tokenizer.ggml.tokens")
        return tokens.length if tokens else self.of_architecture("vocab_size")

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template."""
        return self.text("tokenizer.chat_template")

    @property
    def split_count(self) -> int:
        """Number of files that the model is split into; 1 for a model in one file."""
        return self.integer("split.count") or 1

    @property
    def position_limit(self) -> int | None:
        """Number of positions that have a learned embedding; ``None`` if positions are computed, without limit.

        llama.cpp does not check it: a longer prompt ends in an assertion.
        """
        for tensor in self.tensors:
            if tensor.name == "position_embd.weight" and len(tensor.shape) == 2:
                return tensor.shape[1]
        return None

    @property
    def tensor_bytes(self) -> int:
        """Size of the tensors in this file."""
        return sum(tensor.size for tensor in self.tensors)
