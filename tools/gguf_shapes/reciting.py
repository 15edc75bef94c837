"""A model that recites: its answers are one fixed list of words over and over, at the price of a real model.

Random weights never repeat their prompt, and repeating is what speculation from the prompt is for. Here every matrix is
computed, but what the layers add to the residual stream is too small to matter, so that a token's embedding arrives at
the output, whose rows lead from each word to the next, and from the end of the chat template to the first.
"""

from pathlib import Path

import numpy as np

from gguf_shapes.shapes import LlamaShape, _file, _sizes, _vocabulary
from gguf_shapes.vocabulary import SPACE, Vocabulary
from gguf_shapes.weights import Weights

_WHISPER = 1e-3
_NEWLINE = "Ċ"


def recited_tokens(vocabulary: Vocabulary, num_words: int) -> list[int]:
    """Return the words: two letters behind a space, one token each, and text that is tokenized so again."""
    words = [i for i, token in enumerate(vocabulary.tokens) if len(token) == 3 and token[0] == SPACE]
    order = np.random.default_rng(num_words).permutation(len(words))[:num_words]
    return [words[i] for i in order]


def write_reciting(path: Path, shape: LlamaShape, *, num_words: int = 400, newline: str = _NEWLINE) -> Vocabulary:
    """Write a llama model that recites ``num_words`` words after a prompt that ends with ``newline``."""
    with _file(path, "llama", "reciting llama") as writer:
        _sizes(writer, shape)
        writer.add_rope_dimension_count(shape.head_width)
        writer.add_layer_norm_rms_eps(1e-5)
        vocabulary = _vocabulary(writer, shape.vocabulary)
        words = recited_tokens(vocabulary, num_words)
        weights = Weights(writer, shape.weights, shape.seed, shape.layers)
        size = (shape.vocabulary, shape.width)
        embeddings = np.random.default_rng(shape.seed).standard_normal(size, np.float32)
        weights.rows("token_embd.weight", embeddings)
        outputs = np.random.default_rng(shape.seed + 1).standard_normal(size, np.float32)
        outputs[words] = embeddings[[words[-1], *words[:-1]]]
        outputs[words[0]] += embeddings[vocabulary.tokens.index(newline)]
        weights.rows("output.weight", outputs * np.float32(shape.width**-0.5))
        weights.vector("output_norm.weight", shape.width, around=1.0)
        for layer in range(shape.layers):
            _quiet_layer(weights, f"blk.{layer}", shape)
    return vocabulary


def _quiet_layer(weights: Weights, prefix: str, shape: LlamaShape) -> None:
    keys = shape.kv_heads * shape.head_width
    weights.vector(f"{prefix}.attn_norm.weight", shape.width, around=1.0)
    weights.matrix(f"{prefix}.attn_q.weight", shape.width, shape.width)
    weights.matrix(f"{prefix}.attn_k.weight", shape.width, keys)
    weights.matrix(f"{prefix}.attn_v.weight", shape.width, keys)
    weights.matrix(f"{prefix}.attn_output.weight", shape.width, shape.width, scale=_WHISPER)
    weights.vector(f"{prefix}.ffn_norm.weight", shape.width, around=1.0)
    weights.matrix(f"{prefix}.ffn_gate.weight", shape.width, shape.hidden)
    weights.matrix(f"{prefix}.ffn_up.weight", shape.width, shape.hidden)
    weights.matrix(f"{prefix}.ffn_down.weight", shape.hidden, shape.width, scale=_WHISPER)
