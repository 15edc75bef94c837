from __future__ import annotations

import pytest

from server.llama.model import LlamaModel


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
