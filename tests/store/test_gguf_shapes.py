"""The random-weight models that other tests and the benchmarks stand on: llama.cpp runs them like real ones."""

from collections.abc import Callable, Iterator
from ctypes import create_string_buffer
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from gguf import GGUFReader, dequantize
from gguf_shapes import (
    END_OF_TEXT,
    TURN_END,
    LlamaShape,
    byte_pair_vocabulary,
    write_embedding,
    write_hybrid,
    write_llama,
    write_recurrent,
    write_sliding_window,
)
from numpy.typing import NDArray

llama_cpp = pytest.importorskip("llama_cpp")
TEXT = "hello there, wörld 😀 <|im_start|>user\n"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    ignore = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(ignore, None)
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), None)


class Running:
    """A model and a context of one sequence."""

    def __init__(self, path: Path, *, embeddings: bool = False) -> None:
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        assert self.model, "llama.cpp refuses the file"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads, params.embeddings = 256, 256, 1, embeddings
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def tokens(self, text: str) -> list[int]:
        buffer, data = (llama_cpp.llama_token * 200)(), text.encode()
        count = llama_cpp.llama_tokenize(self.vocabulary, data, len(data), buffer, len(buffer), True, True)  # noqa: FBT003
        return list(buffer[:count])

    def text(self, tokens: list[int]) -> str:
        buffer, pieces = create_string_buffer(64), b""
        for token in tokens:
            count = llama_cpp.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, True)  # noqa: FBT003
            pieces += buffer.raw[:count]
        return pieces.decode()

    def decode(self, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        assert llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0

    def logits(self) -> NDArray[np.float32]:
        pointer = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, (self.size,)).copy()


def q(kind: str) -> LlamaShape:
    return LlamaShape(width=256, hidden=512, weights=kind, tied=False)


GENERATING: dict[str, Callable[[Path], Any]] = {
    "llama": write_llama,
    "F16": lambda path: write_llama(path, q("F16")),
    "Q8_0": lambda path: write_llama(path, q("Q8_0")),
    "Q4_K": lambda path: write_llama(path, q("Q4_K")),
    "experts": lambda path: write_llama(path, LlamaShape(experts=4)),
    "sliding window": write_sliding_window,
    "recurrent": write_recurrent,
    "hybrid": write_hybrid,
}


@pytest.mark.parametrize("kind", GENERATING)
def test_generates_with_sane_logits(tmp_path: Path, kind: str) -> None:
    GENERATING[kind](tmp_path / "model.gguf")
    with Running(tmp_path / "model.gguf") as model:
        model.decode(model.tokens(TEXT))
        for _ in range(50):  # past the sliding window
            logits = model.logits()
            assert np.isfinite(logits).all()
            assert 0.3 < logits.std() < 3
            model.decode([int(logits.argmax())])


def test_embeds(tmp_path: Path) -> None:
    write_embedding(tmp_path / "model.gguf")
    with Running(tmp_path / "model.gguf", embeddings=True) as model:
        tokens = model.tokens("hello there, world")
        assert (tokens[0], tokens[-1]) == (2, 3)
        assert 1 not in tokens, "no unknown pieces"
        model.decode(tokens)
        vector = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(model.context, 0), (64,))
        assert np.isfinite(vector).all()
        assert vector.any()


@pytest.mark.parametrize("size", [259, 512, 150_000])
def test_text_survives_the_vocabulary(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.gguf"
    vocabulary = write_llama(path, LlamaShape(layers=1, width=8, heads=1, kv_heads=1, hidden=8, vocabulary=size))
    with Running(path) as model:
        tokens = model.tokens(TEXT)
        assert model.text(tokens) == TEXT
        assert model.size == size
        assert llama_cpp.llama_vocab_eos(model.vocabulary) == vocabulary.turn_end == size - 1
        assert model.tokens(TURN_END) == [vocabulary.turn_end]
        assert model.tokens(END_OF_TEXT) == [vocabulary.end_of_text]
        assert llama_cpp.llama_vocab_is_eog(model.vocabulary, vocabulary.turn_end)
        if size > 100_000:
            assert len(tokens) < 25, "words are merged"


def test_the_same_seed_writes_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_llama(tmp_path / name, LlamaShape(seed=seed))
    contents = [(tmp_path / name).read_bytes() for name in "abc"]

    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K"])
def test_quantized_weights_have_the_scale_of_the_others(tmp_path: Path, kind: str) -> None:
    write_llama(tmp_path / "model.gguf", q(kind))
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    matrix = tensors["blk.0.ffn_down.weight"]
    weights = dequantize(matrix.data, matrix.tensor_type)

    assert weights.shape == (256, 512)
    assert abs(float(weights.mean())) < 0.01
    assert float(weights.std()) == pytest.approx(512**-0.5, rel=0.05)


def test_a_vocabulary_has_its_limits() -> None:
    with pytest.raises(ValueError, match="a vocabulary of 500000 tokens cannot be made"):
        byte_pair_vocabulary(500_000)


def test_blocks_must_fit() -> None:
    with pytest.raises(ValueError, match="Q4_K needs a multiple of 256 inputs, not 64"):
        write_llama(Path("/dev/null"), LlamaShape(weights="Q4_K"))
