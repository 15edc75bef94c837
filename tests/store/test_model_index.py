"""The index: every model once, under names that follow rules, and nothing read without need."""

import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from made_stores import HOUR_NS, gguf_bytes, index_of, put, put_hub, put_ollama

from server.store import lookout
from server.store.header_cache import HeaderCache
from server.store.model_index import Listing, ModelIndex
from server.store.places import Place, Source
from server.store.recommended import load_recommended


def names(listing: Listing) -> list[str | None]:
    return [entry.name for entry in listing.entries]


def problems(listing: Listing) -> dict[str | None, str | None]:
    return {entry.name: entry.problem for entry in listing.entries}


_opened: Counter[str] = Counter()


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        _opened[os.fspath(arguments[0])] += 1


sys.addaudithook(_count)


@pytest.fixture
def opened() -> Counter[str]:
    """Count what is opened, by path and by whatever way."""
    _opened.clear()
    return _opened


def test_lists_all_places_together(tmp_path: Path) -> None:
    put(tmp_path / "own" / "Mine-Q4_K_M.gguf")
    put(tmp_path / "mine" / "old" / "other.q8_0.gguf")
    put_ollama(tmp_path / "ollama", "registry.ollama.ai/library/llama3.1/8b")
    put_hub(tmp_path / "hub", "owner/Name-GGUF", "Name-Q5_K_S.gguf")
    put(tmp_path / "studio" / "maker" / "Thing-GGUF" / "Thing-Q6_K.gguf")
    listing = index_of(
        (Source.OWN, tmp_path / "own"),
        (Source.FOLDER, tmp_path / "mine"),
        (Source.OLLAMA, tmp_path / "ollama"),
        (Source.HUGGING_FACE, tmp_path / "hub"),
        (Source.LM_STUDIO, tmp_path / "studio"),
    ).listing()

    assert names(listing) == [
        "hf.co/maker/Thing-GGUF:Q6_K",
        "hf.co/owner/Name-GGUF:Q5_K_S",
        "llama3.1:8b",
        "Mine:Q4_K_M",
        "other:Q8_0",
    ]
    assert not listing.complaints
    assert set(problems(listing).values()) == {None}


def test_a_thousand_files_open_nothing(tmp_path: Path, opened: Counter[str]) -> None:
    for number in range(1000):
        put(tmp_path / "models" / f"{number % 10}" / f"model-{number}-Q4_K_M.gguf", gguf_bytes(padding=number))
    opened.clear()
    index = index_of((Source.FOLDER, tmp_path / "models"))

    assert len(index.listing().entries) == 1000
    assert index.refresh() is index.refresh()
    assert not opened

    index.facts(index.listing().entries[7].main.found)
    index.facts(index.listing().entries[7].main.found)
    assert sum(opened.values()) == 1


def test_what_was_read_is_remembered_between_runs(tmp_path: Path, opened: Counter[str]) -> None:
    put(tmp_path / "models" / "a.gguf", gguf_bytes({"general.name": "A", "general.license": "mit"}))
    opened.clear()
    for _ in range(3):
        index = index_of((Source.FOLDER, tmp_path / "models"), cache=HeaderCache(tmp_path / "cache" / "headers.json"))
        facts = index.facts(index.listing().entries[0].main.found)
        index.save()

        assert (facts.architecture, facts.name, facts.license) == ("llama", "A", "mit")
    assert opened[str(tmp_path / "models" / "a.gguf")] == 1


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = put(tmp_path / "a.gguf", gguf_bytes({"general.name": "old"}))
    index = index_of((Source.FOLDER, tmp_path))
    assert index.facts(index.listing().entries[0].main.found).name == "old"

    path.write_bytes(gguf_bytes({"general.name": "newer"}))
    assert index.facts(index.refresh().entries[0].main.found).name == "newer"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "files": [1]}', '{"version": 9, "files": {}}', "[" * 9999]
)
def test_a_broken_cache_is_no_cache(tmp_path: Path, text: str) -> None:
    put(tmp_path / "models" / "a.gguf")
    (tmp_path / "headers.json").write_text(text)
    index = index_of((Source.FOLDER, tmp_path / "models"), cache=HeaderCache(tmp_path / "headers.json"))

    assert index.facts(index.listing().entries[0].main.found).architecture == "llama"
    index.save()
    assert len(json.loads((tmp_path / "headers.json").read_text())["files"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"identity": [1, 2]},
        {"identity": "x"},
        {"facts": {"architecture": "gpt"}},
        {"facts": "x"},
        {"sample": 5},
        {"digest": []},
    ],
)
def test_broken_records_are_forgotten(tmp_path: Path, change: dict[str, object]) -> None:
    put(tmp_path / "models" / "a.gguf")
    place, file = (Source.FOLDER, tmp_path / "models"), tmp_path / "headers.json"
    index = index_of(place, cache=HeaderCache(file))
    index.facts(index.listing().entries[0].main.found)
    index.save()
    content = json.loads(file.read_text())
    next(iter(content["files"].values())).update(change)
    file.write_text(json.dumps(content))

    again = index_of(place, cache=HeaderCache(file))
    assert again.known_facts(again.listing().entries[0].main.found) is None


def test_the_cache_drops_files_that_are_gone(tmp_path: Path) -> None:
    path, file = put(tmp_path / "models" / "a.gguf"), tmp_path / "headers.json"
    for name in ("b", "c"):
        index = index_of((Source.FOLDER, tmp_path / "models"), cache=HeaderCache(file))
        for entry in index.listing().entries:
            index.facts(entry.main.found)
        index.save()
        path.unlink()
        path = put(tmp_path / "models" / f"{name}.gguf")

    assert [Path(each).name for each in json.loads(file.read_text())["files"]] == ["b.gguf"]


def test_processes_share_what_they_learned(tmp_path: Path, opened: Counter[str]) -> None:
    for padding, name in enumerate("ab"):
        put(tmp_path / name / "x.gguf", gguf_bytes({"general.name": name}, padding))
    opened.clear()
    caches = [HeaderCache(tmp_path / "headers.json") for _ in range(3)]
    indices = [index_of((Source.FOLDER, tmp_path / name), cache=caches[number]) for number, name in enumerate("ab")]
    for index in indices:
        index.facts(index.listing().entries[0].main.found)
    for index in indices:
        index.save()
    both = index_of((Source.FOLDER, tmp_path / "a"), (Source.FOLDER, tmp_path / "b"), cache=caches[2])

    assert [both.facts(entry.main.found).name for entry in both.listing().entries] == ["b", "a"]
    assert max(count for path, count in opened.items() if path.endswith(".gguf")) == 1


def test_a_noted_digest_tells_copies(tmp_path: Path) -> None:
    data = gguf_bytes(padding=10)
    path = put(tmp_path / "own" / "a.gguf", data)
    put_ollama(tmp_path / "ollama", "registry.ollama.ai/library/b/latest", data)
    cache = HeaderCache(None)
    state = lookout.Lookout(0).file(path, None)
    cache.note_digest(state, "A" * 64)
    listing = index_of((Source.OWN, tmp_path / "own"), (Source.OLLAMA, tmp_path / "ollama"), cache=cache).listing()

    assert [(entry.name, entry.digest == "a" * 64) for entry in listing.entries] == [("a", True), ("b:latest", False)]


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "models" / "a.gguf")
    put(tmp_path / "file")
    index = index_of((Source.FOLDER, tmp_path / "models"), cache=HeaderCache(tmp_path / "file" / "headers.json"))
    index.facts(index.listing().entries[0].main.found)
    index.save()

    assert "cannot be remembered" in caplog.text


def test_notices_changes(tmp_path: Path) -> None:
    put(tmp_path / "a.gguf")
    index = index_of((Source.FOLDER, tmp_path))
    first = index.listing()
    assert names(index.refresh()) == ["a"]
    assert index.refresh() is first

    put(tmp_path / "deep" / "b.gguf")
    assert names(index.refresh()) == ["a", "b"]
    put(tmp_path / "deep" / "c.gguf")
    assert names(index.refresh()) == ["a", "b", "c"]
    (tmp_path / "a.gguf").unlink()
    assert names(index.refresh()) == ["b", "c"]


def test_looks_again_only_after_a_while_or_for_a_name_that_is_missing(tmp_path: Path) -> None:
    now = 0.0
    place = Place(Source.FOLDER, tmp_path)
    index = ModelIndex([place], HeaderCache(None), clock=lambda: now)
    assert names(index.listing()) == []
    put(tmp_path / "a.gguf")
    assert names(index.listing()) == []
    assert index.find("a") is None
    now += 1
    assert names(index.listing()) == []
    assert index.find("a") is not None
    put(tmp_path / "b.gguf")
    now += 3
    assert names(index.listing()) == ["a", "b"]


def test_a_change_within_the_clock_tick_of_the_last_one_is_noticed(tmp_path: Path) -> None:
    put(tmp_path / "a.gguf")
    moment = tmp_path.stat().st_mtime_ns
    index = ModelIndex([Place(Source.FOLDER, tmp_path)], HeaderCache(None), now_ns=lambda: moment + 1)
    index.listing()
    put(tmp_path / "b.gguf")
    os.utime(tmp_path, ns=(moment, moment))

    assert names(index.refresh()) == ["a", "b"]


def test_a_place_that_appears_later_is_found(tmp_path: Path) -> None:
    index = index_of((Source.FOLDER, tmp_path / "later"), (Source.OLLAMA, tmp_path / "ollama"))
    assert names(index.listing()) == []
    put(tmp_path / "later" / "a.gguf")
    put_ollama(tmp_path / "ollama", "registry.ollama.ai/library/b/latest")

    assert names(index.refresh()) == ["a", "b:latest"]


def test_several_threads_see_the_same(tmp_path: Path) -> None:
    for number in range(50):
        put(tmp_path / f"m{number}.gguf", gguf_bytes(padding=number % 7))
    index = index_of((Source.FOLDER, tmp_path), cache=HeaderCache(tmp_path / "cache" / "headers.json"))

    def look(_: int) -> list[str]:
        facts = [index.facts(entry.main.found).architecture for entry in index.refresh().entries]
        index.save()
        return facts

    with ThreadPoolExecutor(8) as threads:
        assert {tuple(facts) for facts in threads.map(look, range(40))} == {("llama",) * 7}


def test_copies_with_the_same_digest_are_shown_once(tmp_path: Path, opened: Counter[str]) -> None:
    data = gguf_bytes({"general.name": "the same"})
    put_hub(tmp_path / "hub", "owner/Name-GGUF", "Name-Q5_K_S.gguf", data)
    put_ollama(tmp_path / "ollama", "hf.co/owner/Name-GGUF/Q5_K_S", data, [("params", b"{}")])
    put_ollama(tmp_path / "ollama", "registry.ollama.ai/library/name/latest", data, [("params", b"{}")])
    opened.clear()
    listing = index_of((Source.HUGGING_FACE, tmp_path / "hub"), (Source.OLLAMA, tmp_path / "ollama")).listing()

    (entry,) = listing.entries
    assert entry.name == "hf.co/owner/Name-GGUF:Q5_K_S"
    assert "name:latest" in entry.names
    assert entry.digest is not None
    assert not [path for path in opened if entry.digest in path]
    found = listing.find("name")
    assert found is not None
    assert found.found.ollama is not None


def test_the_same_weights_with_another_template_are_another_model(tmp_path: Path) -> None:
    data = gguf_bytes()
    put(tmp_path / "models" / "bare.gguf", data)
    put_ollama(tmp_path / "ollama", "registry.ollama.ai/library/plain/latest", data)
    put_ollama(tmp_path / "ollama", "registry.ollama.ai/library/copied/latest", data)
    put_ollama(tmp_path / "ollama", "registry.ollama.ai/library/pirate/latest", data, [("system", b"Arr!")])
    listing = index_of((Source.OLLAMA, tmp_path / "ollama"), (Source.FOLDER, tmp_path / "models")).listing()

    assert [entry.names for entry in listing.entries] == [
        ("copied:latest", "plain:latest", "bare", "models/bare"),
        ("pirate:latest",),
    ]


def test_copies_without_a_digest_are_found_by_samples(tmp_path: Path, opened: Counter[str]) -> None:
    data = gguf_bytes(padding=50_000)
    put(tmp_path / "one" / "model-Q8_0.gguf", data)
    put(tmp_path / "two" / "copy-Q8_0.gguf", data)
    put(tmp_path / "two" / "differs-Q8_0.gguf", data[:-1] + b"x")
    put(tmp_path / "two" / "larger-Q8_0.gguf", data + b"x")
    opened.clear()
    listing = index_of((Source.FOLDER, tmp_path / "one"), (Source.FOLDER, tmp_path / "two")).listing()

    assert names(listing) == ["differs:Q8_0", "larger:Q8_0", "model:Q8_0"]
    assert listing.entries[2].names[:2] == ("model:Q8_0", "one/model:Q8_0")
    assert "copy:Q8_0" in listing.entries[2].names
    assert len(opened) == 3


def test_a_file_reached_in_two_ways_is_shown_once(tmp_path: Path) -> None:
    path = put(tmp_path / "one" / "a.gguf")
    (tmp_path / "two").mkdir()
    os.link(path, tmp_path / "two" / "hard.gguf")
    (tmp_path / "two" / "soft.gguf").symlink_to(path)
    index = index_of((Source.FOLDER, tmp_path / "one"), (Source.FOLDER, tmp_path / "two"), (Source.FOLDER, tmp_path))

    (entry,) = index.listing().entries
    assert entry.name == "a"
    assert {"hard", "soft"} < set(entry.names)


def test_different_digests_are_different_models_whatever_their_samples(tmp_path: Path) -> None:
    data = gguf_bytes(padding=1_000_000)
    for name, each in (("a", data), ("b", data[:-90_000] + b"x" + data[-89_999:])):
        put_ollama(tmp_path / "ollama", f"registry.ollama.ai/library/{name}/latest", each)
    put(tmp_path / "models" / "bare.gguf", data)
    listing = index_of((Source.OLLAMA, tmp_path / "ollama"), (Source.FOLDER, tmp_path / "models")).listing()

    assert [entry.name for entry in listing.entries] == ["a:latest", "b:latest"]


def test_a_name_goes_to_the_first_place_and_the_other_file_gets_a_longer_one(tmp_path: Path) -> None:
    put(tmp_path / "own" / "m-Q4_K_M.gguf")
    put(tmp_path / "mine" / "m-Q4_K_M.gguf")
    put(tmp_path / "mine" / "deep" / "m-Q4_K_M.gguf")
    listing = index_of((Source.OWN, tmp_path / "own"), (Source.FOLDER, tmp_path / "mine")).listing()

    assert names(listing) == ["deep/m:Q4_K_M", "m:Q4_K_M", "mine/m:Q4_K_M"]
    found = listing.find("M:q4_k_m")
    assert found is not None
    assert found.found.path == tmp_path / "own" / "m-Q4_K_M.gguf"


def test_dynamic_quantizations_are_found_by_the_plain_ones_name(tmp_path: Path) -> None:
    put(tmp_path / "hf.co" / "unsloth" / "M-GGUF" / "M-UD-Q4_K_M.gguf")
    put(tmp_path / "hf.co" / "unsloth" / "M-GGUF" / "M-UD-Q8_K_XL.gguf")
    put(tmp_path / "hf.co" / "unsloth" / "M-GGUF" / "M-Q8_K_XL.gguf")
    listing = index_of((Source.OWN, tmp_path)).listing()
    meant = {name: listing.find(f"hf.co/unsloth/M-GGUF:{name}") for name in ("Q4_K_M", "q8_k_xl", "Q6_K")}
    assert {name: None if each is None else each.found.path.stem for name, each in meant.items()} == {
        "Q4_K_M": "M-UD-Q4_K_M",
        "q8_k_xl": "M-Q8_K_XL",
        "Q6_K": None,
    }


MISTRAL = "hf.co/bartowski/Mistral-7B-Instruct-v0.3-GGUF"


@pytest.mark.parametrize(
    ("files", "meanings"),
    [
        (["Q4_K_M"], {"mistral:7b": "Q4_K_M", "mistral": "Q4_K_M", "mistral:Q4_K_M": "Q4_K_M"}),
        (["Q8_0"], {"mistral:7b": "Q8_0", "mistral:Q8_0": "Q8_0", "Mistral:latest": "Q8_0", "mistral:Q4_0": None}),
        (["Q4_K_M", "Q8_0", "IQ2_M"], {"mistral:7b": "Q4_K_M", "mistral:q8_0": "Q8_0", "mistral:IQ2_M": "IQ2_M"}),
    ],
)
def test_recommended_models_have_short_names(tmp_path: Path, files: list[str], meanings: dict[str, str | None]) -> None:
    for quantization in files:
        put(tmp_path / MISTRAL / f"Mistral-7B-Instruct-v0.3-{quantization}.gguf")
    listing = index_of((Source.OWN, tmp_path), short_names=load_recommended().names_of).listing()
    found = {name: listing.find(name) for name in meanings}
    assert {name: None if each is None else each.names[0] for name, each in found.items()} == {
        name: None if quantization is None else f"{MISTRAL}:{quantization}" for name, quantization in meanings.items()
    }


def test_a_short_name_is_first_ollamas(tmp_path: Path) -> None:
    put(tmp_path / "own" / MISTRAL / "Mistral-7B-Instruct-v0.3-Q4_K_M.gguf")
    put_ollama(tmp_path / "ollama", "registry.ollama.ai/library/mistral/7b")
    places = ((Source.OWN, tmp_path / "own"), (Source.OLLAMA, tmp_path / "ollama"))
    found = index_of(*places, short_names=load_recommended().names_of).listing().find("mistral:7b")
    assert found is not None
    assert found.found.source is Source.OLLAMA


def test_what_cannot_be_used_takes_no_name_from_what_can(tmp_path: Path) -> None:
    put(tmp_path / "own" / "m-Q4_K_M-00001-of-00002.gguf")
    put(tmp_path / "mine" / "m-Q4_K_M.gguf")
    listing = index_of((Source.OWN, tmp_path / "own"), (Source.FOLDER, tmp_path / "mine")).listing()
    found = listing.find("m")

    assert found is not None
    assert found.found.path.parent.name == "mine"


def test_a_file_whose_names_are_all_taken_is_listed_with_that_problem(tmp_path: Path) -> None:
    put(tmp_path / "a b.gguf")
    put(tmp_path / "a-b.gguf")
    assert names(index_of((Source.FOLDER, tmp_path)).listing()) == ["a-b", f"{tmp_path.name}/a-b"]

    put(tmp_path / "a~b.gguf")
    nameless = index_of((Source.FOLDER, tmp_path)).listing().entries[-1]
    assert nameless.name is None
    assert nameless.problem == "has no name: a-b is another file; rename one of them"


def test_a_name_without_variant_means_the_default_or_the_only_one(tmp_path: Path) -> None:
    for file in ("a-Q8_0", "b-Q8_0", "b-Q4_K_M", "c-Q8_0", "c-Q6_K"):
        put(tmp_path / f"{file}.gguf")
    put_hub(tmp_path / "hub", "o/R-GGUF", "R-Q8_0.gguf")
    listing = index_of((Source.FOLDER, tmp_path), (Source.HUGGING_FACE, tmp_path / "hub")).listing()

    def meant(name: str) -> str | None:
        found = listing.find(name)
        return found.names[0] if found else None

    assert [meant(name) for name in ("a", "B", "c", "hf.co/o/r-gguf")] == [
        "a:Q8_0",
        "b:Q4_K_M",
        None,
        "hf.co/o/R-GGUF:Q8_0",
    ]
    assert sorted(listing.variants("C")) == ["c:Q6_K", "c:Q8_0"]


def test_time_does_not_matter_to_an_index_that_is_asked_for_the_present(tmp_path: Path) -> None:
    index = ModelIndex([Place(Source.OWN, tmp_path)], HeaderCache(None), clock=lambda: 0.0, now_ns=lambda: HOUR_NS)
    put(tmp_path / "a.gguf")
    assert names(index.refresh()) == ["a"]
