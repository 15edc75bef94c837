"""The models that llama.cpp can load from this machine's disks: listed, described, downloaded and deleted."""

from __future__ import annotations

import asyncio
import difflib
import importlib.util
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from server.backends.llamacpp_inventory import CONFIGURED, Inventory, StockedModel
from server.core.background import in_thread
from server.core.errors import Forbidden, InvalidRequest, ModelInUse, ModelNotFound
from server.core.library import BackendHealth, Deleted, InstalledModel, ModelDetails
from server.core.model_spec import BackendName, ModelSpec, parse_model_spec, split_variant
from server.core.pulling import PullEvent, PullFinished, PullNotice, PullProgress
from server.pool.config import ModelConfig
from server.store.header_cache import HeaderCache
from server.store.hub_listing import ChecksumKind
from server.store.lookout import Lookout, Refused, real_folder
from server.store.model_files import FoundModel
from server.store.model_index import ModelIndex, NamedModel
from server.store.model_names import read_file_name
from server.store.places import Source
from server.store.pull_plan import FOLDER, PullPlan, find_wanted, plan_pull, quantization_of
from server.store.recommended import RecommendedModels
from server.store.removal import Removed, files_of, parts_of, remove, remove_parts

if TYPE_CHECKING:  # it imports httpx, which only a pull needs
    from server.store.download import Downloaded, Downloads

_MAX_SUGGESTIONS = 3
_MAX_COMPARED = 1000
_OWNERS = {
    Source.OLLAMA: "belongs to Ollama: delete it with `llmspell model rm {name}@ollama` or `ollama rm {name}`",
    Source.HUGGING_FACE: "is in the cache of Hugging Face: delete it with `hf cache rm model/{repository}`",
    Source.LM_STUDIO: "belongs to LM Studio: delete it there",
    Source.FOLDER: "is in a folder of [llamacpp] model_dirs, where nothing is deleted: delete the file yourself",
}


class LlamaCppLibrary:
    """``core.library.Library`` over the index of this machine's files, the hub, and files that the configuration names.

    Used on one event loop; the files are looked at in threads.
    """

    backend = BackendName.LLAMACPP

    def __init__(
        self,
        index: ModelIndex,
        cache: HeaderCache,
        own: Path,
        recommended: RecommendedModels,
        configured: Mapping[str, ModelConfig],
        downloads: Callable[[], Downloads],
    ) -> None:
        """Take what it is made of; nothing is looked at yet.

        Args:
            index: the files in folders, ``own`` among them.
            cache: what the index knows of files.
            own: the folder that downloads go to, and the only one in which anything is deleted.
            recommended: models with short names.
            configured: what the configuration says of models, by name or spec.
            downloads: makes what downloads into ``own``; called for the first pull.

        """
        self._index = index
        self._cache = cache
        self._own = own
        self._recommended = recommended
        self._inventory = Inventory(index, configured)
        self._make_downloads = downloads
        self._downloads: Downloads | None = None
        self._making_downloads = asyncio.Lock()
        self._pulling: Counter[Path] = Counter()

    async def health(self) -> BackendHealth:
        """Say whether llama.cpp is installed."""
        is_there = importlib.util.find_spec("llama_cpp") is not None
        reason = None if is_there else "llama-cpp-python is not installed; `pip install llama-cpp-python` builds it"
        return BackendHealth(self.backend, is_up=is_there, reason=reason)

    async def models(self) -> Sequence[InstalledModel]:
        """List the models, each once, those that cannot be used included; opens no model file."""
        return await in_thread(self._inventory.models)

    async def find(self, name: str) -> InstalledModel | None:
        """Return the model that a name means."""
        return await in_thread(self._find, name)

    async def details(self, name: str) -> ModelDetails:
        """Read the headers of a model's files, and what Ollama's manifest or the configuration says of it.

        Raises:
            ModelNotFound: there is no such model.

        """
        return await in_thread(self._details, name)

    def can_pull(self, spec: ModelSpec) -> bool:
        """Whether a name is a repository's or a recommended model's."""
        try:
            find_wanted(spec, None, self._recommended)
        except (InvalidRequest, ModelNotFound):
            return False
        return True

    async def pull(self, spec: ModelSpec, quantization: str | None = None) -> AsyncGenerator[PullEvent]:
        """Download what is missing of a model from Hugging Face, unless the same files are in another place already.

        Raises:
            LlmspellError: while iterating; the name stands for nothing, or it cannot be downloaded or stored.

        """
        wanted = find_wanted(spec, quantization, self._recommended)
        downloads = await self._get_downloads()
        plan = plan_pull(await downloads.listing(wanted.repository), wanted.quantization)
        if (there := await in_thread(self._elsewhere, plan)) is not None:
            yield PullNotice(f"The same files are on this machine already, at {there.found.path}; they are used there.")
            yield PullFinished(there.names[0], self.backend, (there.found.path, *there.found.projectors))
            return
        places = [real_folder(self._own) / plan.place_of(file) for file in plan.files]
        self._pulling.update(places)
        try:
            async with aclosing(downloads.pull(plan)) as events:
                async for event in events:
                    if isinstance(event, PullProgress | PullNotice):
                        yield event
                    else:
                        name = await in_thread(self._taken_in, plan, event)
                        yield PullFinished(name, self.backend, event.paths)
        finally:
            self._pulling.subtract(places)

    async def delete(self, name: str) -> Deleted:
        """Delete a model's files in our own folder, with what only it needs and what is left of its downloads.

        Raises:
            ModelNotFound: there is no such model.
            Forbidden: its files are somebody else's, or the configuration names them.
            ModelInUse: it is being pulled.
            CannotStore: the files cannot be deleted.

        """
        return await in_thread(self._delete, name)

    async def _get_downloads(self) -> Downloads:
        async with self._making_downloads:  # those who pull the same must meet
            if self._downloads is None:
                self._downloads = await in_thread(self._make_downloads)
        return self._downloads

    # everything below runs in threads

    def _find(self, name: str) -> InstalledModel | None:
        model = self._inventory.find(name)
        return None if model is None else model.installed

    def _details(self, name: str) -> ModelDetails:
        from server.backends.llamacpp_details import details_of  # noqa: PLC0415 - what predicts memory is large

        model = self._require(name)
        self._index.facts(model.found)  # which are remembered for the next list
        self._index.save()
        files = (model.found.path,) if model.found.ollama else parts_of(model.found.path)
        return details_of(self._require(name).installed, model.found, model.config, files)

    def _delete(self, name: str) -> Deleted:
        self._index.refresh()
        model = self._inventory.find(name)
        if model is None:
            return self._forget(name)
        self._check_ours(model)
        paths = files_of(model.found, self._index.listing())
        self._check_unused(model, paths)
        removed = remove(paths, self._own)
        parts = self._remove_parts_of(model.found.path)
        self._index.refresh()
        self._index.save()
        freed = removed.freed_bytes + parts.freed_bytes
        return Deleted(model.installed.model or name, self.backend, (*removed.paths, *parts.paths), freed)

    def _forget(self, name: str) -> Deleted:
        """Delete what has come of a model of which nothing is finished.

        Raises:
            ModelNotFound: there is nothing.
            ModelInUse: it is being pulled, maybe by another process.

        """
        with suppress(InvalidRequest, ModelNotFound):
            wanted = find_wanted(parse_model_spec(f"local/{name}"), None, self._recommended)

            def is_meant(path: str) -> bool:
                said = (quantization_of(path) or "").lower()
                return wanted.quantization is None or said == wanted.quantization.lower()

            is_ambiguous = bool(self._index.listing().variants(name))
            removed = Removed() if is_ambiguous else remove_parts(self._own, wanted.repository, is_meant)
            if removed.paths:
                return Deleted(name, self.backend, removed.paths, removed.freed_bytes)
            if removed.is_busy:
                raise _being_pulled(name)
        raise self._not_found(name)

    def _check_ours(self, model: StockedModel) -> None:
        path, source, name = model.found.path, model.found.source, model.installed.model or model.found.path.name
        if model.installed.source == CONFIGURED:
            raise Forbidden(
                f'{path} is what [models."local/{name}"] path in the configuration names. Delete that section, and '
                "then the file yourself.",
                param="model",
            )
        if source is not Source.OWN:
            repository = split_variant(name)[0].removeprefix(f"{FOLDER}/")
            raise Forbidden(f"{path} {_OWNERS[source].format(name=name, repository=repository)}.", param="model")

    def _check_unused(self, model: StockedModel, paths: Sequence[Path]) -> None:
        name, real = model.installed.model, {real_folder(path) for path in paths}
        if any(self._pulling[path] > 0 for path in real):
            raise _being_pulled(name)
        for configured, path in self._inventory.configured.items():
            if real & {real_folder(part) for part in parts_of(path)}:
                raise Forbidden(
                    f'{model.found.path} is what [models."local/{configured}"] path in the configuration names. Delete '
                    "that section first.",
                    param="model",
                )

    def _remove_parts_of(self, path: Path) -> Removed:
        """Delete what is left of downloads of a file, if it is one of a repository."""
        try:
            folder, owner, repository, *rest = real_folder(path.parent).relative_to(real_folder(self._own)).parts
        except ValueError:  # it is not that deep
            return Removed()
        wanted = read_file_name(path.name)
        inside = "/".join(rest)

        def is_meant(other: str) -> bool:
            parent, _, file = other.rpartition("/")
            name = read_file_name(file)
            return parent == inside and name is not None and wanted is not None and name.stem == wanted.stem

        return remove_parts(self._own, f"{owner}/{repository}", is_meant) if folder == FOLDER else Removed()

    def _require(self, name: str) -> StockedModel:
        model = self._inventory.find(name)
        if model is None:
            raise self._not_found(name)
        return model

    def _not_found(self, name: str) -> ModelNotFound:
        close = difflib.get_close_matches(name, self._inventory.names()[:_MAX_COMPARED], n=_MAX_SUGGESTIONS, cutoff=0.5)
        closest = self._index.listing().variants(name) or close
        alike = f" Did you mean {' or '.join(closest[:_MAX_SUGGESTIONS])}?" if closest else ""
        return ModelNotFound(
            f"llama.cpp has no model {name!r} on this machine.{alike} `llmspell model list` shows what there is; "
            f"`llmspell model pull local/{name}@llamacpp` downloads it.",
            param="model",
        )

    def _elsewhere(self, plan: PullPlan) -> NamedModel | None:
        """Return the model where another program has downloaded it: of the same repository, with the same content."""
        if any(file.checksum.kind is not ChecksumKind.SHA256 for file in plan.files):
            return None
        wanted = [file.checksum.digest for file in plan.model.shards]
        projector = None if plan.projector is None else plan.projector.checksum.digest
        place = f"{FOLDER}/{plan.listing.repository}:".lower()
        for entry in self._index.listing().entries:
            for named in (entry.main, *entry.copies):
                found = named.found
                is_there = any(name.lower().startswith(place) for name in named.names) and found.problem is None
                if found.source is Source.OWN or not is_there or _digests(found) != wanted:
                    continue
                if projector is None or projector in {_digest(real_folder(path)) for path in found.projectors}:
                    return named
        return None

    def _taken_in(self, plan: PullPlan, downloaded: Downloaded) -> str:
        """Have the index know what was downloaded; return its name there."""
        for file in plan.files:
            if file.checksum.kind is ChecksumKind.SHA256:
                with suppress(Refused):  # somebody deletes it at once
                    state = Lookout(0).file(self._own / plan.place_of(file), None)
                    self._cache.note_digest(state, file.checksum.digest)
        listing = self._index.refresh()
        self._index.save()
        real = real_folder(downloaded.path)
        everything = (named for entry in listing.entries for named in (entry.main, *entry.copies))
        named = next((each for each in everything if real_folder(each.found.path) == real), None)
        if named is not None and named.names:
            return named.names[0]
        quantization = plan.model.quantization or downloaded.path.name
        return f"{FOLDER}/{plan.listing.repository}:{quantization}"


def _being_pulled(name: str | None) -> ModelInUse:
    return ModelInUse(f"{name} is being pulled. End that first, or wait for it.", param="model")


def _digests(found: FoundModel) -> list[str | None]:
    return [_digest(file.path) for file in found.files]


def _digest(path: Path) -> str | None:
    """Return what the name of a blob says; only those of Hugging Face and Ollama say it."""
    name = path.name.removeprefix("sha256-").lower()
    return name if len(name) == 64 and set(name) <= set("0123456789abcdef") else None
