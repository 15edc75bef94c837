"""What the stand-in can pull: models that are somewhere else, blob by blob, and what has come of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from fakes.catalogue import Catalogue, FakeModel, Name

_CONFIG_BYTES = 485


class Registry:
    """Pulls models into a catalogue as ``server/images.go`` does; lives on the stand-in's loop.

    A pull that its client leaves keeps what has come, and the next one goes on from there.
    """

    def __init__(self, catalogue: Catalogue, models: Iterable[FakeModel], lines_per_blob: int) -> None:
        self._catalogue = catalogue
        self._offered = {model.full_name.key: model for model in models}
        self._lines_per_blob = lines_per_blob
        self._come: dict[str, int] = {}

    def offer(self, model: FakeModel) -> None:
        """Have a model that can be pulled."""
        self._offered[model.full_name.key] = model

    def pull(self, name: Name) -> Iterator[dict[str, Any]]:
        """Pull a model, line by line; each line is true when it is made."""
        yield {"status": "pulling manifest"}
        model = self._offered.get(name.key)
        if model is None:
            yield {"error": "pull model manifest: file does not exist"}
            return
        for digest, size in _blobs(model):
            yield from self._blob(digest, size)
        yield {"status": "verifying sha256 digest"}
        yield {"status": "writing manifest"}
        self._catalogue.add(model)
        yield {"status": "success"}

    def _blob(self, digest: str, size: int) -> Iterator[dict[str, Any]]:
        line = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": size}
        if self._come.get(digest) == size:
            yield line | {"completed": size}
            return
        step = max(size // self._lines_per_blob, 1)
        while (done := self._come.get(digest, 0)) < size:
            yield line | ({"completed": done} if done else {})  # Go leaves out zeros
            self._come[digest] = min(done + step, size)
        yield line | {"completed": size}

    def remove(self, model: FakeModel) -> None:
        """Take a model away, and its blobs, unless another one has them."""
        self._catalogue.remove(model.name)
        kept = {digest for other in self._catalogue for digest, _ in _blobs(other)}
        for digest, _ in _blobs(model):
            if digest not in kept:
                self._come.pop(digest, None)


def _blobs(model: FakeModel) -> Iterator[tuple[str, int]]:
    yield f"sha256:{hashlib.sha256(model.sha256.encode()).hexdigest()}", model.size
    yield f"sha256:{hashlib.sha256(b'config' + model.sha256.encode()).hexdigest()}", _CONFIG_BYTES
