"""Ollama's own store: models found by their manifests, and nothing trusted that these say."""

import json
import os
from pathlib import Path

import pytest
from made_stores import gguf_bytes, index_of, put, put_ollama

from server.store.lookout import Lookout
from server.store.model_files import FoundModel
from server.store.ollama_manifest import model_name
from server.store.ollama_parameters import OllamaParameters, parse_parameters
from server.store.ollama_store import read_details, scan_ollama
from server.store.places import Source

LIBRARY = "registry.ollama.ai/library"


def scan(root: Path) -> tuple[list[FoundModel], dict[str, str]]:
    lookout = Lookout(0)
    models = scan_ollama(root, lookout)
    return models, {str(complaint.path.relative_to(root)): complaint.problem for complaint in lookout.complaints}


def only(root: Path) -> FoundModel:
    (model,), complaints = scan(root)
    assert not complaints
    return model


def change(manifest: Path, **changes: object) -> None:
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


def test_a_model_is_its_blobs(tmp_path: Path) -> None:
    weights, projector = gguf_bytes(), gguf_bytes({"general.architecture": "clip"})
    put_ollama(tmp_path, f"{LIBRARY}/llava/7b", weights, [("projector", projector)])
    model = only(tmp_path)

    assert (model.source, model.names, model.problem) == (Source.OLLAMA, ("llava:7b",), None)
    assert model.path.read_bytes() == weights
    assert model.path.name == f"sha256-{model.digest}"
    assert [path.read_bytes() for path in model.projectors] == [projector]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("registry.ollama.ai/library/llama3.1/8b", "llama3.1:8b"),
        ("registry.ollama.ai/me/mine/latest", "me/mine:latest"),
        ("hf.co/owner/Repo-GGUF/Q4_K_M", "hf.co/owner/Repo-GGUF:Q4_K_M"),
        ("example.com:5000/team/model/v1.2", "example.com:5000/team/model:v1.2"),
        ("registry.ollama.ai/library/../latest", None),
        ("registry.ollama.ai/li.brary/m/latest", None),
        ("registry.ollama.ai/library/m/.DS_Store", None),
        ("registry.ollama.ai/library/m m/latest", None),
        (f"registry.ollama.ai/library/{'m' * 81}/latest", None),
    ],
)
def test_names_are_those_of_ollama(path: str, name: str | None) -> None:
    assert model_name(path.split("/")) == name


def test_the_other_name_of_the_hub_is_a_name_too(tmp_path: Path) -> None:
    put_ollama(tmp_path, "huggingface.co/owner/Repo-GGUF/Q8_0")
    assert only(tmp_path).names == ("huggingface.co/owner/Repo-GGUF:Q8_0", "hf.co/owner/Repo-GGUF:Q8_0")


def test_details_are_read_from_the_layers(tmp_path: Path) -> None:
    layers = [
        ("template", b"{{ .Prompt }}"),
        ("system", b"Be brief."),
        ("params", b'{"stop": ["<|end|>"], "temperature": 0.5, "num_ctx": 8192, "mirostat": 1}'),
        ("messages", b'[{"role": "user", "content": "hi"}, {"role": 5}, "x"]'),
        ("license", b"MIT"),
        ("license", b"and more"),
    ]
    put_ollama(tmp_path, f"{LIBRARY}/m/latest", layers=layers)
    model = only(tmp_path).ollama
    assert model is not None
    details = read_details(model)

    assert (details.template, details.system) == ("{{ .Prompt }}", "Be brief.")
    assert details.messages == (("user", "hi"),)
    assert details.licenses == ("MIT", "and more")
    assert details.parameters == OllamaParameters({"temperature": 0.5}, ("<|end|>",), 8192, ("mirostat",))
    assert details.problems == ()


def test_details_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    put_ollama(tmp_path, f"{LIBRARY}/m/latest", layers=[("system", b"x"), ("params", b"{"), ("messages", b"5")])
    model = only(tmp_path).ollama
    assert model is not None
    (system,) = model.manifest.of("system")
    (tmp_path / "blobs" / system.file_name).unlink()
    details = read_details(model)

    assert (details.system, details.messages, details.parameters) == (None, (), OllamaParameters({}))
    assert [problem.split(" ")[1] for problem in details.problems] == ["system", "params"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"stop": "one"}, OllamaParameters({}, ("one",))),
        ({"stop": ["a", "a", ""]}, OllamaParameters({}, ("a",))),
        ({"stop": [1]}, OllamaParameters({}, ignored=("stop",))),
        ({"seed": -1, "num_predict": -2}, OllamaParameters({})),
        ({"seed": 5, "num_predict": 9, "top_k": 3.0}, OllamaParameters({"seed": 5, "max_tokens": 9, "top_k": 3})),
        ({"top_k": 2.5, "temperature": True}, OllamaParameters({}, ignored=("temperature", "top_k"))),
        ({"temperature": float("nan")}, OllamaParameters({}, ignored=("temperature",))),
        ({"num_gpu": 99, "num_thread": 4}, OllamaParameters({})),
        ({"num_ctx": 0, "tfs_z": 1}, OllamaParameters({}, ignored=("num_ctx", "tfs_z"))),
    ],
)
def test_parameters_in_this_servers_words(content: dict[str, object], expected: OllamaParameters) -> None:
    assert parse_parameters(content) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"layers": 5}',
        '{"layers": [5]}',
        '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "size": 1}]}',
        '{"layers": [{"digest": "sha256:../../../../etc/passwd", "size": 1}]}',
        '{"layers": [{"digest": "../../secret", "size": 1}]}',
        '{"layers": [{"digest": "sha256-%s/../../x", "size": 1}]}' % ("a" * 64),
        '{"layers": [{"digest": "sha256-%s", "size": "x"}]}' % ("a" * 64),
        '{"layers": [{"digest": "sha256-%s", "size": -1}]}' % ("a" * 64),
    ],
)
def test_a_manifest_that_is_none_is_complained_about(tmp_path: Path, text: str) -> None:
    put(tmp_path / "manifests" / LIBRARY / "m" / "latest", text.encode())
    models, complaints = scan(tmp_path)

    assert models == []
    assert list(complaints) == [f"manifests/{LIBRARY}/m/latest"]


def test_a_manifest_that_is_a_link_out_of_the_store_is_not_read(tmp_path: Path) -> None:
    outside = put_ollama(tmp_path / "other", f"{LIBRARY}/m/latest")
    link = tmp_path / "store" / "manifests" / LIBRARY / "m" / "latest"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    models, complaints = scan(tmp_path / "store")

    assert models == []
    assert "leads out of" in complaints[f"manifests/{LIBRARY}/m/latest"]


def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "manifests" / LIBRARY / "m"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "latest")
    models, complaints = scan(tmp_path)

    assert models == []
    assert complaints == {f"manifests/{LIBRARY}/m/latest": "is not a regular file"}


def test_a_folder_of_manifests_that_is_a_link_is_not_entered(tmp_path: Path) -> None:
    put_ollama(tmp_path / "other", f"{LIBRARY}/m/latest")
    host = tmp_path / "store" / "manifests" / "registry.ollama.ai"
    host.mkdir(parents=True)
    (host / "library").symlink_to(tmp_path / "other" / "manifests" / LIBRARY)
    models, complaints = scan(tmp_path / "store")

    assert models == []
    assert "link to a folder" in complaints[f"manifests/{LIBRARY}"]


def test_a_blob_that_is_a_link_out_of_the_store_is_refused(tmp_path: Path) -> None:
    put_ollama(tmp_path / "store", f"{LIBRARY}/m/latest", weights := gguf_bytes())
    blob = only(tmp_path / "store").path
    blob.unlink()
    blob.symlink_to(put(tmp_path / "elsewhere", weights))

    assert "is a link that leads out of" in (only(tmp_path / "store").problem or "")


def test_a_store_may_itself_be_behind_a_link(tmp_path: Path) -> None:
    put_ollama(tmp_path / "disk", f"{LIBRARY}/m/latest")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert only(tmp_path / "link").problem is None


def test_weights_that_are_missing_or_cut_are_a_problem(tmp_path: Path) -> None:
    put_ollama(tmp_path, f"{LIBRARY}/m/latest")
    blob = only(tmp_path).path
    os.truncate(blob, 30)
    assert " has 30 of " in (only(tmp_path).problem or "")
    blob.unlink()
    assert (only(tmp_path).problem or "").endswith("is gone; `ollama pull m:latest` fetches it again")
    os.mkfifo(blob)
    assert "is not a regular file" in (only(tmp_path).problem or "")


@pytest.mark.parametrize(
    ("layers", "config", "problem"),
    [
        ([("adapter", b"lora")], {}, "LoRA adapter"),
        ([], {"remote_host": "https://ollama.com"}, "runs at https://ollama.com"),
        ([], {"model_format": "safetensors"}, "'safetensors' and not GGUF"),
        ([("tensor", b"t")], {}, "not GGUF"),
        ([("model", b"second")], {}, "has 2 files of weights"),
    ],
)
def test_what_the_pool_cannot_run_is_said(
    tmp_path: Path, layers: list[tuple[str, bytes]], config: dict[str, str], problem: str
) -> None:
    put_ollama(tmp_path, f"{LIBRARY}/m/latest", layers=layers, config=config)
    said = only(tmp_path).problem or ""
    assert problem in said
    assert said.endswith("use it @ollama")


def test_a_model_without_weights_is_listed_by_its_manifest(tmp_path: Path) -> None:
    path = put_ollama(tmp_path, f"{LIBRARY}/cloud/latest", config={"remote_host": "https://ollama.com"})
    change(path, layers=[])
    model = only(tmp_path)

    assert model.path == path
    assert model.files == ()
    listing = index_of((Source.OLLAMA, tmp_path)).listing()
    assert listing.entries[0].problem == "runs at https://ollama.com and not on this machine; use it @ollama"


def test_a_broken_configuration_is_a_problem(tmp_path: Path) -> None:
    path = put_ollama(tmp_path, f"{LIBRARY}/m/latest")
    digest = json.loads(path.read_text())["config"]["digest"].replace(":", "-")
    blob = tmp_path / "blobs" / digest
    blob.write_bytes(b"{" * blob.stat().st_size)
    assert "is not valid JSON" in (only(tmp_path).problem or "")


def test_a_configuration_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    path = put_ollama(tmp_path, f"{LIBRARY}/m/latest")
    digest = json.loads(path.read_text())["config"]["digest"].replace(":", "-")
    (tmp_path / "blobs" / digest).unlink()
    assert only(tmp_path).problem == f"its configuration {digest} is gone; `ollama pull m:latest` fetches it again"


def test_names_that_ollama_would_not_accept_are_complained_about(tmp_path: Path) -> None:
    put_ollama(tmp_path, f"{LIBRARY}/m m/latest")
    models, complaints = scan(tmp_path)
    assert models == []
    assert "not the name of a model" in complaints[f"manifests/{LIBRARY}/m m/latest"]


def test_a_configured_folder_may_be_a_store_of_ollama(tmp_path: Path) -> None:
    put_ollama(tmp_path, f"{LIBRARY}/m/latest")
    assert [entry.name for entry in index_of((Source.FOLDER, tmp_path)).listing().entries] == ["m:latest"]
