"""How long it takes to list many models: the first time, again, after a restart, and reading all headers.

The models are made for the purpose, with small headers or with vocabularies of a given size; nothing is loaded.

    python benchmarks/model_listing.py --models 1000
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from server.store.header_cache import HeaderCache
from server.store.model_index import ModelIndex
from server.store.places import Place, Source


def write_models(folder: Path, count: int, vocabulary: int) -> None:
    """Write model files, ten to a folder, of different sizes."""
    for number in range(count):
        path = folder / f"family-{number // 10}" / f"model-{number}-Q4_K_M.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_header(f"model {number}", vocabulary) + bytes(number))


def _header(name: str, vocabulary: int) -> bytes:
    tokens = b"".join(_string(f"token{number}") for number in range(vocabulary))
    entries = (
        _string("general.architecture") + struct.pack("<I", 8) + _string("llama"),
        _string("general.name") + struct.pack("<I", 8) + _string(name),
        _string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, vocabulary) + tokens,
    )
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def seconds(work: Callable[[], object], rounds: int = 1) -> float:
    """Return the shortest time of some rounds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def measure(folder: Path, cache_file: Path, rounds: int) -> dict[str, float]:
    """Measure an index over one folder; milliseconds."""
    place = Place(Source.FOLDER, folder)

    def fresh() -> ModelIndex:
        return ModelIndex([place], HeaderCache(cache_file), now_ns=lambda: time.time_ns() + (1 << 42))

    def list_with_facts() -> None:
        index = fresh()
        for entry in index.listing().entries:
            index.facts(entry.main.found)
        index.save()

    known = fresh()
    known.listing()
    figures = {
        "first list": seconds(lambda: fresh().listing(), rounds),
        "again, nothing changed": seconds(known.refresh, rounds),
        "list with all headers, read": seconds(list_with_facts),
        "list with all headers, remembered": seconds(list_with_facts, rounds),
        "one name found": seconds(lambda: known.listing().find("model-7"), rounds),
    }
    return {name: round(1000 * value, 3) for name, value in figures.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000, help="number of files")
    parser.add_argument("--vocabulary", type=int, default=100, help="tokens in each header")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the shortest counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        write_models(Path(directory, "models"), arguments.models, arguments.vocabulary)
        figures = measure(Path(directory, "models"), Path(directory, "headers.json"), arguments.rounds)
    if arguments.json:
        json.dump({"models": arguments.models, "vocabulary": arguments.vocabulary, "milliseconds": figures}, sys.stdout)
        return
    for name, milliseconds in figures.items():
        print(f"{name:36} {milliseconds:10.3f} ms")


if __name__ == "__main__":
    main()
