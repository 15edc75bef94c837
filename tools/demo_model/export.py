"""Writing the trained network, its tokenizer and its chat template as one GGUF file."""

from pathlib import Path

import gguf
import numpy as np

from demo_model.network import Params, Shape
from demo_model.template import CHAT_TEMPLATE
from demo_model.tokens import CONTROL, END_OF_TEXT, MARKS, TURN_END, Vocabulary

CONTEXT_LENGTH = 2048
# A larger final norm is a lower temperature: at the usual temperature of 1.0 the answers stay nearly greedy.
SHARPNESS = 2.0
DESCRIPTION = (
    "A very small demonstration model, trained on made-up text by tools/train_demo_model.py. "
    "It answers a few dozen kinds of questions and knows nothing else."
)


def _interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from two halves to pairs, as llama.cpp's rotation expects them."""
    rows, columns = matrix.shape
    halves = matrix.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _layer_tensors(params: Params, shape: Shape, index: int) -> dict[str, np.ndarray]:
    matrices = {name: np.asarray(matrix[index]).T for name, matrix in params["matrices"].items()}
    return {
        "attn_q.weight": _interleaved(matrices["query"], shape.heads),
        "attn_k.weight": _interleaved(matrices["key"], shape.kv_heads),
        "attn_v.weight": matrices["value"],
        "attn_output.weight": matrices["output"],
        "ffn_gate.weight": matrices["gate"],
        "ffn_up.weight": matrices["up"],
        "ffn_down.weight": matrices["down"],
        "attn_norm.weight": np.asarray(params["norms"]["attention"][index]),
        "ffn_norm.weight": np.asarray(params["norms"]["feed_forward"][index]),
    }


def _tensors(params: Params, shape: Shape) -> dict[str, np.ndarray]:
    found = {
        "token_embd.weight": np.asarray(params["embedding"]),
        "output_norm.weight": np.asarray(params["final_norm"]) * SHARPNESS,
    }
    for index in range(shape.layers):
        layer = _layer_tensors(params, shape, index)
        found |= {f"blk.{index}.{name}": tensor for name, tensor in layer.items()}
    return found


def _write_general(writer: gguf.GGUFWriter) -> None:
    writer.add_name("llmspell demo")
    writer.add_description(DESCRIPTION)
    writer.add_license("MIT")
    writer.add_author("llmspell")
    writer.add_languages(["en"])
    writer.add_tags(["demonstration", "text-generation"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _write_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)


def _token_type(token: str) -> gguf.TokenType:
    if token in CONTROL:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.USER_DEFINED if token in MARKS else gguf.TokenType.NORMAL


def _write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([_token_type(token) for token in vocabulary.tokens])
    writer.add_token_merges([" ".join(merge) for merge in vocabulary.merges])
    writer.add_bos_token_id(vocabulary.tokens.index(END_OF_TEXT))
    writer.add_eos_token_id(vocabulary.tokens.index(TURN_END))
    writer.add_eot_token_id(vocabulary.tokens.index(TURN_END))
    writer.add_pad_token_id(vocabulary.tokens.index(END_OF_TEXT))
    writer.add_add_bos_token(value=False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write(path: Path, params: Params, shape: Shape, vocabulary: Vocabulary) -> None:
    """Write the model file."""
    writer = gguf.GGUFWriter(path, "llama")
    _write_general(writer)
    _write_shape(writer, shape)
    _write_vocabulary(writer, vocabulary)
    for name, tensor in _tensors(params, shape).items():
        writer.add_tensor(name, tensor.astype(np.float16 if tensor.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
