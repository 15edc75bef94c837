"""Folders of files, and the cache of Hugging Face: whatever lies in them."""

import os
import shutil
from pathlib import Path

import pytest
from made_stores import COMMIT, gguf_bytes, index_of, put, put_hub

from server.store import lookout as lookout_module
from server.store.header_cache import HeaderCache
from server.store.model_index import ModelEntry
from server.store.places import Source

OTHER_COMMIT = "f" * 40


def entries(source: Source, path: Path) -> dict[str | None, ModelEntry]:
    return {entry.name: entry for entry in index_of((source, path)).listing().entries}


def problem(source: Source, path: Path) -> str | None:
    (entry,) = entries(source, path).values()
    return entry.problem


def test_a_split_model_is_listed_once(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        put(tmp_path / f"Big-Q4_K_M-0000{number}-of-00003.gguf", gguf_bytes(padding=number))
    (entry,) = entries(Source.FOLDER, tmp_path).values()

    assert (entry.name, entry.problem) == ("Big:Q4_K_M", None)
    assert entry.main.found.path.name == "Big-Q4_K_M-00001-of-00003.gguf"
    assert entry.size == 3 * len(gguf_bytes()) + 6


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ([1, 3], "Big-00002-of-00003.gguf of"),
        ([2, 3], "Big-00001-of-00003.gguf of"),
        ([1], "Big-00002-of-00003.gguf and 1 more of"),
    ],
)
def test_an_incomplete_split_model_says_what_is_missing(tmp_path: Path, there: list[int], missing: str) -> None:
    for number in there:
        put(tmp_path / f"Big-0000{number}-of-00003.gguf")
    assert problem(Source.FOLDER, tmp_path) == f"is incomplete: {missing} its 3 files is missing"


def test_parts_in_different_folders_do_not_make_a_model(tmp_path: Path) -> None:
    put(tmp_path / "a" / "Big-00001-of-00002.gguf")
    put(tmp_path / "b" / "Big-00002-of-00002.gguf")
    assert all("is incomplete" in (entry.problem or "") for entry in entries(Source.FOLDER, tmp_path).values())


def test_projectors_go_along_with_their_models(tmp_path: Path) -> None:
    put(tmp_path / "flat" / "Eye-7B-Q4_K_M.gguf")
    put(tmp_path / "flat" / "mmproj-Eye-7B-f16.gguf")
    put(tmp_path / "flat" / "Blind-7B-Q4_K_M.gguf")
    put(tmp_path / "one" / "Other-Q4_K_M.gguf")
    put(tmp_path / "one" / "Other-Q8_0.gguf")
    put(tmp_path / "one" / "mmproj-Q8_0.gguf")
    put(tmp_path / "one" / "mmproj-F16.gguf")
    put(tmp_path / "imatrix.gguf")
    found = entries(Source.FOLDER, tmp_path)

    assert {name: [path.name for path in entry.main.found.projectors] for name, entry in found.items()} == {
        "Blind-7B:Q4_K_M": [],
        "Eye-7B:Q4_K_M": ["mmproj-Eye-7B-f16.gguf"],
        "Other:Q4_K_M": ["mmproj-F16.gguf"],
        "Other:Q8_0": ["mmproj-F16.gguf"],
    }


def test_the_projector_of_a_repository_serves_all_its_folders(tmp_path: Path) -> None:
    put_hub(tmp_path, "o/Eye-GGUF", "mmproj-BF16.gguf")
    put_hub(tmp_path, "o/Eye-GGUF", "Q8_0/Eye-Q8_0-00001-of-00002.gguf")
    put_hub(tmp_path, "o/Eye-GGUF", "Q8_0/Eye-Q8_0-00002-of-00002.gguf")
    (entry,) = entries(Source.HUGGING_FACE, tmp_path).values()

    assert (entry.name, entry.problem) == ("hf.co/o/Eye-GGUF:Q8_0", None)
    assert [path.name for path in entry.main.found.projectors] == ["mmproj-BF16.gguf"]
    assert entry.main.found.path.name == "Eye-Q8_0-00001-of-00002.gguf"


def test_of_several_projectors_the_nearest_goes_along(tmp_path: Path) -> None:
    for folder in ("small", "large"):
        put_hub(tmp_path, "o/Eye-GGUF", f"{folder}/{folder}-Q8_0.gguf")
        put_hub(tmp_path, "o/Eye-GGUF", f"{folder}/mmproj-Q8_0.gguf")
    put_hub(tmp_path, "o/Eye-GGUF", "other/other-Q4_0.gguf")
    put_hub(tmp_path, "o/Eye-GGUF", "mmproj-F16.gguf")
    found = entries(Source.HUGGING_FACE, tmp_path).values()

    assert {str(path.relative_to(path.parents[1])) for entry in found for path in entry.main.found.projectors} == {
        "small/mmproj-Q8_0.gguf",
        "large/mmproj-Q8_0.gguf",
        f"{COMMIT}/mmproj-F16.gguf",
    }


def test_something_else_under_the_name_of_a_model_is_found_out_when_it_is_read(tmp_path: Path) -> None:
    put(tmp_path / "page.gguf", b"<!DOCTYPE html><title>404 Not Found</title>")
    put(tmp_path / "lora.gguf", gguf_bytes({"general.type": "adapter"}))
    put(tmp_path / "old.gguf", gguf_bytes({"general.architecture": "gptoss"}))
    index = index_of((Source.FOLDER, tmp_path))
    lora, old, page = index.listing().entries

    assert "as only Ollama reads it; use it @ollama" in (index.facts(old.main.found).problem or "")
    assert "is a LoRA adapter, not a model" in (index.facts(lora.main.found).problem or "")
    assert "a web page; the download went wrong" in (index.facts(page.main.found).problem or "")


def test_files_that_cannot_be_models_are_known_unread(tmp_path: Path) -> None:
    put(tmp_path / "empty" / "a.gguf", b"")
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "a.gguf")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "a.gguf").symlink_to("nowhere")
    (tmp_path / "circle").mkdir()
    (tmp_path / "circle" / "a.gguf").symlink_to("a.gguf")
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "a.gguf").symlink_to("/dev/zero")

    assert problem(Source.FOLDER, tmp_path / "empty") == "a.gguf has 0 bytes, which is no model"
    assert problem(Source.FOLDER, tmp_path / "fifo") == "a.gguf is not a regular file"
    assert problem(Source.FOLDER, tmp_path / "gone") == "a.gguf is a link to a file that is not there"
    assert "cannot be read" in (problem(Source.FOLDER, tmp_path / "circle") or "")
    assert problem(Source.FOLDER, tmp_path / "device") == "a.gguf is not a regular file"


def test_a_folder_with_the_name_of_a_model_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "a.gguf" / "b.gguf")
    assert list(entries(Source.FOLDER, tmp_path)) == ["b"]


def test_links_out_of_our_own_folder_are_refused_and_others_followed(tmp_path: Path) -> None:
    target = put(tmp_path / "elsewhere" / "x.gguf")
    for name in ("own", "studio"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.gguf").symlink_to(target)

    assert "is a link that leads out of" in (problem(Source.OWN, tmp_path / "own") or "")
    assert problem(Source.LM_STUDIO, tmp_path / "studio") is None


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "x.gguf")
    (tmp_path / "models" / "deep").mkdir(parents=True)
    (tmp_path / "models" / "there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "models" / "deep" / "round").symlink_to(tmp_path / "models")
    listing = index_of((Source.FOLDER, tmp_path / "models")).listing()

    assert listing.entries == ()
    assert [complaint.path.name for complaint in listing.complaints] == ["there", "round"]


def test_folders_that_are_too_deep_or_too_full_are_complained_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path.joinpath(*"abcdefghijk") / "x.gguf")
    (complaint,) = index_of((Source.FOLDER, tmp_path)).listing().complaints
    assert "more than 8 folders deep" in complaint.problem

    monkeypatch.setattr(lookout_module, "_MOST_ENTRIES", 3)
    (complaint,) = index_of((Source.FOLDER, tmp_path)).listing().complaints
    assert "more than 3 files" in complaint.problem


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_folders_that_cannot_be_read_are_complained_about(tmp_path: Path) -> None:
    put(tmp_path / "closed" / "inside" / "a.gguf")
    put(tmp_path / "c.gguf").chmod(0)
    (tmp_path / "closed").chmod(0)
    cache = HeaderCache(tmp_path / "closed" / "headers.json")
    inside = tmp_path / "closed" / "inside"
    index = index_of((Source.FOLDER, tmp_path), *((source, inside) for source in Source), cache=cache)

    (entry,) = index.listing().entries
    assert (index.facts(entry.main.found).problem or "").endswith("c.gguf cannot be read: Permission denied")
    assert "cannot be read: Permission denied" in {complaint.problem for complaint in index.listing().complaints}
    index.save()
    (tmp_path / "closed").chmod(0o700)


def test_a_folder_that_fails_while_it_is_listed_is_complained_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "bad" / "a.gguf")
    put(tmp_path / "good" / "b.gguf")
    real = os.scandir

    def failing(path: Path) -> object:
        if Path(path).name == "bad":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", failing)
    listing = index_of((Source.FOLDER, tmp_path)).listing()

    assert [entry.name for entry in listing.entries] == ["b"]
    assert [complaint.problem for complaint in listing.complaints] == ["cannot be read: Permission denied"]


def test_a_configured_folder_that_is_not_there_is_complained_about(tmp_path: Path) -> None:
    for missing in (tmp_path / "later", tmp_path / "a\0b"):
        index = index_of((Source.FOLDER, missing), (Source.LM_STUDIO, missing), (Source.OLLAMA, missing))
        first, *_ = index.listing().complaints
        assert first.problem == "is no folder that can be read; correct model_dirs in the configuration"

    index = index_of((Source.FOLDER, tmp_path / "later"), (Source.HUGGING_FACE, tmp_path / "later"))
    assert len(index.listing().complaints) == 1
    (tmp_path / "later").mkdir()
    assert index.refresh().complaints == ()


def test_a_file_that_vanishes_while_it_is_listed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.gguf")
    put(tmp_path / "b.gguf")
    real = Path.is_symlink

    def vanishing(path: Path) -> bool:
        if path.name == "a.gguf":
            path.unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(Path, "is_symlink", vanishing)
    listing = index_of((Source.FOLDER, tmp_path)).listing()
    assert {entry.name: entry.problem for entry in listing.entries} == {"a": "a.gguf is gone", "b": None}


def test_names_that_are_not_text_are_listed(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/m\xff-Q8_0.gguf"
    with open(path, "wb") as file:  # noqa: PTH123 - a path of bytes
        file.write(gguf_bytes())
    index = index_of((Source.FOLDER, tmp_path))

    assert [entry.name for entry in index.listing().entries] == ["m:Q8_0"]
    assert index.facts(index.listing().entries[0].main.found).architecture == "llama"


def test_our_own_folder_may_hold_repositories(tmp_path: Path) -> None:
    put(tmp_path / "hf.co" / "owner" / "Name-GGUF" / "Name-Q4_K_M.gguf")
    put(tmp_path / "hf.co" / "stray.gguf")
    assert list(entries(Source.OWN, tmp_path)) == ["hf.co/owner/Name-GGUF:Q4_K_M", "stray"]


def test_the_cache_lists_what_main_has_and_older_files_that_it_lacks(tmp_path: Path) -> None:
    put_hub(tmp_path, "o/R", "a-Q4_K_M.gguf", new := gguf_bytes({"general.name": "new"}))
    put_hub(tmp_path, "o/R", "a-Q4_K_M.gguf", gguf_bytes({"general.name": "old"}), commit=OTHER_COMMIT)
    put_hub(tmp_path, "o/R", "a-Q8_0.gguf", gguf_bytes({"general.name": "gone"}), commit=OTHER_COMMIT)
    found = entries(Source.HUGGING_FACE, tmp_path)

    assert list(found) == ["hf.co/o/R:Q4_K_M", "hf.co/o/R:Q8_0"]
    assert found["hf.co/o/R:Q4_K_M"].main.found.path.read_bytes() == new
    assert found["hf.co/o/R:Q4_K_M"].digest is not None


def test_a_cache_without_links_works_without_digests(tmp_path: Path) -> None:
    put(tmp_path / "models--o--R" / "snapshots" / COMMIT / "a-Q4_K_M.gguf")
    (entry,) = entries(Source.HUGGING_FACE, tmp_path).values()
    assert (entry.name, entry.problem, entry.digest) == ("hf.co/o/R:Q4_K_M", None, None)


def test_links_out_of_a_repository_of_the_cache_are_refused(tmp_path: Path) -> None:
    link = put_hub(tmp_path, "o/R", "a-Q4_K_M.gguf")
    link.unlink()
    link.symlink_to(put(tmp_path / "elsewhere.gguf"))
    assert "leads out of" in (problem(Source.HUGGING_FACE, tmp_path) or "")


def test_a_blob_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    put_hub(tmp_path, "o/R", "a-Q4_K_M.gguf")
    shutil.rmtree(tmp_path / "models--o--R" / "blobs")
    assert problem(Source.HUGGING_FACE, tmp_path) == "a-Q4_K_M.gguf is a link to a file that is not there"


def test_repositories_without_owner_and_other_folders_of_the_cache(tmp_path: Path) -> None:
    put_hub(tmp_path, "gpt2", "gpt2-Q8_0.gguf")
    put_hub(tmp_path, "o/R", "config.json", b"{}")
    put(tmp_path / "datasets--o--R" / "snapshots" / COMMIT / "a.gguf")
    put(tmp_path / "models--o--S" / "snapshots" / "not-a-commit" / "a.gguf")
    assert list(entries(Source.HUGGING_FACE, tmp_path)) == ["gpt2:Q8_0"]
