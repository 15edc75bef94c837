from __future__ import annotations

from pathlib import Path

import pytest

from server.store.hub_settings import DEFAULT_ENDPOINT, HubSettings, hub_settings


def test_without_anything(tmp_path: Path) -> None:
    assert hub_settings({}, tmp_path) == HubSettings(DEFAULT_ENDPOINT, "", is_offline=False)


@pytest.mark.parametrize("value", ["https://mirror.example/", " https://mirror.example "])
def test_another_endpoint(tmp_path: Path, value: str) -> None:
    assert hub_settings({"HF_ENDPOINT": value}, tmp_path).endpoint == "https://mirror.example"


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("ON", True), ("yes", True), ("0", False), ("", False)])
def test_offline(tmp_path: Path, value: str, *, expected: bool) -> None:
    assert hub_settings({"HF_HUB_OFFLINE": value}, tmp_path).is_offline is expected


def test_tokens_are_looked_up_as_hugging_face_does(tmp_path: Path) -> None:
    for place in (".cache/huggingface/token", "xdg/huggingface/token", "hf/token", "my-token"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"{place}\n")
    environment: dict[str, str] = {}

    found = []
    for name, value in (
        ("", ""),
        ("XDG_CACHE_HOME", str(tmp_path / "xdg")),
        ("HF_HOME", "~/hf"),
        ("HF_TOKEN_PATH", str(tmp_path / "my-token")),
        ("HUGGING_FACE_HUB_TOKEN", "older"),
        ("HF_TOKEN", " newer\n"),
    ):
        environment[name] = value
        found.append(hub_settings(environment, tmp_path).token)

    assert found == [".cache/huggingface/token", "xdg/huggingface/token", "hf/token", "my-token", "older", "newer"]


def test_a_stored_token_is_not_used_against_the_users_word(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("stored")
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}

    assert hub_settings(environment, tmp_path).token == ""
    assert hub_settings(environment | {"HF_TOKEN": "said"}, tmp_path).token == "said"


@pytest.mark.parametrize("text", ["two\nlines", "naïve", "x" * 5000])
def test_what_no_header_can_hold_is_no_token(tmp_path: Path, text: str) -> None:
    assert hub_settings({"HF_TOKEN": text}, tmp_path).token == ""


def test_a_token_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xff")

    assert hub_settings({"HF_HOME": str(tmp_path)}, tmp_path).token == ""
    assert hub_settings({"HF_TOKEN_PATH": str(tmp_path)}, tmp_path).token == ""
