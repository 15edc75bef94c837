from __future__ import annotations

import pytest

from server.core.errors import InvalidRequest, ModelNotFound, PullFailed
from server.core.model_spec import parse_model_spec
from server.store.hub_listing import Checksum, ChecksumKind, Gating, HubFile, HubListing
from server.store.model_names import read_file_name
from server.store.pull_plan import Wanted, find_wanted, in_gigabytes, models_in, plan_pull, quantization_of
from server.store.recommended import load_recommended

RECOMMENDED = load_recommended()


def listing(*names: str) -> HubListing:
    """A repository whose files are each larger than the one before."""
    files = tuple(
        HubFile(name, 1000 + number, Checksum(ChecksumKind.SHA256, f"{number:064x}"))
        for number, name in enumerate(names)
    )
    return HubListing("o/r-GGUF", "0" * 40, Gating.OPEN, is_private=False, files=files)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("mistral-7b-instruct-v0.2.Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("gemma-2-9b-it-IQ4_XS.gguf", "IQ4_XS"),
        ("Qwen3.6-35B-A3B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("gpt-oss-20b-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("BitNet-TQ1_0.gguf", "TQ1_0"),
        ("model-fp16.gguf", "F16"),
        ("model.BF16.gguf", "BF16"),
        ("Q8_0/DeepSeek-R1-Q8_0-00001-of-00015.gguf", "Q8_0"),
        ("BF16/model-00001-of-00002.gguf", "BF16"),
        ("Q4_K_M/other-Q8_0.gguf", "Q8_0"),
        ("mmproj-model-f16.gguf", "F16"),
        ("ggml-model-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("Qwen3-4B.gguf", None),
        ("model-q40.gguf", None),
        ("Q.gguf", None),
    ],
)
def test_quantizations_are_read_from_names(name: str, expected: str | None) -> None:
    assert quantization_of(name) == expected


@pytest.mark.parametrize(
    "quantization",
    [
        *("Q2_K", "Q2_K_L", "Q3_K_XL", "Q4_K_M", "Q4_K_P", "Q5_K_XXL", "Q6_K_P", "Q8_0", "Q4_0_4_4", "Q4", "TQ1_0"),
        *("IQ1_M", "IQ2_XXS", "IQ3_M", "IQ4_NL", "UD-IQ1_S", "UD-Q4_K_XL", "MXFP4_MOE", "NVFP4", "BF16", "F16", "FP32"),
    ],
)
def test_what_is_pulled_under_a_quantization_has_it_in_its_name(quantization: str) -> None:
    name = f"Model-7B-{quantization}.gguf"
    told = read_file_name(name)
    assert told is not None
    assert told.quantization == quantization_of(name) == quantization.replace("FP32", "F32")


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q2_K.gguf"], None, "m-Q4_K_M.gguf"),
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q2_K.gguf"], "latest", "m-Q4_K_M.gguf"),
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q2_K.gguf"], "q8_0", "m-Q8_0.gguf"),
        (["m-Q8_0.gguf", "m-Q5_K_M.gguf", "m-F16.gguf"], None, "m-Q5_K_M.gguf"),
        (["m-UD-Q4_K_M.gguf", "m-Q8_0.gguf"], None, "m-UD-Q4_K_M.gguf"),
        (["m-UD-Q4_K_M.gguf", "m-Q8_0.gguf"], "Q4_K_M", "m-UD-Q4_K_M.gguf"),
        (["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"], "Q4_K_M", "m-Q4_K_M.gguf"),
        (["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"], "ud-q4_k_m", "m-UD-Q4_K_M.gguf"),
        (["model.gguf"], None, "model.gguf"),
        (["m-Q3_K_L.gguf"], None, "m-Q3_K_L.gguf"),
        (["m-Q2_K.gguf", "m-Q5_0.gguf"], None, "m-Q5_0.gguf"),
        (["m-Q8_0.gguf", "m-UD-Q5_K_XL.gguf", "m-Q6_K.gguf"], None, "m-UD-Q5_K_XL.gguf"),
        (["m-Q5_K_S.gguf", "m-Q5_K_M.gguf", "m-Q5_K_L.gguf"], None, "m-Q5_K_M.gguf"),
        (["m-IQ3_XXS.gguf", "m-IQ3_M.gguf", "m-F16.gguf"], None, "m-IQ3_M.gguf"),
        (["m-F16.gguf", "m-BF16.gguf", "m-Q2_K.gguf", "m-F32.gguf"], None, "m-BF16.gguf"),
        (["m-Q4_0_4_4.gguf", "m-Q8_0.gguf"], None, "m-Q8_0.gguf"),
        (["m-Q4_0_8_8.gguf"], None, "m-Q4_0_8_8.gguf"),
        (["m.gguf", "m-Q8_0.gguf"], None, "m-Q8_0.gguf"),
        (["m-Q4_K_M.gguf", "mtp-m-Q4_K_M.gguf", "eagle3-m-Q4_K_M.gguf"], "Q4_K_M", "m-Q4_K_M.gguf"),
        (["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "m-Q8_0.gguf"], "Q8_0", "m-Q8_0.gguf"),
        (["a-Q8_0-00001-of-00001.gguf", "b-Q8_0.gguf"], "a-Q8_0", "a-Q8_0-00001-of-00001.gguf"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "b-q4_k_m.gguf", "b-Q4_K_M.gguf"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "b-Q4_K_M", "b-Q4_K_M.gguf"),
        (["m-imatrix.gguf", "m-Q4_K_M.gguf", "mmproj-F16.gguf"], None, "m-Q4_K_M.gguf"),
    ],
)
def test_a_quantization_is_chosen(names: list[str], wanted: str | None, chosen: str) -> None:
    assert plan_pull(listing(*names), wanted).model.shards[0].path == chosen


def test_what_there_is_not_names_what_there_is() -> None:
    with pytest.raises(ModelNotFound, match=r"has no Q5_0. It has Q8_0 \(0.0 MB\), Q4_K_M .*pull hf.co/o/r-GGUF:"):
        plan_pull(listing("m-Q8_0.gguf", "m-Q4_K_M.gguf"), "Q5_0")


def test_one_of_several_models_must_be_named() -> None:
    with pytest.raises(PullFailed, match=r"several models .* a-Q4_K_M.gguf, b-Q4_K_M.gguf. Name one file"):
        plan_pull(listing("a-Q4_K_M.gguf", "b-Q4_K_M.gguf"))


@pytest.mark.parametrize("names", [[], ["mmproj-F16.gguf"], ["imatrix_unsloth.gguf"]])
def test_a_repository_without_models(names: list[str]) -> None:
    with pytest.raises(ModelNotFound, match="has no GGUF files"):
        plan_pull(listing(*names))


def test_shards_belong_together() -> None:
    names = [f"Q4_K_M/m-Q4_K_M-0000{number}-of-00003.gguf" for number in (3, 1, 2)]

    plan = plan_pull(listing(*names, "m-Q8_0.gguf"))

    assert [file.path for file in plan.model.shards] == sorted(names)
    assert [file.path for file in plan.files] == [names[2], names[0], names[1]]
    assert plan.size == plan.model.size == 3003


def test_models_that_lack_shards_are_not_offered() -> None:
    names = ["m-Q4_K_M-00001-of-00003.gguf", "m-Q4_K_M-00003-of-00003.gguf"]

    assert [model.quantization for model in models_in(listing(*names, "m-Q8_0.gguf"))] == ["Q8_0"]
    with pytest.raises(ModelNotFound, match="lack shards"):
        plan_pull(listing(*names))


@pytest.mark.parametrize(
    ("names", "projector"),
    [
        (["m-Q4_K_M.gguf"], None),
        (["m-Q4_K_M.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], "mmproj-F16.gguf"),
        (["m-Q4_K_M.gguf", "mmproj-F32.gguf", "mmproj-BF16.gguf"], "mmproj-BF16.gguf"),
        (["m-Q4_K_M.gguf", "m-mmproj.gguf"], "m-mmproj.gguf"),
        (["Q4_K_M/m-Q4_K_M.gguf", "mmproj-F16.gguf"], "mmproj-F16.gguf"),
        (["a/m-Q4_K_M.gguf", "mmproj-F16.gguf", "a/mmproj-Q8_0.gguf", "b/mmproj-F16.gguf"], "a/mmproj-Q8_0.gguf"),
        (["a/m-Q4_K_M.gguf", "b/mmproj-F16.gguf"], None),
        (
            ["m-4B-Q4_K_M.gguf", "m-2B-Q8_0.gguf", "mmproj-m-2B-F16.gguf", "mmproj-m-4B-Q8_0.gguf"],
            "mmproj-m-4B-Q8_0.gguf",
        ),
        (["m-4B-Q4_K_M.gguf", "m-2B-Q8_0.gguf", "mmproj-m-2B-F16.gguf"], None),
        (["m-4B-Q4_K_M.gguf", "m-2B-Q8_0.gguf", "mmproj-m-2B-F16.gguf", "mmproj-F32.gguf"], "mmproj-F32.gguf"),
        (["google_m-Q4_K_M.gguf", "mmproj-m-F16.gguf", "mmproj-BF16.gguf"], "mmproj-BF16.gguf"),
        (["m-q4_0.gguf", "mmproj-model-f16-4B.gguf"], "mmproj-model-f16-4B.gguf"),
    ],
)
def test_the_projector_is_taken_along(names: list[str], projector: str | None) -> None:
    plan = plan_pull(listing(*names))

    assert (plan.projector.path if plan.projector else None) == projector
    assert plan_pull(listing(*names), with_projector=False).projector is None


def test_places_read_as_specs_do() -> None:
    plan = plan_pull(listing("sub/m-Q4_K_M.gguf"))

    assert str(plan.place_of(plan.files[0])) == "hf.co/o/r-GGUF/sub/m-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("spec", "quantization", "expected"),
    [
        ("hf.co/o/r-GGUF", None, Wanted("o/r-GGUF", None)),
        ("hf.co/o/r-GGUF:Q8_0", None, Wanted("o/r-GGUF", "Q8_0")),
        ("hf.co/o/r-GGUF:latest", "Q8_0", Wanted("o/r-GGUF", "Q8_0")),
        ("huggingface.co/o/r-GGUF", "Q8_0", Wanted("o/r-GGUF", "Q8_0")),
        ("hf.co/o/r-GGUF:q8_0", "Q8_0", Wanted("o/r-GGUF", "q8_0")),
        ("llamacpp/mistral:7b", None, Wanted("bartowski/Mistral-7B-Instruct-v0.3-GGUF", "Q4_K_M")),
        ("llamacpp/mistral:7b", "Q8_0", Wanted("bartowski/Mistral-7B-Instruct-v0.3-GGUF", "Q8_0")),
        ("mistral", None, Wanted("bartowski/Mistral-7B-Instruct-v0.3-GGUF", "Q4_K_M")),
        ("Mistral:latest", None, Wanted("bartowski/Mistral-7B-Instruct-v0.3-GGUF", "Q4_K_M")),
        ("mistral:Q6_K", None, Wanted("bartowski/Mistral-7B-Instruct-v0.3-GGUF", "Q6_K")),
        ("gpt-oss:20b", None, Wanted("ggml-org/gpt-oss-20b-GGUF", "MXFP4")),
    ],
)
def test_a_spec_means_a_repository(spec: str, quantization: str | None, expected: Wanted) -> None:
    assert find_wanted(parse_model_spec(spec), quantization, RECOMMENDED) == expected


def test_a_spec_that_means_none_names_the_closest() -> None:
    with pytest.raises(ModelNotFound, match=r"Did you mean .*llama3.1:8b.* hf.co/owner/repository:Q4_K_M"):
        find_wanted(parse_model_spec("llama3.1:9b"), None, RECOMMENDED)
    with pytest.raises(ModelNotFound):
        find_wanted(parse_model_spec("mistral:600b"), None, RECOMMENDED)


@pytest.mark.parametrize("quantization", ["", " "])
def test_a_quantization_is_not_empty(quantization: str) -> None:
    with pytest.raises(InvalidRequest, match="is empty"):
        find_wanted(parse_model_spec("hf.co/owner/repo"), quantization, RECOMMENDED)


@pytest.mark.parametrize(
    ("spec", "quantization"), [("hf.co/o/r:Q4_0", "Q8_0"), ("mistral:Q4_0", "Q8_0"), ("hf.co/o/a..b", None)]
)
def test_a_spec_that_makes_no_sense(spec: str, quantization: str | None) -> None:
    with pytest.raises(InvalidRequest):
        find_wanted(parse_model_spec(spec), quantization, RECOMMENDED)


def test_sizes_for_people() -> None:
    assert [in_gigabytes(size) for size in (4_372_000_000, 99_000_000, 500_000_000)] == ["4.4 GB", "99.0 MB", "0.5 GB"]
