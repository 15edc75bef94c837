"""Random-weight GGUF files of any size, for tests and benchmarks: they run like real models and say nothing."""

from gguf_shapes.reciting import recited_tokens, write_reciting
from gguf_shapes.shapes import (
    EIGHT_BILLION,
    QUARTER_BILLION,
    SEVEN_BILLION,
    TINY,
    LlamaShape,
    write_embedding,
    write_hybrid,
    write_llama,
    write_recurrent,
    write_sliding_window,
)
from gguf_shapes.vocabulary import CHATML, END_OF_TEXT, TURN_END, TURN_START, Vocabulary, byte_pair_vocabulary
from gguf_shapes.weights import Weights

__all__ = [
    "CHATML",
    "EIGHT_BILLION",
    "END_OF_TEXT",
    "QUARTER_BILLION",
    "SEVEN_BILLION",
    "TINY",
    "TURN_END",
    "TURN_START",
    "LlamaShape",
    "Vocabulary",
    "Weights",
    "byte_pair_vocabulary",
    "recited_tokens",
    "write_embedding",
    "write_hybrid",
    "write_llama",
    "write_reciting",
    "write_recurrent",
    "write_sliding_window",
]
