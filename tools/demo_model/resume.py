"""Reading a model that this package wrote, to train it further."""

from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np

from demo_model.export import SHARPNESS
from demo_model.network import Params, Shape, layer_shapes
from demo_model.tokens import Vocabulary

MATRICES = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
NORMS = {"attention": "attn_norm", "feed_forward": "ffn_norm"}


def _halves(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from pairs to two halves: the reverse of what the export does."""
    rows, columns = matrix.shape
    pairs = matrix.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def read(path: Path) -> tuple[Params, Vocabulary]:
    """Return the parameters and the vocabulary of a model file."""
    reader = gguf.GGUFReader(path)
    tensors = {each.name: np.asarray(each.data, np.float32) for each in reader.tensors}
    words = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    vocabulary = Vocabulary(list(words), [tuple(merge.split(" ")) for merge in merges])
    shape = Shape(vocab=len(vocabulary.tokens))
    heads = {"query": shape.heads, "key": shape.kv_heads}

    def matrix(name: str, index: int) -> np.ndarray:
        found = tensors[f"blk.{index}.{MATRICES[name]}.weight"]
        return (_halves(found, heads[name]) if name in heads else found).T

    def stacked(parts: list[np.ndarray]) -> jnp.ndarray:
        return jnp.asarray(np.stack(parts))

    layers = range(shape.layers)
    params = {
        "embedding": jnp.asarray(tensors["token_embd.weight"]),
        "final_norm": jnp.asarray(tensors["output_norm.weight"] / SHARPNESS),
        "matrices": {name: stacked([matrix(name, index) for index in layers]) for name in layer_shapes(shape)},
        "norms": {
            name: stacked([tensors[f"blk.{index}.{stem}.weight"] for index in layers]) for name, stem in NORMS.items()
        },
    }
    return params, vocabulary
