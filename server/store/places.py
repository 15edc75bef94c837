"""Where models already are on this machine: our own folder, and those of the programs people had before.

Nothing here looks into a folder; ``model_places`` only says which ones there may be. It reads two small files of
LM Studio, because only they say where its users moved their models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

_MOST_SETTINGS_BYTES = 1 << 20
_OLLAMA_SERVICE = Path("/usr/share/ollama/.ollama/models")
"""Where the service that Ollama's installer sets up on Linux keeps its models."""


class Source(StrEnum):
    """Whose folder a model is in. The order is the one in which names are given away."""

    OWN = "own"
    FOLDER = "folder"
    OLLAMA = "ollama"
    HUGGING_FACE = "huggingface"
    LM_STUDIO = "lmstudio"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that may hold models; it need not exist."""

    source: Source
    path: Path


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What decides where programs keep their models.

    Attributes:
        environ: the environment variables.
        home: the user's home folder.
        platform: as ``sys.platform``.

    """

    environ: Mapping[str, str]
    home: Path
    platform: str = sys.platform

    def named(self, variable: str) -> Path | None:
        """Return the folder that a variable names, without the quotes and spaces that people leave around it."""
        text = self.environ.get(variable, "").strip().strip("\"'")
        return self.expanded(text) if text else None

    def expanded(self, text: str) -> Path:
        """Return a path with ``~`` for the home folder."""
        rest = text.removeprefix("~")
        if rest != text and (not rest or rest[0] in "/\\"):
            return self.home / rest.lstrip("/\\")
        return Path(text)


def model_places(own: Path | None, model_dirs: Iterable[str | Path], surroundings: Surroundings) -> tuple[Place, ...]:
    """Return the folders to look into, each once, in the order in which names are given away.

    Args:
        own: where this program puts what it downloads; ``None`` if it has no such folder.
        model_dirs: the folders that the operator configured.
        surroundings: the environment, the home folder and the platform.

    """
    found: dict[Path, Place] = {}
    for place in _places(own, model_dirs, surroundings):
        first = found.setdefault(_comparable(place.path), place)
        if first.source is Source.FOLDER:  # a program's own folder that is configured, too, is read as what it is
            found[_comparable(place.path)] = replace(first, source=place.source)
    return tuple(found.values())


def _places(own: Path | None, model_dirs: Iterable[str | Path], surroundings: Surroundings) -> Iterator[Place]:
    if own is not None:
        yield Place(Source.OWN, own)
    for directory in model_dirs:
        yield Place(Source.FOLDER, surroundings.expanded(str(directory)))
    for path in ollama_folders(surroundings):
        yield Place(Source.OLLAMA, path)
    yield Place(Source.HUGGING_FACE, hugging_face_folder(surroundings))
    for path in lm_studio_folders(surroundings):
        yield Place(Source.LM_STUDIO, path)


def _comparable(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links; a NUL character
        return path


def own_folder(surroundings: Surroundings) -> Path:
    """Return where this program puts what it downloads, unless the configuration says otherwise."""
    if surroundings.platform == "win32":
        base = surroundings.named("LOCALAPPDATA") or surroundings.home / "AppData" / "Local"
    elif surroundings.platform == "darwin":
        base = surroundings.home / "Library" / "Application Support"
    else:
        base = surroundings.named("XDG_DATA_HOME") or surroundings.home / ".local" / "share"
    return base / "llmspell" / "models"


def ollama_folders(surroundings: Surroundings) -> tuple[Path, ...]:
    """Return where Ollama may keep its models: ``OLLAMA_MODELS`` alone, or its default folders.

    A service that runs under a user of its own has a store of its own, whatever this user's environment says; it comes
    second.
    """
    named = surroundings.named("OLLAMA_MODELS")
    first = named or surroundings.home / ".ollama" / "models"
    return (first, _OLLAMA_SERVICE) if surroundings.platform.startswith("linux") else (first,)


def hugging_face_folder(surroundings: Surroundings) -> Path:
    """Return the cache of the Hugging Face libraries, by the rules that they follow themselves."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if named := surroundings.named(variable):
            return named
    if home := surroundings.named("HF_HOME"):
        return home / "hub"
    return (surroundings.named("XDG_CACHE_HOME") or surroundings.home / ".cache") / "huggingface" / "hub"


def lm_studio_folders(surroundings: Surroundings) -> tuple[Path, ...]:
    """Return where LM Studio may keep its models: the folder chosen in its settings, and those of its versions."""
    home = surroundings.home
    pointed = _first_line(home / ".lmstudio-home-pointer")
    homes = ([surroundings.expanded(pointed)] if pointed else []) + [home / ".lmstudio", home / ".cache" / "lm-studio"]
    settings = [each / "settings.json" for each in (*homes, _application_data(surroundings) / "LM Studio")]
    chosen = [surroundings.expanded(text) for path in settings if (text := _downloads_folder(path))]
    return tuple(dict.fromkeys((*chosen, *(each / "models" for each in homes))))


def _application_data(surroundings: Surroundings) -> Path:
    if surroundings.platform == "win32":
        return surroundings.named("APPDATA") or surroundings.home / "AppData" / "Roaming"
    if surroundings.platform == "darwin":
        return surroundings.home / "Library" / "Application Support"
    return surroundings.named("XDG_CONFIG_HOME") or surroundings.home / ".config"


def _first_line(path: Path) -> str:
    return next((line.strip() for line in _small_text(path).splitlines() if line.strip()), "")


def _downloads_folder(path: Path) -> str:
    try:
        settings = json.loads(_small_text(path) or "{}")
    except (ValueError, RecursionError):
        return ""
    folder = settings.get("downloadsFolder") if isinstance(settings, dict) else None
    return folder if isinstance(folder, str) and "\0" not in folder else ""


def _small_text(path: Path) -> str:
    """Return the text of a small file, or nothing for whatever is not one."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_SETTINGS_BYTES:
            return ""
        return path.read_text(encoding="utf-8-sig", errors="replace").replace("\0", "")
    except OSError:
        return ""
