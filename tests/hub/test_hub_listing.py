from __future__ import annotations

from typing import Any

import pytest

from server.core.errors import InvalidRequest, PullFailed
from server.store.hub_listing import Checksum, ChecksumKind, Gating, is_safe_path, read_listing

SHA256 = "ab" * 32
SHA1 = "cd" * 20


def answer(**changes: object) -> dict[str, Any]:
    return {"id": "o/r", "sha": SHA1, "siblings": [], "gated": False, "private": False} | changes


def sibling(name: object, **changes: object) -> dict[str, Any]:
    large = {"sha256": SHA256, "size": 5, "pointerSize": 1}
    return {"rfilename": name, "size": 5, "blobId": SHA1, "lfs": large} | changes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (False, Gating.OPEN),
        (None, Gating.OPEN),
        ("auto", Gating.AUTOMATIC),
        ("manual", Gating.MANUAL),
        (True, Gating.AUTOMATIC),
    ],
)
def test_gating(value: object, expected: Gating) -> None:
    assert read_listing(answer(gated=value), "o/r").gating is expected


def test_the_hub_knows_the_name() -> None:
    assert read_listing(answer(id="Owner/Repo"), "owner/repo").repository == "Owner/Repo"
    assert read_listing(answer(id=None), "owner/repo").repository == "owner/repo"
    with pytest.raises(InvalidRequest):
        read_listing(answer(id="../../etc"), "owner/repo")


def test_older_hubs_call_the_checksum_oid() -> None:
    rows = [sibling("m.gguf", lfs={"oid": SHA256, "size": 7})]

    (file,) = read_listing(answer(siblings=rows), "o/r").files

    assert (file.size, file.checksum) == (7, Checksum(ChecksumKind.SHA256, SHA256))


@pytest.mark.parametrize(
    "name",
    [
        "../m.gguf",
        "a/../../m.gguf",
        "/etc/m.gguf",
        "a//m.gguf",
        "./m.gguf",
        "a\\..\\m.gguf",
        "C:m.gguf",
        "m\0.gguf",
        "m\n.gguf",
        ".hidden.gguf",
        ".llmspell/m.gguf",
        "con.gguf",
        "a/aux/m.gguf",
        "a. /m.gguf",
        "m\u202e.gguf",
        f"{'m' * 300}.gguf",
        "/".join(["a" * 100] * 9) + ".gguf",
    ],
)
def test_a_name_with_tricks_is_refused(name: str) -> None:
    with pytest.raises(PullFailed, match="cannot be stored safely"):
        read_listing(answer(siblings=[sibling(name)]), "o/r")


@pytest.mark.parametrize("name", ["m.gguf", "Q4_K_M/m-00001-of-00002.gguf", "Modèle 7B (it).gguf", "a/b/c/m.Q8_0.GGUF"])
def test_ordinary_names_are_fine(name: str) -> None:
    assert is_safe_path(name)
    assert read_listing(answer(siblings=[sibling(name)]), "o/r").files[0].path == name


@pytest.mark.parametrize(
    "row",
    [
        sibling("m.gguf", lfs={"size": 5}),
        sibling("m.gguf", lfs={"sha256": "AB" * 32, "size": 5}),
        sibling("m.gguf", lfs={"sha256": "../../x", "size": 5}),
        sibling("m.gguf", lfs={"sha256": SHA256}),
        sibling("m.gguf", lfs={"sha256": SHA256, "size": -1}),
        sibling("m.gguf", lfs={"sha256": SHA256, "size": True}),
        sibling("m.gguf", lfs=None, blobId=None),
        sibling("m.gguf", lfs=None, size=None),
        {"size": 5},
        "m.gguf",
    ],
)
def test_what_cannot_be_verified_is_refused(row: object) -> None:
    with pytest.raises(PullFailed, match="does not behave as Hugging Face does"):
        read_listing(answer(siblings=[row]), "o/r")


def test_checksums() -> None:
    large, small = Checksum(ChecksumKind.SHA256, "").start(3), Checksum(ChecksumKind.GIT, "").start(3)
    large.update(b"abc")
    small.update(b"abc")

    assert large.hexdigest() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert small.hexdigest() == "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f"  # git hash-object
