"""Text to tokens and back, with a model's own token table."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp

Tokens = npt.NDArray[np.int32]

_NO_TOKEN = -1
_PIECE_BUFFER_LEN = 512


class LlamaVocabulary:
    """The vocabulary of a loaded model; valid as long as the model is.

    The token table is read once, so that the engine never calls native code for a token's text.
    """

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 -- llama_vocab pointer
        self._handle = handle
        self.size: int = llama_cpp.llama_vocab_n_tokens(handle)
        self._pieces = _read_pieces(handle, self.size, special=False)
        self.end_tokens: Sequence[int] = tuple(t for t in range(self.size) if llama_cpp.llama_vocab_is_eog(handle, t))
        self._end_tokens = frozenset(self.end_tokens)
        self.longest_piece_len = max((len(piece) for piece in self._pieces), default=1) or 1
        self.control_texts = _control_texts(handle, self.size)
        self.bos_text = self._text_of(llama_cpp.llama_vocab_bos(handle))
        self.eos_text = self._text_of(llama_cpp.llama_vocab_eos(handle))
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(handle))

    def piece(self, token: int) -> bytes:
        """Bytes that the token adds to the text; empty for control tokens."""
        return self._pieces[token]

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        return token in self._end_tokens

    def tokenize(self, segments: Sequence[str]) -> Tokens:
        """Tokenize a rendered prompt.

        A control token is recognised inside of a segment, never across the border of two. A BOS token is put first if
        the model wants one, also when the template has written it already.
        """
        first, *others = segments
        if self.adds_bos and self.bos_text and first.startswith(self.bos_text):
            first = first.removeprefix(self.bos_text)
        parts = [self._tokenize(first, add_special=True), *(self._tokenize(text) for text in others)]
        return np.concatenate(parts)

    def _tokenize(self, text: str, *, add_special: bool = False) -> Tokens:
        data = text.encode("utf-8")
        tokens = np.empty(len(data) + 8, dtype=np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = llama_cpp.llama_tokenize(self._handle, data, len(data), pointer, len(tokens), add_special, True)  # noqa: FBT003
        if count < 0:  # more tokens than bytes: a tokenizer that inserts some of its own
            tokens = np.empty(-count, dtype=np.int32)
            pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            count = llama_cpp.llama_tokenize(self._handle, data, len(data), pointer, len(tokens), add_special, True)  # noqa: FBT003
        return tokens[:count].copy()

    def _text_of(self, token: int) -> str:
        if token == _NO_TOKEN:
            return ""
        return (llama_cpp.llama_vocab_get_text(self._handle, token) or b"").decode("utf-8", "replace")


def _read_pieces(handle: Any, size: int, *, special: bool) -> list[bytes]:  # noqa: ANN401
    buffer = ctypes.create_string_buffer(_PIECE_BUFFER_LEN)
    return [_read_piece(handle, token, buffer, special=special) for token in range(size)]


def _read_piece(handle: Any, token: int, buffer: ctypes.Array[ctypes.c_char], *, special: bool) -> bytes:  # noqa: ANN401
    length = llama_cpp.llama_token_to_piece(handle, token, buffer, len(buffer), 0, special)
    if length < 0:
        buffer = ctypes.create_string_buffer(-length)
        length = llama_cpp.llama_token_to_piece(handle, token, buffer, len(buffer), 0, special)
    return buffer.raw[:length]


def _control_texts(handle: Any, size: int) -> tuple[str, ...]:  # noqa: ANN401
    """Texts that the tokenizer turns into control tokens, such as ``<|im_end|>``."""
    ids = [token for token in range(size) if llama_cpp.llama_vocab_is_control(handle, token)]
    texts = ((llama_cpp.llama_vocab_get_text(handle, token) or b"").decode("utf-8", "replace") for token in ids)
    return tuple(sorted({text for text in texts if len(text) > 1}, key=len, reverse=True))
