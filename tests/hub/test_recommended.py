from __future__ import annotations

from pathlib import Path

import pytest

from server.core.errors import ConfigurationError
from server.core.model_spec import parse_model_spec
from server.store.recommended import Capability, RecommendedModels, load_recommended, read_recommended

MODEL = """
[[models]]
name = "mine:7b"
title = "Mine"
parameters = "7B"
repository = "me/mine-GGUF"
size_bytes = 4_000_000_000
context_length = 4096
licence = "MIT"
"""


def test_the_list_spans_all_sizes_and_has_the_promised_models() -> None:
    models = load_recommended()

    sizes = [model.size_bytes for model in models]
    assert sizes == sorted(sizes)
    assert sizes[0] < 1e9
    assert [*dict.fromkeys(model.size_class for model in models)] == [
        "under 1 GB",
        "1 to 3 GB",
        "3 to 6 GB",
        "6 to 12 GB",
        "12 to 25 GB",
        "over 25 GB",
    ]
    promised = {"phi3:3.8b": 2.4, "mistral:7b": 4.1, "llama3.1:8b": 4.7, "gemma2:9b": 5.4}
    for name, gigabytes in promised.items():
        model = models.find(parse_model_spec(name))
        assert model is not None
        assert model.quantization == "Q4_K_M"
        # some count gigabytes by 1024
        assert gigabytes * 0.97 < model.size_bytes / 1e9 < gigabytes * 1.08


def test_names_work_on_both_backends() -> None:
    models = load_recommended()

    for model in models:
        for spec in (model.ollama_spec, model.llamacpp_spec, f"local/{model.name}", *model.aliases):
            assert models.find(parse_model_spec(spec)) is model


def test_aliases_and_repositories_mean_one_model_each() -> None:
    models = list(load_recommended())

    names = [name.lower() for model in models for name in (model.name, *model.aliases)]
    assert len(names) == len(set(names))
    assert len({model.repository.lower() for model in models}) == len(models)


def test_a_repository_leads_back_to_its_model() -> None:
    models = load_recommended()

    found = models.of_repository("BARTOWSKI/gemma-2-9b-it-gguf")

    assert found is not None
    assert found.name == "gemma2:9b"
    assert models.of_repository("some/other") is None


def test_a_file_of_the_users_adds_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(MODEL + MODEL.replace("mine:7b", "mistral:7b").replace("4_000_000_000", "5"))

    models = load_recommended(path)

    assert len(models) == len(load_recommended()) + 1
    assert next(model.name for model in models) == "mistral:7b"
    replaced = models.find(parse_model_spec("mistral:7b"))
    assert replaced is not None
    assert replaced.repository == "me/mine-GGUF"


def test_all_that_a_model_may_say() -> None:
    (model,) = read_recommended(
        MODEL + 'aliases = ["mine"]\nquantization = "Q8_0"\ncapabilities = ["tools", "vision"]\nnote = "my own"\n',
        "file",
    )

    assert model.aliases == ("mine",)
    assert (model.quantization, model.note) == ("Q8_0", "my own")
    assert model.capabilities == (Capability.TOOLS, Capability.VISION)
    assert RecommendedModels([model]).closest("mime") == ("mine:7b",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = 5", r"write each model as a table \[\[models\]\]"),
        ("models = [5]", r"write each model as a table \[\[models\]\]"),
        ("[models]\nname = 'x'", r"write each model as a table \[\[models\]\]"),
        ("[[model]]\nname = 'x'", r"write each model as a table \[\[models\]\]"),
        ("[[models", "file is not TOML"),
        (MODEL + MODEL, "has the model mine:7b twice"),
        (MODEL + "sise = 5", r"file, model 1 \('mine:7b'\): 'sise' is unknown"),
        (MODEL + 'quantisation = "Q8_0"', "is it 'quantization'"),
        (MODEL.replace("licence", "note"), "lacks licence"),
        ("[[models]]", "file, model 1 lacks name, title"),
        (MODEL.replace("4096", '"4096"'), "context_length must be a whole number above 0, and not '4096'"),
        (MODEL.replace("4096", "-1"), "context_length must be"),
        (MODEL.replace("4096", "true"), "context_length must be"),
        (MODEL.replace('"MIT"', "5"), "licence must be text"),
        (MODEL.replace('"MIT"', '""'), "licence must be text"),
        (MODEL.replace('"MIT"', '"a\\nb"'), "licence must be text on one line"),
        (MODEL.replace("me/mine-GGUF", "mine"), "'mine' is not a repository"),
        (MODEL.replace("mine:7b", "../x"), "is not a model spec"),
        (MODEL.replace("mine:7b", "ollama/x"), "without a backend"),
        (MODEL.replace("mine:7b", "x@ollama"), "without a backend"),
        (MODEL + 'aliases = "mine"', "aliases must be a list"),
        (MODEL + "aliases = [5]", "aliases must be text"),
        (MODEL + 'capabilities = ["magic"]', "'magic' is no capability; there are tools, thinking"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_recommended(text, "file")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_recommended(tmp_path / "missing.toml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_recommended(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load_recommended(tmp_path / "binary")
