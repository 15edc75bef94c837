from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.core.errors import InvalidRequest
from server.llama.model import LlamaModel, LoadOptions


def text_of(model: LlamaModel, tokens: list[int]) -> str:
    return b"".join(model.vocabulary.piece(token) for token in tokens).decode()


@pytest.mark.parametrize("text", ["", " ", "hello world", "  two\n\nlines\t", "naïve café", "日本語 🦙", "a\x00b"])
def test_tokens_spell_the_text(model: LlamaModel, text: str) -> None:
    assert text_of(model, model.vocabulary.tokenize([text]).tolist()) == text


def test_control_texts_become_control_tokens_only_inside_of_a_segment(model: LlamaModel) -> None:
    whole = model.vocabulary.tokenize(["a<|im_end|>b"]).tolist()
    cut = model.vocabulary.tokenize(["a<", "|im_end|>b"]).tolist()

    assert any(model.vocabulary.is_end(token) for token in whole)
    assert text_of(model, whole) == "ab"
    assert not any(model.vocabulary.is_end(token) for token in cut)
    assert text_of(model, cut) == "a<|im_end|>b"


def test_control_texts_and_end_tokens_are_known(model: LlamaModel) -> None:
    assert {"<|im_start|>", "<|im_end|>"} <= set(model.vocabulary.control_texts)
    assert model.vocabulary.end_tokens
    assert all(model.vocabulary.is_end(token) for token in model.vocabulary.end_tokens)
    assert model.vocabulary.eos_text == "<|im_end|>"


def test_long_texts_are_tokenized_whole(model: LlamaModel) -> None:
    text = "word " * 20_000
    assert text_of(model, model.vocabulary.tokenize([text]).tolist()) == text


@pytest.fixture(scope="session")
def recursing_model(dense_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """A model whose text is cut into words by ``std::regex``."""
    path = tmp_path_factory.mktemp("shapes") / "recursing.gguf"
    path.write_bytes(dense_path.read_bytes().replace(b"qwen2", b"youtu", 1))
    loaded = LlamaModel.load(path, LoadOptions())
    yield loaded
    loaded.close()


@pytest.mark.parametrize("character", ["a", "!", " ", "\n", "é"])
def test_endless_words_do_not_overflow_the_stack(recursing_model: LlamaModel, character: str) -> None:
    text = character * 100_000
    assert text_of(recursing_model, recursing_model.vocabulary.tokenize([text]).tolist()) == text


def test_words_too_long_for_any_stack_are_refused(recursing_model: LlamaModel) -> None:
    with pytest.raises(InvalidRequest, match="Break the line"):
        recursing_model.vocabulary.tokenize(["a" * 600_000])


@pytest.mark.parametrize("text", ["a" * 5000, "é" * 5000, " " * 5000, "hello world\n" * 500, "<|im_start|>" * 500])
def test_the_least_number_of_tokens_is_never_more_than_there_are(model: LlamaModel, text: str) -> None:
    vocabulary = model.vocabulary
    num_tokens = len(vocabulary.tokenize([text]))
    assert vocabulary.least_num_tokens([text], enough=1) <= num_tokens


def test_a_hopelessly_long_text_is_known_without_tokenizing(model: LlamaModel) -> None:
    assert model.vocabulary.least_num_tokens(["a" * 100_000], enough=2048) >= 2048
    assert model.vocabulary.least_num_tokens(["a" * 100], enough=2048) == 0
