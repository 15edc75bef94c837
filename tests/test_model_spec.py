from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import InvalidModelSpec
from server.core.model_spec import BackendName, ModelSpec, equivalent_names, is_hugging_face, parse_model_spec


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


def test_an_address_is_told_how_to_write_it() -> None:
    with pytest.raises(InvalidModelSpec, match=r"hf\.co/owner/repository"):
        parse_model_spec("https://huggingface.co/owner/repo")


@given(st.text(alphabet="aZ0./:@-_ +\né", max_size=20))
def test_what_parses_can_be_written_and_parsed_again(text: str) -> None:
    try:
        spec = parse_model_spec(text)
    except InvalidModelSpec:
        return
    assert parse_model_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("huggingface.co/Owner/Repo:Q8_0", ModelSpec("huggingface.co/Owner/Repo", "Q8_0")),
        ("hf.co/o/r@ollama", ModelSpec("hf.co/o/r", None, BackendName.OLLAMA)),
        ("llamacpp/hf.co/o/r:IQ4_XS", ModelSpec("hf.co/o/r", "IQ4_XS", BackendName.LLAMACPP)),
        ("HF.co/o/r", ModelSpec("HF.co/o/r")),
        ("team/model:v1.2-beta+3", ModelSpec("team/model", "v1.2-beta+3")),
        ("registry.example:5000/team/model:8b", ModelSpec("registry.example:5000/team/model", "8b")),
        ("local/localhost:5000/team/model@ollama", ModelSpec("localhost:5000/team/model", None, BackendName.OLLAMA)),
        ("local/ollama/x", ModelSpec("ollama/x")),
        ("ollama/local/x", ModelSpec("local/x", None, BackendName.OLLAMA)),
        ("_x:_y", ModelSpec("_x", "_y")),
        ("a:5000", ModelSpec("a", "5000")),
    ],
)
def test_parses_names_of_repositories(text: str, spec: ModelSpec) -> None:
    assert parse_model_spec(text) == spec


@pytest.mark.parametrize(
    "text",
    [
        "hf.co/owner",
        "hf.co/owner/",
        "hf.co//repo",
        "hf.co/owner/repo/file.gguf",
        "hf.co/owner/repo:",
        "hf.co/../repo",
        "hf.co/owner/../../etc/passwd",
        "a/../b",
        "a/./b",
        "a/.b",
        "a//b",
        "a/",
        "..",
        ".",
        "~/model",
        "/etc/passwd",
        "C:\\model",
        "a\\b",
        "a/..%2fb",
        "%2e%2e/a",
        "file:///a",
        "demo:../../x",
        "demo:a/b",
        "demo:.x",
        "demo:8b:8b",
        "host:port/a",
        "host:123456/a",
        "a\tb",
        "a\rb",
        "\x1b[31ma",
        "a\u202eb",
        "a\u200bb",
        "\ud800",
        " demo",
        "demo@ollama@llamacpp",
        "demo@OLLAMA",
        "@ollama",
        "llamacpp/demo@ollama",
        "?",
        "a?b",
        "a#b",
        "x" * 10_000,
        "/" * 200,
        "@" * 200,
        ":" * 200,
        "a/" * 100,
    ],
)
def test_refuses_tricks(text: str) -> None:
    with pytest.raises(InvalidModelSpec) as caught:
        parse_model_spec(text)
    assert len(caught.value.message) < 1000
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("demo", ("demo", "demo:latest")),
        ("demo:latest", ("demo:latest", "demo")),
        ("demo:8b", ("demo:8b",)),
        ("demo:Q4_K_M", ("demo:Q4_K_M",)),
        ("hf.co/o/r", ("hf.co/o/r", "hf.co/o/r:latest", "hf.co/o/r:Q4_K_M")),
        ("hf.co/o/r:Q4_K_M", ("hf.co/o/r:Q4_K_M", "hf.co/o/r")),
        ("hf.co/o/r:Q8_0", ("hf.co/o/r:Q8_0",)),
        ("registry:5000/m", ("registry:5000/m", "registry:5000/m:latest")),
        ("registry:5000/m:latest", ("registry:5000/m:latest", "registry:5000/m")),
    ],
)
def test_equivalent_names(model: str, names: tuple[str, ...]) -> None:
    assert equivalent_names(model) == names


@given(st.from_regex(r"(hf\.co/[ab]/)?[ab]{1,2}(:(latest|Q4_K_M|8b))?", fullmatch=True))
def test_equivalence_is_mutual(model: str) -> None:
    for other in equivalent_names(model):
        assert model in equivalent_names(other)


@pytest.mark.parametrize(
    ("name", "is_one"), [("hf.co/a/b", True), ("HuggingFace.co/a/b", True), ("hf.community/a/b", False)]
)
def test_repositories_of_hugging_face(name: str, is_one: bool) -> None:  # noqa: FBT001
    assert is_hugging_face(name) is is_one
