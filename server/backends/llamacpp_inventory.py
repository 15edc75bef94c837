"""Which models llama.cpp can load from this machine's disks, under which names. Blocking; opens no model file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from server.core.library import InstalledModel
from server.core.model_spec import BackendName, equivalent_names, parse_model_spec
from server.pool.config import ModelConfig
from server.store.header_cache import HeaderFacts
from server.store.lookout import Lookout, Refused, real_folder
from server.store.model_files import FoundModel
from server.store.model_index import Listing, ModelEntry, ModelIndex, NamedModel
from server.store.model_names import read_file_name
from server.store.places import Source
from server.store.removal import parts_of

CONFIGURED = "config"
"""The source of models whose file the configuration names."""
_UNITS = ((1e12, "T", 1), (1e9, "B", 1), (1e6, "M", 2), (1e3, "K", 0))


@dataclass(frozen=True, slots=True)
class StockedModel:
    """A model and where it was found: ``named`` in the index, or by the ``config`` that names its file, or both."""

    installed: InstalledModel
    found: FoundModel
    named: NamedModel | None
    config: ModelConfig | None


class Inventory:
    """The models of the index, and those whose files the configuration names."""

    def __init__(self, index: ModelIndex, configured: Mapping[str, ModelConfig]) -> None:
        """Take the index, and what the configuration says of models by name or spec."""
        self.index = index
        by_name = {parse_model_spec(spec).model: config for spec, config in configured.items()}
        self._configs = {name.lower(): config for name, config in by_name.items()}
        self.configured = {name: Path(config.path) for name, config in by_name.items() if config.path}
        """The files that the configuration names."""

    def models(self) -> list[InstalledModel]:
        """List the models, each once."""
        listing = self.index.listing()
        self.index.save()  # files that may be copies of each other were compared, perhaps
        configured = [self._configured(name, listing) for name in self.configured]
        hidden = {real_folder(model.found.path) for model in configured}
        entries = [each for each in listing.entries if not (hidden and real_folder(each.main.found.path) in hidden)]
        return [*(each.installed for each in configured), *(self._installed(entry, entry.main) for entry in entries)]

    def find(self, name: str) -> StockedModel | None:
        """Return the model that a name means."""
        names = {each.lower() for each in equivalent_names(name)}
        if (configured := next((each for each in self.configured if each.lower() in names), None)) is not None:
            return self._configured(configured, self.index.listing())
        named = self.index.find(name)
        return None if named is None else self._stocked(named)

    def names(self) -> Sequence[str]:
        """Return the names of the models, one of each."""
        return [*self.configured, *(entry.name for entry in self.index.listing().entries if entry.name is not None)]

    def _stocked(self, named: NamedModel) -> StockedModel:
        listing = self.index.listing()
        entries = (entry for entry in listing.entries if named in (entry.main, *entry.copies))
        entry = next(entries, ModelEntry(named, (), named.found.digest))  # it may have gone meanwhile
        names = (each.lower() for name in named.names for each in equivalent_names(name))
        config = next((self._configs[each] for each in names if each in self._configs), None)
        return StockedModel(self._installed(entry, named), named.found, named, config)

    def _configured(self, name: str, listing: Listing) -> StockedModel:
        found = _configured_model(self.configured[name])
        path = real_folder(found.path)
        same = next((each for each in listing.entries if real_folder(each.main.found.path) == path), None)
        model = InstalledModel(
            model=name,
            backend=BackendName.LLAMACPP,
            source=CONFIGURED,
            size_bytes=sum(file.size for file in found.files),
            modified=_modified(found),
            path=found.path,
            digest=None if same is None else same.digest,
            other_names=() if same is None else tuple(each for each in same.names if each != name),
            copies=() if same is None else _copies_of(found.path, same.copies),
            problem=found.problem,
        )
        known = _with_facts(model, self.index, found if same is None else same.main.found)
        return StockedModel(known, found, None, self._configs[name.lower()])

    def _installed(self, entry: ModelEntry, named: NamedModel) -> InstalledModel:
        """Describe a model in one place, and name the others."""
        found = named.found
        name = named.names[0] if named.names else ""
        model = InstalledModel(
            model=name,
            backend=BackendName.LLAMACPP,
            source=found.source.value,
            size_bytes=sum(file.size for file in found.files),
            modified=_modified(found),
            path=found.path,
            digest=entry.digest,
            other_names=tuple(each for each in dict.fromkeys((*named.names, *entry.names)) if each != name),
            copies=_copies_of(found.path, (entry.main, *entry.copies)),
            problem=entry.problem if named is entry.main else found.problem,
        )
        return _with_facts(model, self.index, found)


def _copies_of(path: Path, all_of_them: Iterable[NamedModel]) -> tuple[Path, ...]:
    """Return where else the weights are: several names of Ollama's may stand for one blob."""
    return tuple(dict.fromkeys(each.found.path for each in all_of_them if each.found.path != path))


def _configured_model(path: Path) -> FoundModel:
    """Look at a file that the configuration names; links may lead anywhere."""
    lookout = Lookout(0)
    try:
        files = tuple(lookout.file(part, None) for part in parts_of(path))
    except Refused as refusal:
        return FoundModel(Source.FOLDER, (), path, (), problem=f"{path} {refusal}")
    return FoundModel(Source.FOLDER, (), path, files)


def _modified(found: FoundModel) -> int:
    return max((file.mtime_ns for file in found.files), default=0) // 1_000_000_000


def _with_facts(model: InstalledModel, index: ModelIndex, found: FoundModel) -> InstalledModel:
    """Add what is known of a model without reading it."""
    facts = index.known_facts(found) or HeaderFacts()
    kind = found.ollama.kind if found.ollama else None
    name = read_file_name(found.path.name)
    is_chat = facts.has_template or bool(found.ollama and found.ollama.template_layers())
    return replace(
        model,
        quantization=(name and name.quantization) or (kind and kind.quantization) or facts.quantization or None,
        parameters=(kind and kind.parameter_size) or _in_words(facts.num_parameters),
        context_length=facts.context_length,
        capabilities=("chat",) if is_chat else (),
        problem=model.problem or facts.problem,
    )


def _in_words(num_parameters: int) -> str | None:
    """Write a number of parameters as Ollama does: ``8.0B``, ``2.74M``."""
    for size, unit, digits in _UNITS:
        if num_parameters >= size:
            return f"{num_parameters / size:.{digits}f}{unit}"
    return str(num_parameters) if num_parameters else None
