"""Which models are the same one, in several places or under several names."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from server.store.header_cache import HeaderCache
from server.store.model_files import FoundModel


@dataclass(frozen=True, slots=True)
class Group:
    """Models that are the same: their indices, the one to use first, and the SHA-256 of their weights if known."""

    members: tuple[int, ...]
    digest: str | None


@dataclass(slots=True)
class _Weights:
    """Models with the same weights."""

    members: list[int]
    digest: str | None


def groups_of_copies(models: Sequence[FoundModel], cache: HeaderCache) -> list[Group]:
    """Put models together that have the same weights and behave the same.

    The same weights are: the same files, by whatever links; the same SHA-256; or, where one of two has none that is
    known, files of the same size with the same samples. Models of Ollama with the same weights are different if they
    have different templates, parameters or system messages.
    """
    groups: list[Group] = []
    for weights in _same_weights(models, cache):
        for members in _same_behaviour(models, weights.members):
            usable_first = sorted(members, key=lambda index: models[index].problem is not None)
            groups.append(Group(tuple(usable_first), weights.digest))
    return groups


def _same_weights(models: Sequence[FoundModel], cache: HeaderCache) -> list[_Weights]:
    digests = [model.digest or _noted(model, cache) for model in models]
    doubtful = _doubtful_sizes(models, digests)
    groups: list[_Weights] = []
    by_key: dict[Hashable, _Weights] = {}
    for index, model in enumerate(models):
        keys = list(_keys(model, digests[index], doubtful, cache))
        weights = next((by_key[key] for key in keys if key in by_key and _agree(by_key[key], digests[index])), None)
        if weights is None:
            weights = _Weights([], None)
            groups.append(weights)
        weights.members.append(index)
        weights.digest = weights.digest or digests[index]
        for key in keys:
            by_key.setdefault(key, weights)
    return groups


def _agree(weights: _Weights, digest: str | None) -> bool:
    return None in (weights.digest, digest) or weights.digest == digest


def _noted(model: FoundModel, cache: HeaderCache) -> str | None:
    return cache.digest(model.files[0]) if len(model.files) == 1 else None


def _sizes(model: FoundModel) -> tuple[int, ...]:
    return tuple(file.size for file in model.files)


def _doubtful_sizes(models: Sequence[FoundModel], digests: Sequence[str | None]) -> set[tuple[int, ...]]:
    """Return the sizes that several files have, of which not all are told apart by a digest."""
    seen: dict[tuple[int, ...], set[Hashable]] = {}
    unknown: set[tuple[int, ...]] = set()
    for model, digest in zip(models, digests, strict=True):
        if model.problem is None and model.files:
            seen.setdefault(_sizes(model), set()).add((model.files[0].device, model.files[0].inode))
            if digest is None:
                unknown.add(_sizes(model))
    return {sizes for sizes in unknown if len(seen[sizes]) > 1}


def _keys(
    model: FoundModel, digest: str | None, doubtful: set[tuple[int, ...]], cache: HeaderCache
) -> Iterator[Hashable]:
    """Return what two models with the same weights have in common: any one of these."""
    if digest is not None:
        yield "digest", digest
    if model.problem is not None or not model.files:
        return
    if model.files[0].inode:  # some file systems have none
        yield "file", tuple((file.device, file.inode) for file in model.files)
    if _sizes(model) in doubtful:
        samples = tuple(cache.sample(file) for file in model.files)
        if None not in samples:
            yield "sample", _sizes(model), samples


def _same_behaviour(models: Sequence[FoundModel], members: Sequence[int]) -> Iterator[list[int]]:
    """Divide models with the same weights; bare files go with the one of Ollama that adds least to the weights."""
    by_behaviour: dict[tuple[str, ...], list[int]] = {}
    bare: list[int] = []
    for index in members:
        ollama = models[index].ollama
        (bare if ollama is None else by_behaviour.setdefault(ollama.behaviour, [])).append(index)
    first, *others = sorted(by_behaviour, key=len) or [()]
    yield sorted([*bare, *by_behaviour.get(first, ())])
    yield from (by_behaviour[behaviour] for behaviour in others)
