"""Stores of models as other programs lay them out, with files that are small and have real headers."""

import json
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from server.store.header_cache import HeaderCache
from server.store.model_index import ModelIndex
from server.store.places import Place, Source

HOUR_NS = 3_600_000_000_000
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def gguf_bytes(entries: Mapping[str, str] = {}, padding: int = 0) -> bytes:
    """Return a header without tensors, and ``padding`` bytes more."""
    named = {"general.architecture": "llama", **entries}
    text = b"".join(_string(key) + struct.pack("<I", 8) + _string(value) for key, value in named.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(named)) + text + bytes(padding)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def put(path: Path, data: bytes | None = None) -> Path:
    """Write a model file, with contents of its own unless they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf_bytes({"general.name": str(path)}) if data is None else data)
    return path


def put_blob(blobs: Path, data: bytes) -> str:
    """Write a blob of Ollama; returns its digest."""
    digest = sha256(data).hexdigest()
    put(blobs / f"sha256-{digest}", data)
    return digest


def put_ollama(
    root: Path,
    name: str,
    weights: bytes | None = None,
    layers: Iterable[tuple[str, bytes]] = (),
    config: Mapping[str, str] | None = None,
) -> Path:
    """Write a model of Ollama, ``HOST/NAMESPACE/MODEL/TAG``; returns its manifest."""
    blobs = root / "blobs"
    contents = ([("model", gguf_bytes({"general.name": name}))] if weights is None else [("model", weights)]) + [
        *layers
    ]
    configured = json.dumps({"model_format": "gguf", "model_family": "llama", **(config or {})}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": _layer("application/vnd.docker.container.image.v1+json", blobs, configured),
        "layers": [_layer(f"application/vnd.ollama.image.{kind}", blobs, data) for kind, data in contents],
    }
    return put(root / "manifests" / name, json.dumps(manifest).encode())


def _layer(media_type: str, blobs: Path, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{put_blob(blobs, data)}", "size": len(data)}


def put_hub(root: Path, repository: str, file: str, data: bytes | None = None, commit: str = COMMIT) -> Path:
    """Write a file of a repository to a cache of Hugging Face, as its libraries do; returns its snapshot's file."""
    data = gguf_bytes({"general.name": repository + file}) if data is None else data
    home = root / ("models--" + repository.replace("/", "--"))
    blob = put(home / "blobs" / sha256(data).hexdigest(), data)
    link = home / "snapshots" / commit / file
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    put(home / "refs" / "main", COMMIT.encode())
    return link


def index_of(
    *places: tuple[Source, Path],
    cache: HeaderCache | None = None,
    short_names: Callable[[str], Sequence[str]] = lambda _: (),
    clock: Callable[[], float] = time.monotonic,
) -> ModelIndex:
    """Return an index that looks at an hour when all changes are long past."""
    there = [Place(source, path) for source, path in places]
    return ModelIndex(there, cache or HeaderCache(None), short_names=short_names, clock=clock, now_ns=_in_an_hour)


def _in_an_hour() -> int:
    return time.time_ns() + HOUR_NS
