"""What is deleted, what is not, and what is left of folders."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from pathlib import Path

import pytest
from fakes.hub import FakeHub, Rule, Stall
from machines import NAME, REPOSITORY, Machine, pulled
from store.made_stores import gguf_bytes, put, put_hub, put_ollama

from server.app_library import LibraryParts
from server.core.errors import CannotStore, Forbidden, LlmspellError, ModelInUse, ModelNotFound
from server.core.library import Deleted
from server.core.model_spec import parse_model_spec
from server.core.pulling import PullProgress
from server.pool.config import ModelConfig
from server.store.removal import remove

CLIP = gguf_bytes({"general.architecture": "clip"})
WEIGHTS = gguf_bytes(padding=200_000)


async def delete(parts: LibraryParts, spec: str) -> Deleted:
    return await parts.library.delete(parse_model_spec(spec))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


async def test_a_model_is_deleted_with_what_only_it_needs_and_empty_folders(machine: Machine) -> None:
    home = machine.own / NAME
    shards = [put(home / "deep" / f"m-Q4_0-0000{number}-of-00002.gguf") for number in (1, 2)]
    projector = put(home / "mmproj-F16.gguf", CLIP)
    size = sum(path.stat().st_size for path in (*shards, projector))
    parts = machine.parts()
    deleted = await delete(parts, f"{NAME}:Q4_0")
    assert deleted.model == f"{NAME}:Q4_0"
    assert set(deleted.paths) == {*shards, projector}
    assert deleted.freed_bytes == size
    assert list(machine.own.iterdir()) == []
    assert await parts.library.find(parse_model_spec(NAME)) is None


async def test_a_projector_stays_while_another_model_needs_it(machine: Machine) -> None:
    home = machine.own / NAME
    put(home / "m-Q4_0.gguf")
    put(home / "m-Q8_0.gguf")
    put(home / "mmproj-F16.gguf", CLIP)
    parts = machine.parts()
    await delete(parts, f"{NAME}:Q4_0")
    assert files(home) == ["m-Q8_0.gguf", "mmproj-F16.gguf"]
    await delete(parts, f"{NAME}:Q8_0")
    assert list(machine.own.iterdir()) == []


async def test_what_is_incomplete_can_be_deleted(machine: Machine) -> None:
    put(machine.own / "m-Q4_0-00002-of-00003.gguf")
    put(machine.own / "other-Q4_0-00002-of-00003.gguf")
    await delete(machine.parts(), "llamacpp/m:Q4_0")
    assert files(machine.own) == ["other-Q4_0-00002-of-00003.gguf"]


async def test_what_came_of_downloads_is_deleted_with_it(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {"m-Q4_K_M.gguf": WEIGHTS, "m-Q8_0.gguf": WEIGHTS + b"8"})
    parts = on_hub.parts()
    await pulled(parts, f"{NAME}:Q4_K_M")
    hub.add(REPOSITORY, {"m-Q4_K_M.gguf": WEIGHTS + b"new", "m-Q8_0.gguf": WEIGHTS + b"8"})
    await interrupted(parts, hub, f"{NAME}:Q4_K_M")
    await interrupted(parts, hub, f"{NAME}:Q8_0")
    deleted = await delete(parts, f"{NAME}:Q4_K_M")
    assert deleted.freed_bytes >= len(WEIGHTS) + 100_000
    left = files(on_hub.own)
    assert [name.rpartition(".")[2] for name in left] == ["json", "part"]  # those of the other model
    assert await delete(parts, f"{NAME}:Q8_0")  # of which nothing else is here
    assert files(on_hub.own) == []
    for spec in (f"llamacpp/{NAME}:Q8_0", f"{NAME}:Q8_0"):
        with pytest.raises(ModelNotFound):
            await delete(parts, spec)
    await parts.library.aclose()


async def test_what_came_of_a_download_is_deleted_by_the_name_that_was_pulled(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {"m-Q4_K_M.gguf": WEIGHTS})
    parts = on_hub.parts()
    await interrupted(parts, hub, NAME)
    assert (await delete(parts, NAME)).freed_bytes >= 100_000
    assert files(on_hub.own) == []
    await parts.library.aclose()


async def interrupted(parts: LibraryParts, hub: FakeHub, spec: str) -> None:
    """Have half of a model come."""
    hub.rules.append(Rule("/m-", Stall(after=100_000), times=1, at_hub=False))
    events = parts.library.pull(parse_model_spec(spec))
    async for event in events:
        if isinstance(event, PullProgress) and event.done_bytes >= 100_000:
            break
    await events.aclose()


async def test_a_model_that_is_being_pulled_is_not_deleted(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {"m-Q4_K_M.gguf": WEIGHTS})
    parts = on_hub.parts()
    await pulled(parts, NAME)
    hub.add(REPOSITORY, {"m-Q4_K_M.gguf": WEIGHTS + b"new"})
    hub.rules.append(Rule("/m-", Stall(after=100_000), times=1, at_hub=False))
    events = parts.library.pull(parse_model_spec(NAME))
    await anext(events)
    with pytest.raises(ModelInUse, match="being pulled"):
        await delete(parts, NAME)
    await events.aclose()
    assert (await delete(parts, NAME)).paths
    await parts.library.aclose()


async def test_what_is_being_pulled_for_the_first_time_is_not_deleted(on_hub: Machine, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {"m-Q4_K_M.gguf": WEIGHTS})
    hub.rules.append(Rule("/m-", Stall(after=100_000), times=1, at_hub=False))
    parts = on_hub.parts()
    async with aclosing(parts.library.pull(parse_model_spec(NAME))) as events:
        async for event in events:
            if isinstance(event, PullProgress) and event.done_bytes >= 100_000:
                break
        for spec in (NAME, f"llamacpp/{NAME}:Q4_K_M"):
            with pytest.raises(ModelInUse, match="being pulled"):
                await delete(parts, spec)
    assert (await delete(parts, NAME)).paths
    await parts.library.aclose()


async def test_files_of_others_are_not_deleted_and_their_owner_is_named(machine: Machine) -> None:
    put_ollama(machine.ollama, "registry.ollama.ai/library/spell/1b")
    put_hub(machine.hugging_face, REPOSITORY, "m-Q4_0.gguf")
    folder = machine.root / "folder"
    put(folder / "theirs.gguf")
    studio = machine.root / "home" / ".lmstudio" / "models"
    put(studio / "maker" / "studio" / "s-Q4_0.gguf")
    parts = machine.parts(model_dirs=(str(folder),))
    before = {each: files(each) for each in (machine.ollama, machine.hugging_face, folder, studio)}
    refusals = {
        "llamacpp/spell:1b": r"ollama rm spell:1b",
        f"{NAME}:Q4_0": rf"hf cache rm model/{REPOSITORY}",
        "theirs": r"theirs\.gguf.*model_dirs",
        "hf.co/maker/studio:Q4_0": r"LM Studio",
    }
    for spec, words in refusals.items():
        with pytest.raises(Forbidden, match=words):
            await delete(parts, spec)
    assert {each: files(each) for each in before} == before


async def test_files_that_the_configuration_names_are_not_deleted(machine: Machine) -> None:
    path = put(machine.own / "m-Q4_0.gguf")
    parts = machine.parts({"local/mine": ModelConfig(path=str(path))})
    for spec in ("mine", "m:Q4_0"):
        with pytest.raises(Forbidden, match=r'\[models."local/mine"\]'):
            await delete(parts, spec)
    assert path.exists()


async def test_a_link_is_deleted_and_not_what_it_leads_to(machine: Machine) -> None:
    path = put(machine.own / "real" / "m-Q4_0.gguf")
    link = machine.own / "link-Q4_0.gguf"
    link.symlink_to(path)
    deleted = await delete(machine.parts(), "link:Q4_0")
    assert deleted.paths == (link,)
    assert deleted.freed_bytes == 0
    assert files(machine.own) == ["real/m-Q4_0.gguf"]


async def test_a_file_with_another_name_elsewhere_frees_nothing(machine: Machine) -> None:
    path = put(machine.own / "m-Q4_0.gguf")
    (machine.root / "elsewhere.gguf").hardlink_to(path)
    assert (await delete(machine.parts(), "m:Q4_0")).freed_bytes == 0
    assert (machine.root / "elsewhere.gguf").exists()


async def test_links_out_of_the_folder_are_not_followed(machine: Machine) -> None:
    outside = put(machine.root / "outside" / "m-Q4_0.gguf")
    machine.own.mkdir()
    (machine.own / "m-Q4_0.gguf").symlink_to(outside)
    (machine.own / "folder").symlink_to(outside.parent, target_is_directory=True)
    parts = machine.parts()
    await delete(parts, "m:Q4_0")  # the link itself is ours
    with pytest.raises(ModelNotFound):
        await delete(parts, "folder/m:Q4_0")
    assert outside.exists()


@pytest.mark.parametrize(
    "spec", ["hf.co/owner/..", "own/m:Q4_0-00002", "m.gguf", "hf.co/owner/repo-GGUF:m-Q4_0.gguf", "a/b/../m:Q4_0"]
)
async def test_names_are_never_paths(machine: Machine, spec: str) -> None:
    put(machine.own / "sub" / "m-Q4_0.gguf")
    put(machine.own.parent / "m.gguf")
    with pytest.raises(LlmspellError):
        await delete(machine.parts(), spec)
    assert files(machine.own) == ["sub/m-Q4_0.gguf"]


async def test_a_name_for_several_models_deletes_none(machine: Machine) -> None:
    put(machine.own / NAME / "m-Q8_0.gguf")
    put(machine.own / NAME / "m-Q6_K.gguf")
    with pytest.raises(ModelNotFound, match=r"Q6_K or .*Q8_0"):
        await delete(machine.parts(), f"llamacpp/{NAME}")
    assert len(files(machine.own)) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may delete anything")
async def test_a_folder_that_may_not_be_changed(machine: Machine) -> None:
    path = put(machine.own / "folder" / "m-Q4_0.gguf")
    path.parent.chmod(0o555)
    try:
        with pytest.raises(CannotStore, match="Permission denied"):
            await delete(machine.parts(), "m:Q4_0")
        assert path.exists()
    finally:
        path.parent.chmod(0o755)


def test_what_cannot_be_deleted_ends_it(machine: Machine) -> None:
    later = put(machine.own / "m-Q4_0-00002-of-00002.gguf")
    folder = machine.own / "folder.gguf"
    folder.mkdir()
    with pytest.raises(CannotStore, match=r"folder\.gguf cannot be deleted"):
        remove([folder, later], machine.own)
    assert later.exists()


def test_nothing_outside_the_folder_is_deleted_whoever_asks(machine: Machine) -> None:
    outside = put(machine.root / "outside" / "m.gguf")
    machine.own.mkdir()
    (machine.own / "link").symlink_to(outside.parent, target_is_directory=True)
    for path in (outside, machine.own / "link" / "m.gguf", machine.own / ".." / "outside" / "m.gguf"):
        with pytest.raises(CannotStore, match="is not inside"):
            remove([path], machine.own)
    assert outside.exists()


async def test_two_who_delete_the_same_at_once(machine: Machine) -> None:
    put(machine.own / "m-Q4_0.gguf")
    parts = machine.parts()
    outcomes = await asyncio.gather(delete(parts, "m:Q4_0"), delete(parts, "m:Q4_0"), return_exceptions=True)
    assert any(isinstance(each, Deleted) for each in outcomes)
    assert all(isinstance(each, Deleted | ModelNotFound) for each in outcomes)
