"""What llama.cpp's library says of the files that are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from machines import NAME, REPOSITORY, Machine
from store.made_stores import gguf_bytes, put, put_hub, put_ollama

from server.core.errors import ModelNotFound
from server.core.library import InstalledModel, ModelDetails
from server.core.model_spec import BackendName, parse_model_spec
from server.pool.config import ModelConfig

DEMO = Path(__file__).parents[2] / "server" / "assets" / "demo.gguf"
CHATML = "{% for m in messages %}{{ m['role'] }}{{ m.content }}{% endfor %}{% if tools %}{{ tools }}{% endif %}"


async def listed(machine: Machine, **models: ModelConfig) -> dict[str, InstalledModel]:
    parts = machine.parts(models)
    found = await parts.library.models(BackendName.LLAMACPP)
    return {model.model: model for model in found}


async def details(machine: Machine, spec: str, models: dict[str, ModelConfig] | None = None) -> ModelDetails:
    return await machine.parts(models).library.details(parse_model_spec(spec))


async def test_models_of_all_places_are_listed_with_their_source(machine: Machine) -> None:
    put(machine.own / "mine-Q4_K_M.gguf")
    put_hub(machine.hugging_face, REPOSITORY, "model-Q8_0.gguf")
    put_ollama(
        machine.ollama, "registry.ollama.ai/library/spell/1b", config={"model_type": "1.2B", "file_type": "Q4_0"}
    )
    found = await listed(machine)
    assert {name: model.source for name, model in found.items()} == {
        "mine:Q4_K_M": "own",
        f"{NAME}:Q8_0": "huggingface",
        "spell:1b": "ollama",
    }
    assert (found["spell:1b"].parameters, found["spell:1b"].quantization) == ("1.2B", "Q4_0")
    assert found["mine:Q4_K_M"].quantization == "Q4_K_M"
    assert found["mine:Q4_K_M"].size_bytes == (machine.own / "mine-Q4_K_M.gguf").stat().st_size
    assert found[f"{NAME}:Q8_0"].digest


async def test_a_list_reads_no_headers_but_shows_what_is_known_of_them(machine: Machine) -> None:
    put(machine.own / "demo.gguf", DEMO.read_bytes())
    assert (await listed(machine))["demo"].context_length is None
    known = (await details(machine, "llamacpp/demo")).installed
    again = (await listed(machine))["demo"]  # by another library, from the cache's file
    assert again.context_length == known.context_length is not None
    assert again.parameters == known.parameters == "2.74M"
    assert "chat" in again.capabilities


async def test_files_that_may_be_copies_are_compared_once_and_for_all(machine: Machine) -> None:
    for name in ("one", "two"):
        put(machine.own / f"{name}.gguf", gguf_bytes({"general.name": name}, padding=9000))
    first = await listed(machine)
    known = json.loads((machine.root / "cache" / "headers.json").read_text())["files"]
    assert len(first) == 2
    assert all(known[str(machine.own / f"{name}.gguf")]["sample"] for name in ("one", "two"))


async def test_copies_are_shown_once(machine: Machine) -> None:
    data = gguf_bytes({"general.name": "same"}, padding=9000)
    put(machine.own / "a-Q4_0.gguf", data)
    put(machine.own / "folder" / "b-Q4_0.gguf", data)
    found = await listed(machine)
    assert list(found) == ["a:Q4_0"]
    assert found["a:Q4_0"].copies == (machine.own / "folder" / "b-Q4_0.gguf",)
    assert "b:Q4_0" in found["a:Q4_0"].other_names
    library = machine.parts().library
    other = await library.find(parse_model_spec("llamacpp/b:Q4_0"))
    assert other is not None
    assert other.path == machine.own / "folder" / "b-Q4_0.gguf"


async def test_several_names_for_one_blob_are_no_copies(machine: Machine) -> None:
    weights = gguf_bytes({"general.name": "same"}, padding=9000)
    for name in ("spell/1b", "charm/latest"):
        put_ollama(machine.ollama, f"registry.ollama.ai/library/{name}", weights)
    (model,) = (await listed(machine)).values()
    assert model.other_names == ("spell:1b",)
    assert model.copies == ()


async def test_a_file_that_the_configuration_names_is_listed_once_under_its_name(machine: Machine) -> None:
    path = put(machine.own / "file-Q4_0.gguf")
    found = await listed(machine, **{"local/mine:7b": ModelConfig(path=str(path))})
    assert list(found) == ["mine:7b"]
    assert found["mine:7b"].source == "config"
    assert found["mine:7b"].other_names == ("file:Q4_0", "own/file:Q4_0")


async def test_a_configured_file_that_is_missing_is_listed_with_the_problem(machine: Machine) -> None:
    found = await listed(machine, mine=ModelConfig(path=str(machine.root / "gone.gguf")))
    assert "gone.gguf" in (found["mine"].problem or "")
    shown = await details(machine, "llamacpp/mine", {"mine": ModelConfig(path=str(machine.root / "gone.gguf"))})
    assert shown.installed.problem == found["mine"].problem


async def test_what_cannot_be_used_is_listed_with_the_problem(machine: Machine) -> None:
    put(machine.own / "whole-00001-of-00002.gguf")
    put(machine.own / "text.gguf", b"this is not a model, whatever its name says")
    found = await listed(machine)
    assert "incomplete" in (found["whole"].problem or "")
    assert found["text"].problem is None  # a list opens nothing
    shown = await details(machine, "llamacpp/text")
    assert "GGUF" in (shown.installed.problem or "")
    assert not shown.memory


async def test_only_chosen_folders_are_looked_into_without_discovery(machine: Machine) -> None:
    put(machine.own / "mine.gguf")
    put_hub(machine.hugging_face, REPOSITORY, "model-Q8_0.gguf")
    put_ollama(machine.ollama, "registry.ollama.ai/library/spell/1b")
    parts = machine.parts(discover=False, model_dirs=(str(machine.ollama),))
    names = {model.model for model in await parts.library.models(BackendName.LLAMACPP)}
    assert names == {"mine", "spell:1b"}


async def test_details_of_a_file(machine: Machine) -> None:
    put(machine.own / "demo.gguf", DEMO.read_bytes())
    shown = await details(machine, "llamacpp/demo")
    assert shown.architecture == "llama"
    assert shown.template == "file"
    assert "system" in shown.template_capabilities
    assert shown.files == (machine.own / "demo.gguf",)
    lengths = [each.context_length for each in shown.memory]
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == shown.installed.context_length
    sizes = [each.num_bytes for each in shown.memory]
    assert sizes == sorted(sizes)
    assert sizes[0] > shown.installed.size_bytes


async def test_details_of_a_split_model_count_all_parts(machine: Machine) -> None:
    paths = [put(machine.own / f"big-Q4_0-0000{number}-of-00002.gguf") for number in (1, 2)]
    shown = await details(machine, "llamacpp/big:Q4_0")
    assert shown.files == tuple(paths)
    assert shown.installed.size_bytes == sum(path.stat().st_size for path in paths)


async def test_details_of_a_model_of_ollama_say_what_the_pool_makes_of_its_manifest(machine: Machine) -> None:
    layers = [
        ("template", b"<|im_start|>{{ .System }}<|im_end|>{{ .Prompt }}"),
        ("system", b"Be brief."),
        ("params", json.dumps({"temperature": 0.5, "stop": ["<|im_end|>"], "num_ctx": 4096, "mirostat": 2}).encode()),
        ("license", b"\nMIT License\n\nPermission is granted"),
    ]
    put_ollama(machine.ollama, "registry.ollama.ai/library/spell/1b", gguf_bytes({"general.name": "Spell"}), layers)
    shown = await details(machine, "spell:1b@llamacpp")
    assert shown.template == "manifest"
    assert shown.system == "Be brief."
    assert shown.defaults == {"temperature": 0.5, "stop": ["<|im_end|>"], "context_length": 4096}
    assert shown.licence == "MIT License"
    assert any("mirostat" in note for note in shown.notes)
    assert shown.name == "Spell"


async def test_details_name_the_configured_template(machine: Machine) -> None:
    path = put(machine.own / "file.gguf")
    template = put(machine.root / "own.jinja", CHATML.encode())
    shown = await details(machine, "llamacpp/mine", {"mine": ModelConfig(path=str(path), chat_template=str(template))})
    assert shown.template == "config"
    assert shown.template_capabilities == ("system", "tools")
    assert shown.installed.capabilities == ("chat", "tools")


async def test_a_file_without_template_gets_the_usual_one(machine: Machine) -> None:
    put(machine.own / "bare.gguf")
    shown = await details(machine, "llamacpp/bare")
    assert (shown.template, shown.template_capabilities) == ("default", ("system",))


async def test_projectors_are_shown_and_mean_that_it_sees(machine: Machine) -> None:
    put(machine.own / NAME / "model-Q4_0.gguf")
    projector = put(machine.own / NAME / "mmproj-F16.gguf", gguf_bytes({"general.architecture": "clip"}))
    shown = await details(machine, f"{NAME}:Q4_0@llamacpp")
    assert shown.projectors == (projector,)
    assert "vision" in shown.installed.capabilities


@pytest.mark.parametrize("spec", ["llamacpp/mine:Q4_K", "mine:Q4_K"])
async def test_what_is_not_there_is_said_with_what_is_like_it(machine: Machine, spec: str) -> None:
    put(machine.own / "mine-Q4_K_M.gguf")
    with pytest.raises(ModelNotFound, match=r"mine:Q4_K_M.*llmspell model pull") as caught:
        await details(machine, spec)
    assert caught.value.param == "model"
