"""Which models the pool could load: those that the operator configured, and those that are found on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from server.core.background import in_thread
from server.core.errors import LlmspellError, ModelLoadingFailed, ModelNotFound
from server.core.model_spec import equivalent_names
from server.pool.config import ModelConfig, PoolConfig
from server.pool.entry import Entry
from server.pool.material import Material, material_of
from server.store.model_index import Listing, ModelIndex, NamedModel

_NOTHING = Listing((), (), {}, {})


class Shelf:
    """The models by name, each with its ``Entry``; used on the event loop, but for ``material``.

    What is found is looked at when somebody asks for a list or for a name that is not known, so that a request for a
    model in use costs no look at the disk.
    """

    def __init__(self, models: Mapping[str, ModelConfig], config: PoolConfig, index: ModelIndex | None) -> None:
        """Know the configured models.

        Args:
            models: by name without provider; without a path they are those that ``index`` finds by their names.
            config: the section ``[llamacpp]``.
            index: finds models on this machine; ``None`` finds none.

        """
        self.entries = {name: Entry.of(name, model_config, config) for name, model_config in models.items()}
        self._configured = frozenset(models)
        self._config = config
        self._index = index
        self._listing = _NOTHING
        self._listed: Sequence[str] = ()
        self._by_identity: dict[int, Entry] = {}  # by the identities of the listing's models

    @property
    def configured(self) -> Sequence[Entry]:
        """The models that the operator configured."""
        return [entry for name, entry in self.entries.items() if name in self._configured]

    @property
    def listed(self) -> Sequence[Entry]:
        """The models to show: the configured ones that exist, and of what was found each file once."""
        present = {id(entry) for entry in self._by_identity.values()}
        configured = [entry for entry in self.configured if entry.config.path or id(entry) in present]
        return [*configured, *(self.entries[name] for name in self._listed)]

    def known(self, name: str) -> Entry | None:
        """Return the entry that a name means, as far as is known without looking."""
        for each in equivalent_names(name):
            if each in self._configured:
                return self.entries[each]
        named = self._listing.find(name)
        return None if named is None else self._by_identity.get(id(named))

    async def find(self, name: str) -> Entry | None:
        """Return the entry that a name means; looks for one that is not known."""
        entry = self.known(name)
        if entry is None and self._index is not None:
            await in_thread(self._index.find, name)
            await self.refresh()
            entry = self.known(name)
        return entry

    async def refresh(self) -> None:
        """Take notice of what has come and gone, as of two seconds ago at most."""
        if self._index is None:
            return
        listing = await in_thread(self._index.listing)
        if listing is not self._listing:
            self._take(listing)

    @property
    def gone(self) -> Sequence[Entry]:
        """The models whose files were found, and are there no more, but which are still in use or in memory."""
        present = {id(entry) for entry in self._by_identity.values()}
        return [each for name, each in self.entries.items() if name not in self._configured and id(each) not in present]

    def problem(self, name: str) -> LlmspellError | None:
        """Say why a model that is there, as far as is known, is not served."""
        named = self._listing.find(name)
        if named is None or named.found.problem is None:
            return None
        return ModelLoadingFailed(f"local/{named.names[0]} cannot be used: {named.found.problem}.")

    def material(self, entry: Entry) -> Material:
        """Find the files of a model; blocking.

        Raises:
            ModelNotFound: there are none.
            ModelLoadingFailed: they cannot be used.

        """
        if entry.config.path:
            return Material(Path(entry.config.path))
        named = None if self._index is None else self._index.find(entry.name)
        if named is None:
            raise ModelNotFound(_no_file(entry.name), param="model")
        if named.found.problem is not None:
            raise ModelLoadingFailed(f"local/{entry.name} cannot be used: {named.found.problem}.")
        return material_of(named.found)

    def _take(self, listing: Listing) -> None:
        self._listing = listing
        self._by_identity = {}
        for name, entry in self.entries.items():
            if name in self._configured and not entry.config.path:
                named = listing.find(name)
                if named is not None and named.found.problem is None:
                    self._by_identity[id(named)] = _noted(entry, named)
        for named in dict.fromkeys(listing.by_name.values()):
            if named.found.problem is None and id(named) not in self._by_identity:
                free = self._free_name(named)
                if free is not None:
                    entry = self.entries.get(free) or Entry.of(free, ModelConfig(), self._config)
                    self._by_identity[id(named)] = self.entries[free] = _noted(entry, named)
        paths = {str(Path(entry.config.path).absolute()) for entry in self.configured if entry.config.path}
        mains = (each.main for each in listing.entries if str(each.main.found.path) not in paths)
        entries = (self._by_identity.get(id(named)) for named in mains)
        self._listed = [entry.name for entry in entries if entry is not None and entry.name not in self._configured]
        for entry in self.gone:
            if entry.is_unused:
                del self.entries[entry.name]

    def _free_name(self, named: NamedModel) -> str | None:
        """Return the best name that is not the operator's word for something else."""
        return next((name for name in named.names if not self._configured.intersection(equivalent_names(name))), None)


def _noted(entry: Entry, named: NamedModel) -> Entry:
    files = named.found.files
    entry.size_bytes = sum(file.size for file in files)
    entry.created = max((file.mtime_ns // 10**9 for file in files), default=0)
    return entry


def _no_file(name: str) -> str:
    return (
        f'The model local/{name} has no file: set models."local/{name}".path in the configuration file, or download it '
        f"with `llmspell model pull llamacpp/{name}`."
    )
