from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import InvalidModelSpec
from server.core.model_spec import BackendName, ModelSpec, parse_model_spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("demo", ModelSpec("demo")),
        ("local/demo", ModelSpec("demo")),
        ("local/llama3.1:8b", ModelSpec("llama3.1", "8b")),
        ("phi3:3.8b@ollama", ModelSpec("phi3", "3.8b", BackendName.OLLAMA)),
        ("ollama/phi3:3.8b", ModelSpec("phi3", "3.8b", BackendName.OLLAMA)),
        ("llamacpp/mistral:7b", ModelSpec("mistral", "7b", BackendName.LLAMACPP)),
        ("local/mistral:7b@llama.cpp", ModelSpec("mistral", "7b", BackendName.LLAMACPP)),
        ("llamacpp/mistral@llamacpp", ModelSpec("mistral", None, BackendName.LLAMACPP)),
        ("hf.co/owner/repo-GGUF:Q4_K_M", ModelSpec("hf.co/owner/repo-GGUF", "Q4_K_M")),
        ("local/hf.co/owner/repo", ModelSpec("hf.co/owner/repo")),
    ],
)
def test_parses(text: str, spec: ModelSpec) -> None:
    assert parse_model_spec(text) == spec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "local/",
        "/demo",
        "demo:",
        ":8b",
        "demo@",
        "demo@vllm",
        "ollama/demo@llamacpp",
        "a:b:c",
        "../demo",
        "local/../demo",
        "demo\n",
        "demo\x00",
        "x" * 257,
        "дemo",
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(InvalidModelSpec) as caught:
        parse_model_spec(text)
    assert caught.value.param == "model"


@given(st.text(alphabet="aZ0./:@-_ +\né", max_size=20))
def test_what_parses_can_be_written_and_parsed_again(text: str) -> None:
    try:
        spec = parse_model_spec(text)
    except InvalidModelSpec:
        return
    assert parse_model_spec(str(spec)) == spec
