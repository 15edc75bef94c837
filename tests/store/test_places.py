"""Where models may be, on each system and with each variable."""

import json
from pathlib import Path

import pytest

from server.store.places import (
    Place,
    Source,
    Surroundings,
    hugging_face_folder,
    lm_studio_folders,
    model_places,
    ollama_folders,
    own_folder,
)

HOME = Path("/home/me")


def around(environ: dict[str, str] | None = None, platform: str = "linux", home: Path = HOME) -> Surroundings:
    return Surroundings(environ or {}, home, platform)


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({}, "/home/me/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/c", "HF_HOME": "/hf"}, "/hf/hub"),
        ({"HF_HOME": "~/hf"}, "/home/me/hf/hub"),
        ({"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"}, "/new"),
        ({"HF_HUB_CACHE": "  "}, "/home/me/.cache/huggingface/hub"),
    ],
)
def test_the_cache_of_hugging_face(environ: dict[str, str], folder: str) -> None:
    assert hugging_face_folder(around(environ)) == Path(folder)


@pytest.mark.parametrize(
    ("environ", "platform", "first"),
    [
        ({}, "linux", "/home/me/.ollama/models"),
        ({}, "darwin", "/home/me/.ollama/models"),
        ({}, "win32", "/home/me/.ollama/models"),
        ({"OLLAMA_MODELS": ' "/big/models" '}, "linux", "/big/models"),
        ({"OLLAMA_MODELS": "~/models"}, "darwin", "/home/me/models"),
    ],
)
def test_the_store_of_ollama(environ: dict[str, str], platform: str, first: str) -> None:
    folders = ollama_folders(around(environ, platform))
    assert folders[0] == Path(first)
    assert folders[1:] == ((Path("/usr/share/ollama/.ollama/models"),) if platform == "linux" else ())


@pytest.mark.parametrize(
    ("environ", "platform", "folder"),
    [
        ({}, "linux", "/home/me/.local/share/llmspell/models"),
        ({"XDG_DATA_HOME": "/data"}, "linux", "/data/llmspell/models"),
        ({}, "darwin", "/home/me/Library/Application Support/llmspell/models"),
        ({}, "win32", "/home/me/AppData/Local/llmspell/models"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/llmspell/models"),
    ],
)
def test_our_own_folder(environ: dict[str, str], platform: str, folder: str) -> None:
    assert own_folder(around(environ, platform)) == Path(folder)


def test_the_folders_of_lm_studio(tmp_path: Path) -> None:
    assert lm_studio_folders(around(home=tmp_path)) == (
        tmp_path / ".lmstudio" / "models",
        tmp_path / ".cache" / "lm-studio" / "models",
    )


def test_lm_studio_may_have_been_moved(tmp_path: Path) -> None:
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path}/moved\n")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "settings.json").write_text(json.dumps({"downloadsFolder": "~/chosen"}))
    folders = lm_studio_folders(around(home=tmp_path))

    assert folders[:2] == (tmp_path / "chosen", tmp_path / "moved" / "models")


@pytest.mark.parametrize(
    ("environ", "platform", "folder"),
    [
        ({}, "linux", ".config"),
        ({}, "darwin", "Library/Application Support"),
        ({}, "win32", "AppData/Roaming"),
    ],
)
def test_lm_studio_keeps_its_settings_with_those_of_the_system(
    tmp_path: Path, environ: dict[str, str], platform: str, folder: str
) -> None:
    settings = tmp_path / folder / "LM Studio" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"downloadsFolder": "/big"}))
    assert lm_studio_folders(around(environ, platform, tmp_path))[0] == Path("/big")


@pytest.mark.parametrize(
    "text", ["", "{", "5", "[" * 9999, '{"downloadsFolder": 5}', '{"downloadsFolder": "a\\u0000b"}']
)
def test_settings_that_make_no_sense_say_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lmstudio").mkdir()
    (tmp_path / ".lmstudio" / "settings.json").write_text(text)
    (tmp_path / ".lmstudio-home-pointer").mkdir()
    assert len(lm_studio_folders(around(home=tmp_path))) == 2


def test_each_place_comes_once_in_the_order_of_names(tmp_path: Path) -> None:
    own, hub = tmp_path / "own", tmp_path / "hub"
    own.mkdir()
    (tmp_path / "same").symlink_to(own)
    places = model_places(
        own, [tmp_path / "same", "~/models", hub], around({"HF_HUB_CACHE": str(hub)}, "darwin", tmp_path)
    )

    assert places == (
        Place(Source.OWN, own),
        Place(Source.FOLDER, tmp_path / "models"),
        Place(Source.HUGGING_FACE, hub),
        Place(Source.OLLAMA, tmp_path / ".ollama" / "models"),
        Place(Source.LM_STUDIO, tmp_path / ".lmstudio" / "models"),
        Place(Source.LM_STUDIO, tmp_path / ".cache" / "lm-studio" / "models"),
    )


def test_a_path_that_is_none_is_a_place_without_models() -> None:
    assert Place(Source.FOLDER, Path("a\0b")) in model_places(None, ["a\0b"], around())
