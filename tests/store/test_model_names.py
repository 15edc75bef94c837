"""From file names to names of models."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.model_spec import parse_model_spec
from server.store.model_names import (
    FileName,
    names_in_folder,
    names_in_repository,
    read_file_name,
    split_quantization,
    without_attachment,
)


def file(name: str) -> FileName:
    found = read_file_name(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("stem", "base", "quantization"),
    [
        ("Mistral-7B-Instruct-v0.3-Q4_K_M", "Mistral-7B-Instruct-v0.3", "Q4_K_M"),
        ("mistral-7b-instruct-v0.3.q4_k_m", "mistral-7b-instruct-v0.3", "Q4_K_M"),
        ("phi_q8_0", "phi", "Q8_0"),
        ("Qwen3-8B-UD-Q4_K_XL", "Qwen3-8B", "UD-Q4_K_XL"),
        ("model.i1-IQ3_XXS", "model.i1", "IQ3_XXS"),
        ("gpt-oss-20b-MXFP4", "gpt-oss-20b", "MXFP4"),
        ("gpt-oss-20b-mxfp4_moe", "gpt-oss-20b", "MXFP4_MOE"),
        ("a-bf16", "a", "BF16"),
        ("a-fp16", "a", "F16"),
        ("a-F32", "a", "F32"),
        ("bitnet-TQ2_0", "bitnet", "TQ2_0"),
        ("a-Q6_K", "a", "Q6_K"),
        ("Q4_K_M", "", "Q4_K_M"),
        ("a-Q4_K_M-imat", "a-Q4_K_M-imat", None),
        ("demo", "demo", None),
        ("XQ4_0", "XQ4_0", None),
        ("llama-3.1-8b", "llama-3.1-8b", None),
    ],
)
def test_the_quantization_is_the_end_of_the_name(stem: str, base: str, quantization: str | None) -> None:
    assert split_quantization(stem) == (base, quantization)


def test_parts_of_split_files_are_counted() -> None:
    part = file("Big-Q4_K_M-00002-of-00005.gguf")
    assert (part.stem, part.base, part.quantization, part.number, part.count) == ("Big-Q4_K_M", "Big", "Q4_K_M", 2, 5)


@pytest.mark.parametrize("name", ["a-00003-of-00002.gguf", "a-00000-of-00002.gguf", "a-00001-of-99999.gguf"])
def test_numbers_that_make_no_sense_are_part_of_the_name(name: str) -> None:
    assert (file(name).number, file(name).count) == (1, 1)


@pytest.mark.parametrize("name", ["a.bin", "a.gguf.part", "gguf", ".gguf", ".hidden.gguf", "._a.gguf", ""])
def test_other_files_have_no_model_name(name: str) -> None:
    assert read_file_name(name) is None


@pytest.mark.parametrize(
    ("name", "attachment"),
    [
        ("mmproj-F16.gguf", "mmproj"),
        ("Qwen2.5-VL-7B.mmproj-f16.gguf", "mmproj"),
        ("Model-mmproj.gguf", "mmproj"),
        ("imatrix_unsloth.gguf", "imatrix"),
        ("commproject.gguf", None),
    ],
)
def test_what_belongs_to_a_model_is_none(name: str, attachment: str | None) -> None:
    assert file(name).attachment == attachment


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("mmproj-F16.gguf", ""),
        ("mmproj-model-f16.gguf", ""),
        ("Qwen-VL-mmproj-f16.gguf", "Qwen-VL"),
        ("mmproj-A.gguf", "A"),
    ],
)
def test_a_projector_may_bear_the_name_of_its_model(name: str, base: str) -> None:
    assert without_attachment(file(name).base) == base


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("A-7B-Q4_K_M.gguf", ("A-7B:Q4_K_M", "models/A-7B:Q4_K_M")),
        ("demo.gguf", ("demo", "models/demo")),
        ("x/y/A-Q8_0.gguf", ("A:Q8_0", "x/y/A:Q8_0", "models/x/y/A:Q8_0")),
        ("llama-7b/ggml-model-q4_0.gguf", ("llama-7b:Q4_0", "models/llama-7b:Q4_0")),
        ("Some Thing (v2)!.gguf", ("Some-Thing-v2", "models/Some-Thing-v2")),
        ("模型-Q4_0.gguf", ("model:Q4_0", "models/model:Q4_0")),
        ("--weird.gguf", ("weird", "models/weird")),
        ("ünder_@a:b.gguf", ("nder_-a-b", "models/nder_-a-b")),
        (f"{'n' * 240}.gguf", ("n" * 240, "models/" + "n" * 240)),
        (f"{'n' * 248}.gguf", ("n" * 248,)),
    ],
)
def test_names_in_a_folder(path: str, names: tuple[str, ...]) -> None:
    relative = PurePosixPath(path)
    assert names_in_folder(relative, file(relative.name), "models") == names


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("Name-Q4_K_M.gguf", ("hf.co/o/Name-GGUF:Q4_K_M", "hf.co/o/Name-GGUF:Name-Q4_K_M.gguf", "Name:Q4_K_M")),
        (
            "Q8_0/Name-Q8_0-00001-of-00002.gguf",
            ("hf.co/o/Name-GGUF:Q8_0", "hf.co/o/Name-GGUF:Name-Q8_0-00001-of-00002.gguf", "Name:Q8_0"),
        ),
        ("ggml-model-Q4_0.gguf", ("hf.co/o/Name-GGUF:Q4_0", "hf.co/o/Name-GGUF:ggml-model-Q4_0.gguf", "Name:Q4_0")),
        ("odd.gguf", ("hf.co/o/Name-GGUF:odd", "hf.co/o/Name-GGUF:odd.gguf", "odd")),
    ],
)
def test_names_in_a_repository(path: str, names: tuple[str, ...]) -> None:
    relative = PurePosixPath(path)
    assert names_in_repository("o", "Name-GGUF", relative, file(relative.name)) == names


@settings(deadline=None)
@given(st.text(min_size=1, max_size=300).filter(lambda text: "/" not in text and not text.startswith(".")))
def test_every_name_is_a_spec_that_means_it(text: str) -> None:
    relative = PurePosixPath("dir ectory", f"{text}.gguf")
    name = read_file_name(relative.name)
    assert name is not None
    for each in (*names_in_folder(relative, name, text), *names_in_repository(text, text, relative, name)):
        assert parse_model_spec(f"local/{each}@llamacpp").model == each
