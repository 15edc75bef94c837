"""One index over all models on this machine, wherever they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from server.core.model_spec import DEFAULT_QUANTIZATION, equivalent_names, is_hugging_face, split_variant
from server.store.header_cache import HeaderCache, HeaderFacts
from server.store.hugging_face_cache import scan_hugging_face
from server.store.lookout import Complaint, Lookout, Sight, is_folder
from server.store.model_copies import groups_of_copies
from server.store.model_files import FoundModel, scan_folder
from server.store.ollama_store import scan_ollama
from server.store.places import Place, Source

_PATIENCE_SECONDS, _MISS_SECONDS = 2.0, 0.5
"""Age from which a look counts as old, in general and where it lacks what is asked for."""
_DYNAMIC = "UD-"
"""Unsloth's mark for quantizations that choose the precision of each layer; a pull takes them for the plain ones."""


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model in one place, with the names that it got; ``names`` may be empty.

    ``found.problem`` says whether it can be used.
    """

    names: tuple[str, ...]
    found: FoundModel


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A line of the list: a model, and where else the same one is.

    Attributes:
        main: the one to use.
        copies: the same weights in other places, or under other names.
        digest: SHA-256 of the weights, if any place says it.

    """

    main: NamedModel
    copies: tuple[NamedModel, ...]
    digest: str | None

    @property
    def name(self) -> str | None:
        """The name to show, which works in a spec: ``local/<name>@llamacpp``; ``None`` if all were taken."""
        return next(iter(self.names), None)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, those of copies included."""
        return tuple(chain.from_iterable(named.names for named in (self.main, *self.copies)))

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(file.size for file in self.main.found.files)

    @property
    def problem(self) -> str | None:
        """Why it cannot be used; ``None`` if nothing is known to be wrong."""
        if self.main.found.problem is not None or self.name is not None:
            return self.main.found.problem
        wanted = self.main.found.names
        return f"has no name: {wanted[0]} is another file; rename one of them" if wanted else "has no usable name"


@dataclass(frozen=True)
class Listing:
    """All models at one time.

    Attributes:
        entries: each model once, in the order of their names.
        complaints: what is not listed, and why.
        by_name: models by their names in lower case.
        by_base: the variants that there are, by the name without them, in lower case.

    """

    entries: tuple[ModelEntry, ...]
    complaints: tuple[Complaint, ...]
    by_name: Mapping[str, NamedModel]
    by_base: Mapping[str, tuple[str, ...]]

    def find(self, name: str) -> NamedModel | None:
        """Return the model that a name means, whatever its letters' case.

        A name without variant means ``latest``, else ``Q4_K_M``, else the only variant there is; of a repository
        ``Q4_K_M`` is also Unsloth's ``UD-Q4_K_M``.
        """
        base, colon, variant = split_variant(name)
        dynamic = (f"{base}:{_DYNAMIC}{variant}",) if colon and is_hugging_face(base) else ()
        for each in (*equivalent_names(name), f"{name}:{DEFAULT_QUANTIZATION}", *dynamic):
            if (found := self.by_name.get(each.lower())) is not None:
                return found
        variants = self.variants(name)
        return self.by_name[variants[0].lower()] if len(variants) == 1 else None

    def variants(self, name: str) -> tuple[str, ...]:
        """Return the names with a variant that a name without one may mean."""
        return self.by_base.get(name.lower(), ())


@dataclass(frozen=True, slots=True)
class _Scan:
    models: tuple[FoundModel, ...]
    complaints: tuple[Complaint, ...]
    sight: Sight


class ModelIndex:
    """Looks for models in places, again when something there has changed, and only then.

    Listing opens no model file, with one exception: where files of the same size could be copies of each other and
    nothing says what is in them, it compares samples, once. All methods block and may be called by several threads.
    """

    def __init__(
        self,
        places: Sequence[Place],
        cache: HeaderCache,
        *,
        short_names: Callable[[str], Sequence[str]] = lambda _: (),
        clock: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Index ``places``.

        Args:
            places: the folders, in the order in which their models get names.
            cache: what is known of files.
            short_names: further names of a file with this first name; it asks for them last.
            clock: gives monotonic seconds.
            now_ns: gives the time of the files' clock.

        """
        self._places = tuple(places)
        self._cache = cache
        self._short_names = short_names
        self._clock = clock
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._scans: dict[Place, _Scan] = {}
        self._listing: Listing | None = None
        self._looked_at = float("-inf")

    def listing(self) -> Listing:
        """Return the models as they were at most two seconds ago."""
        with self._lock:
            if self._listing is None or self._clock() - self._looked_at >= _PATIENCE_SECONDS:
                self._look()
            return self._current()

    def refresh(self) -> Listing:
        """Return the models as they are now."""
        with self._lock:
            self._look()
            return self._current()

    def find(self, name: str) -> NamedModel | None:
        """Return the model that a name means; looks again for one that is not known, unless it did a moment ago."""
        found = self.listing().find(name)
        if found is None and self._clock() - self._looked_at >= _MISS_SECONDS:
            return self.refresh().find(name)
        return found

    def facts(self, model: FoundModel) -> HeaderFacts:
        """Return what the header of a model says; reads it if it is not known. Parameters are those of all parts."""
        first, *others = [self._cache.facts(file) for file in model.files] or [HeaderFacts(problem=model.problem)]
        return _summed(first, others)

    def known_facts(self, model: FoundModel) -> HeaderFacts | None:
        """Do as ``facts`` does, but read nothing."""
        known = [self._cache.known(file) for file in model.files]
        facts = [each for each in known if each is not None]
        return _summed(facts[0], facts[1:]) if facts and len(facts) == len(known) else None

    def save(self) -> None:
        """Write what was learned about files to the cache's file."""
        self._cache.save()

    def _current(self) -> Listing:
        if self._listing is None:
            scans = [self._scans[place] for place in self._places]
            models = [self._with_short_names(model) for scan in scans for model in scan.models]
            complaints = chain.from_iterable(scan.complaints for scan in scans)
            self._listing = make_listing(models, tuple(complaints), self._cache)
        return self._listing

    def _with_short_names(self, model: FoundModel) -> FoundModel:
        further = self._short_names(model.names[0]) if model.names and model.ollama is None else ()
        return replace(model, names=(*model.names, *further)) if further else model

    def _look(self) -> None:
        for place in self._places:
            if place not in self._scans or not self._scans[place].sight.is_current():
                before, scan = self._scans.get(place), _scan(place, self._now_ns())
                if before is None or (scan.models, scan.complaints) != (before.models, before.complaints):
                    self._listing = None
                self._scans[place] = scan
        self._looked_at = self._clock()


def _scan(place: Place, now_ns: int) -> _Scan:
    lookout = Lookout(now_ns)
    if place.source is Source.OLLAMA or (place.source is Source.FOLDER and _is_ollama_store(place.path)):
        models = scan_ollama(place.path, lookout)
    elif place.source is Source.HUGGING_FACE:
        models = scan_hugging_face(place.path, lookout)
    else:
        models = scan_folder(place, lookout)
    return _Scan(tuple(models), tuple(lookout.complaints), lookout.sight())


def _is_ollama_store(path: Path) -> bool:
    return is_folder(path / "manifests") and is_folder(path / "blobs")


def _summed(first: HeaderFacts, others: Sequence[HeaderFacts]) -> HeaderFacts:
    """Return the facts of the first part with the parameters of all, and the first problem."""
    num_parameters = first.num_parameters + sum(other.num_parameters for other in others)
    problem = next((each.problem for each in (first, *others) if each.problem), None)
    return replace(first, num_parameters=num_parameters, problem=problem) if others else first


def make_listing(models: Sequence[FoundModel], complaints: tuple[Complaint, ...], cache: HeaderCache) -> Listing:
    """Give models their names, and put copies together.

    Args:
        models: in the order in which they get names.
        complaints: what is not listed.
        cache: tells what is in files that may be copies.

    """
    named = [NamedModel(names, model) for names, model in zip(given_names(models), models, strict=True)]
    entries = [
        ModelEntry(named[group.members[0]], tuple(named[each] for each in group.members[1:]), group.digest)
        for group in groups_of_copies(models, cache)
    ]
    by_name = {name.lower(): model for model in named for name in model.names}
    in_order = sorted(entries, key=lambda entry: (entry.name is None, (entry.name or "").lower()))
    return Listing(tuple(in_order), complaints, by_name, _by_base(named))


def given_names(models: Sequence[FoundModel]) -> list[tuple[str, ...]]:
    """Give each model the names that no other one took before it.

    What can be used is served before what cannot. First each model gets the best name that is left; then each gets all
    that are left.
    """
    taken: set[str] = set()
    given: list[list[str]] = [[] for _ in models]
    for is_usable in (True, False):
        waiting = [index for index, model in enumerate(models) if (model.problem is None) is is_usable]
        for is_first in (True, False):
            for index, name in _requests(models, waiting):
                if name.lower() not in taken and not (is_first and given[index]):
                    taken.add(name.lower())
                    given[index].append(name)
    return [tuple(names) for names in given]


def _requests(models: Sequence[FoundModel], waiting: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Let all ask for their first name, then all for their second, and so on."""
    for rank in range(max((len(models[index].names) for index in waiting), default=0)):
        for index in waiting:
            if rank < len(models[index].names):
                yield index, models[index].names[rank]


def _by_base(named: Sequence[NamedModel]) -> Mapping[str, tuple[str, ...]]:
    """Collect the variants of each name: one name for each model."""
    found: dict[str, dict[int, str]] = {}
    for index, model in enumerate(named):
        for name in model.names:
            base, colon, _ = split_variant(name)
            if colon:
                found.setdefault(base.lower(), {}).setdefault(index, name)
    return {base: tuple(names.values()) for base, names in found.items()}
