"""Recommended models: a file of this package, which a file of the user's extends."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from server.core.errors import ConfigurationError, InvalidModelSpec, InvalidRequest
from server.core.model_spec import DEFAULT_QUANTIZATION, DEFAULT_VARIANT, ModelSpec, parse_model_spec, split_variant
from server.store.hub_listing import check_repository

_FILE = "recommended.toml"
_HUB = "hf.co/"
_MAX_FILE_BYTES = 4 << 20
_CLASSES_GB = (1, 3, 6, 12, 25)


class Capability(StrEnum):
    """What a model can do besides writing text."""

    TOOLS = "tools"
    THINKING = "thinking"
    VISION = "vision"
    AUDIO = "audio"
    CODE = "code"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class RecommendedModel:
    """A model worth trying; the comment at the top of ``recommended.toml`` says what the fields mean."""

    name: str
    title: str
    parameters: str
    repository: str
    size_bytes: int
    context_length: int
    licence: str
    aliases: tuple[str, ...] = ()
    quantization: str = DEFAULT_QUANTIZATION
    capabilities: tuple[Capability, ...] = ()
    note: str = ""

    @property
    def ollama_spec(self) -> str:
        """Return the spec of the model at the Ollama daemon."""
        return f"ollama/{self.name}"

    @property
    def llamacpp_spec(self) -> str:
        """Return the spec of the model in the llama.cpp pool."""
        return f"llamacpp/{self.name}"

    @property
    def size_class(self) -> str:
        """Return in words how large the model is among the others."""
        if self.size_bytes < _CLASSES_GB[0] * 1e9:
            return f"under {_CLASSES_GB[0]} GB"
        for low, high in pairwise(_CLASSES_GB):
            if self.size_bytes < high * 1e9:
                return f"{low} to {high} GB"
        return f"over {_CLASSES_GB[-1]} GB"


class RecommendedModels:
    """Recommended models by name, smallest first."""

    def __init__(self, models: Iterable[RecommendedModel]) -> None:
        """Take the models; of two with one name the later one counts, and a name comes before an alias."""
        by_name = {model.name.lower(): model for model in models}
        self._models = sorted(by_name.values(), key=lambda model: (model.size_bytes, model.name))
        aliases = {alias.lower(): model for model in self._models for alias in model.aliases}
        self._by_name = aliases | by_name

    def __iter__(self) -> Iterator[RecommendedModel]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def find(self, spec: ModelSpec) -> RecommendedModel | None:
        """Return the model that a spec names, by name or alias, on whichever backend."""
        is_latest = spec.variant is None or spec.variant.lower() == DEFAULT_VARIANT
        return self._by_name.get((spec.name if is_latest else spec.model).lower())

    def find_by_name(self, name: str) -> RecommendedModel | None:
        """Return the model with a name or alias."""
        return self._by_name.get(name.lower())

    def of_repository(self, repository: str) -> RecommendedModel | None:
        """Return the model whose files come from a repository."""
        return next((each for each in self._models if each.repository.lower() == repository.lower()), None)

    def names_of(self, file_name: str) -> tuple[str, ...]:
        """Return the short names that a file of a repository may have besides ``hf.co/owner/repository:quantization``.

        They are the names of the model and those with the quantization (``mistral:Q8_0``); the latter come first for
        a quantization that is not the usual one, so that the usual one gets the names of the model.
        """
        place, colon, quantization = split_variant(file_name)
        model = self.of_repository(place.removeprefix(_HUB)) if colon and place.startswith(_HUB) else None
        if model is None:
            return ()
        names = (model.name, *model.aliases)
        exact = dict.fromkeys(f"{split_variant(name)[0]}:{quantization}" for name in names)
        is_usual = quantization.removeprefix("UD-").lower() == model.quantization.removeprefix("UD-").lower()
        return (*names, *exact) if is_usual else (*exact, *names)

    def closest(self, name: str) -> tuple[str, ...]:
        """Return the names that look most like this one."""
        close = difflib.get_close_matches(name.lower(), self._by_name, n=3, cutoff=0.5)
        return tuple(dict.fromkeys(self._by_name[each].name for each in close))


def load_recommended(extension: Path | None = None) -> RecommendedModels:
    """Read the recommended models, and those of a file of the user's in the same layout.

    Raises:
        ConfigurationError: a file cannot be read, or says something that makes no sense.

    """
    models = read_recommended(files("server.store").joinpath(_FILE).read_text(encoding="utf-8"), _FILE)
    if extension is not None:
        models += read_recommended(_text_of(extension), str(extension))
    return RecommendedModels(models)


def read_recommended(text: str, source: str) -> list[RecommendedModel]:
    """Read models as ``recommended.toml`` has them; ``source`` is named in errors.

    Raises:
        ConfigurationError: the text says something that makes no sense.

    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source} is not TOML: {error}") from error
    rows = document.pop("models", [])
    if document or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigurationError(f"{source}: write each model as a table [[models]], and nothing else.")
    models = [_model(row, f"{source}, model {number}") for number, row in enumerate(rows, start=1)]
    for name in (names := [model.name.lower() for model in models]):
        if names.count(name) > 1:
            raise ConfigurationError(f"{source} has the model {name} twice; delete one of them.")
    return models


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {_MAX_FILE_BYTES >> 20} MiB; is it the right file?")
    return text


def _model(row: Mapping[str, Any], where: str) -> RecommendedModel:
    where = f"{where} ({row['name']!r})" if isinstance(row.get("name"), str) else where
    known = {field.name: field for field in fields(RecommendedModel)}
    for key in row:
        if key not in known:
            closest = difflib.get_close_matches(key, known, n=1)
            raise ConfigurationError(f"{where}: {key!r} is unknown{f'; is it {closest[0]!r}?' if closest else '.'}")
    missing = [name for name, field in known.items() if field.default is MISSING and name not in row]
    if missing:
        raise ConfigurationError(f"{where} lacks {', '.join(missing)}.")
    values: dict[str, Any] = {key: _text(row[key], f"{where}: {key}") for key in _TEXTS if key in row}
    values |= {key: _number(row[key], f"{where}: {key}") for key in _NUMBERS}
    values["aliases"] = tuple(_text(each, f"{where}: aliases") for each in _list(row, "aliases", where))
    values["capabilities"] = tuple(_capability(each, where) for each in _list(row, "capabilities", where))
    model = RecommendedModel(**values)
    _check(model, where)
    return model


_TEXTS = ("name", "title", "parameters", "repository", "licence", "quantization", "note")
_NUMBERS = ("size_bytes", "context_length")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ConfigurationError(f"{where} must be text on one line, and not {value!r}.")
    return value


def _number(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ConfigurationError(f"{where} must be a whole number above 0, and not {value!r}.")
    return value


def _list(row: Mapping[str, Any], key: str, where: str) -> list[object]:
    value = row.get(key, [])
    if not isinstance(value, list):
        raise ConfigurationError(f"{where}: {key} must be a list, and not {value!r}.")
    return value


def _capability(value: object, where: str) -> Capability:
    try:
        return Capability(_text(value, f"{where}: capabilities"))
    except ValueError:
        raise ConfigurationError(f"{where}: {value!r} is no capability; there are {', '.join(Capability)}.") from None


def _check(model: RecommendedModel, where: str) -> None:
    try:
        check_repository(model.repository)
        for name in (model.name, *model.aliases):
            spec = parse_model_spec(name)
            if spec.model != name or spec.backend is not None or "/" in name:
                raise InvalidModelSpec(f"{name!r} is not the name of a model; write name:tag, without a backend.")
    except InvalidRequest as error:
        raise ConfigurationError(f"{where}: {error.message}") from error
