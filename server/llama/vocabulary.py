"""Text to tokens and back, with a model's own token table."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp

from server.core.errors import InvalidRequest
from server.llama.deep_stack import DEEP_STACK_BYTES, call_on_deep_stack
from server.llama.library import brief

Tokens = npt.NDArray[np.int32]

_NO_TOKEN = -1
_PIECE_BUFFER_LEN = 512

# Neither drops text, but for whitespace beside control tokens; other tokenizers of llama.cpp normalize or merge.
_FAITHFUL_TYPES = (llama_cpp.LLAMA_VOCAB_TYPE_SPM, llama_cpp.LLAMA_VOCAB_TYPE_BPE)
_BYTES_OF_TEXT = frozenset(bytes([byte]) for byte in chain(range(0xC0), range(0xC2, 0xF5)))
_MOST_BYTES_OF_CHARACTER = 4
_WHITESPACE = b" \t\n\v\f\r"

# For most BPE vocabularies llama.cpp cuts text into words with std::regex, which recurses for every character of a
# word: 300 to 400 bytes with libstdc++. A word of 28,000 characters overflows a usual stack, and the process dies.
_STACK_BYTES_PER_CHARACTER = 512
_SHORT_WORD_LEN = 8192
_LONGEST_WORD_LEN = DEEP_STACK_BYTES // _STACK_BYTES_PER_CHARACTER - _SHORT_WORD_LEN
_LINE, _SPACE = re.compile(r"[^\r\n]+"), re.compile(r"\s\s+")


_is_end = brief("llama_vocab_is_eog", ctypes.c_bool, ctypes.c_void_p, ctypes.c_int32)
_to_piece = brief(
    "llama_token_to_piece",
    ctypes.c_int32,
    *(ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_bool),
)


class LlamaVocabulary:
    """The vocabulary of a loaded model; valid as long as the model is.

    The token table is read once, so that the engine never calls native code for a token's text.
    """

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 -- llama_vocab pointer
        self._handle = handle
        self.size: int = llama_cpp.llama_vocab_n_tokens(handle)
        self._pieces = _read_pieces(handle, self.size)
        self.end_tokens: Sequence[int] = tuple(token for token in range(self.size) if _is_end(handle, token))
        self._end_tokens = frozenset(self.end_tokens)
        self._type: int = llama_cpp.llama_vocab_type(handle)
        # of which some are control tokens, which have a text
        textless = [token for token, piece in enumerate(self._pieces) if not piece]
        self._longest_len = max(map(len, chain(self._pieces, (_text_of(handle, token) for token in textless))))
        self._spells_all = self._type in _FAITHFUL_TYPES and _BYTES_OF_TEXT.issubset(self._pieces)
        self.control_ids: Mapping[str, int] = _control_ids(handle, textless)
        self.control_texts = tuple(sorted((t for t in self.control_ids if len(t) > 1), key=len, reverse=True))
        self.bos_text = _text_of(handle, llama_cpp.llama_vocab_bos(handle)).decode("utf-8", "replace")
        self.eos_text = _text_of(handle, llama_cpp.llama_vocab_eos(handle)).decode("utf-8", "replace")
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(handle))

    def piece(self, token: int) -> bytes:
        """Bytes that the token adds to the text; empty for control tokens."""
        return self._pieces[token]

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        return token in self._end_tokens

    def least_num_tokens(self, segments: Sequence[str], *, enough: int) -> int:
        """Return a number of tokens that ``tokenize`` certainly reaches; 0, at once, if it is below ``enough``."""
        if not self._spells_all or sum(map(len, segments)) * _MOST_BYTES_OF_CHARACTER < enough * self._longest_len:
            return 0
        num_bytes = sum(len(segment.encode().translate(None, _WHITESPACE)) for segment in segments)
        return -(-num_bytes // self._longest_len)

    def tokenize(self, segments: Sequence[str]) -> Tokens:
        """Tokenize a rendered prompt.

        A control token is recognised inside of a segment, never across the border of two. A BOS token is put first if
        the model wants one, also when the template has written it already.

        Raises:
            InvalidRequest: a line of the text is longer than llama.cpp survives.

        """
        first, *others = segments
        if self.adds_bos and self.bos_text and first.startswith(self.bos_text):
            first = first.removeprefix(self.bos_text)
        parts = [self._tokenize_safely(first, add_special=True), *(self._tokenize_safely(text) for text in others)]
        return np.concatenate(parts)

    @property
    def pieces(self) -> Sequence[bytes]:
        """What ``piece`` returns, for all tokens."""
        return self._pieces

    def tokenize_text(self, text: bytes) -> Sequence[int]:
        """Tokenize a piece of a completion, in which nothing is a control token; empty if it cannot be told.

        Some tokenizers put a space before every text: right for a prompt, and wrong in the middle of a completion.
        """
        tokens: list[int] = self._tokenize(text, parse_special=False).tolist()
        return tokens if b"".join(self._pieces[token] for token in tokens) == text else []

    def tokenize_markup(self, text: str) -> Tokens:
        """Tokenize a piece of a completion that may hold control tokens."""
        return self._tokenize(text.encode())

    def _tokenize_safely(self, text: str, *, add_special: bool = False) -> Tokens:
        if self._type != llama_cpp.LLAMA_VOCAB_TYPE_BPE or (word_len := _longest_word_len(text)) <= _SHORT_WORD_LEN:
            return self._tokenize(text.encode(), add_special=add_special)
        if word_len > _LONGEST_WORD_LEN:
            raise InvalidRequest(
                f"The messages have a line, or white space, of more characters than this model's tokenizer takes "
                f"({_LONGEST_WORD_LEN}). Break the line.",
                param="messages",
            )
        return call_on_deep_stack(lambda: self._tokenize(text.encode(), add_special=add_special))

    def _tokenize(self, data: bytes, *, add_special: bool = False, parse_special: bool = True) -> Tokens:
        tokens = np.empty(len(data) + 8, dtype=np.int32)
        count = self._tokenize_into(tokens, data, add_special, parse_special)
        if count < 0:  # more tokens than bytes: a tokenizer that inserts some of its own
            tokens = np.empty(-count, dtype=np.int32)
            count = self._tokenize_into(tokens, data, add_special, parse_special)
        return tokens[:count].copy()

    def _tokenize_into(self, tokens: Tokens, data: bytes, *flags: bool) -> int:
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count: int = llama_cpp.llama_tokenize(self._handle, data, len(data), pointer, len(tokens), *flags)
        return count


def _read_pieces(handle: Any, size: int) -> list[bytes]:  # noqa: ANN401
    buffer = ctypes.create_string_buffer(_PIECE_BUFFER_LEN)
    address, view, pieces = ctypes.addressof(buffer), memoryview(buffer).cast("B"), list[bytes]()
    for token in range(size):
        length = _to_piece(handle, token, address, _PIECE_BUFFER_LEN, 0, False)  # noqa: FBT003
        pieces.append(view[:length].tobytes() if length >= 0 else _read_long_piece(handle, token, -length))
    return pieces


def _read_long_piece(handle: Any, token: int, length: int) -> bytes:  # noqa: ANN401
    buffer = ctypes.create_string_buffer(length)
    _to_piece(handle, token, ctypes.addressof(buffer), length, 0, False)  # noqa: FBT003
    return buffer.raw


def _text_of(handle: Any, token: int) -> bytes:  # noqa: ANN401
    return b"" if token == _NO_TOKEN else llama_cpp.llama_vocab_get_text(handle, token) or b""


def _longest_word_len(text: str) -> int:
    """Bound the length of what a tokenizer may take for one word: characters of one line, then whitespace."""
    if len(text) <= _SHORT_WORD_LEN:
        return len(text)
    return sum(max((len(match[0]) for match in pattern.finditer(text)), default=0) for pattern in (_LINE, _SPACE))


def _control_ids(handle: Any, textless: Iterable[int]) -> Mapping[str, int]:  # noqa: ANN401
    """Find the tokens that the tokenizer makes of texts such as ``<|im_end|>``, and that add no text themselves."""
    ids = [token for token in textless if llama_cpp.llama_vocab_is_control(handle, token)]
    return {_text_of(handle, token).decode("utf-8", "replace"): token for token in ids}
