"""Where the configuration comes from: flags over environment over file over defaults, checked and put together.

Every value is checked where it stands, so that an error names the file, variable or flag to change. Without pydantic,
of which ``server.config`` makes ``Settings``: commands that only ask what is configured start in a moment.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from server.api.config import ApiConfig
from server.backends.ollama.config import OllamaConfig
from server.backends.ollama.host import daemon_url
from server.config_keys import ENVIRONMENT_PREFIX, KEYS, NAMED_TABLES, SECTIONS, Key, LoggingConfig, ServerConfig
from server.config_values import NotAllowed, read_json
from server.core.errors import ConfigurationError, InvalidModelSpec
from server.core.model_spec import parse_model_spec
from server.pool.config import ModelConfig, PoolConfig
from server.router import RoutingConfig
from server.store.config import StoreConfig

CONFIG_VARIABLE = "LLMSPELL_CONFIG"
SERVER_VARIABLE = "LLMSPELL_SERVER"
"""The URL of the server that clients ask, which is no setting of the server."""
OLLAMA_HOST_VARIABLE = "OLLAMA_HOST"
"""Ollama's own variable, which says where its daemon is."""
_NO_SETTINGS = (CONFIG_VARIABLE, SERVER_VARIABLE)
_MAX_SHOWN_LEN = 80
_PATH_KEYS = ("path", "chat_template")
_PATHS = ("llamacpp.model_dirs", "store.models_dir", "store.recommended")
"""Keys of sections whose values are paths; like ``_PATH_KEYS`` of models they are relative to the file."""
_VARIABLES = {key.variable: key for key in KEYS.values() if key.variable}
_TABLE_VARIABLES = {f"{ENVIRONMENT_PREFIX}{section.upper()}": section for section in NAMED_TABLES}


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that can be set, one field for each section; ``Configuration()`` is the defaults.

    The keys of ``models`` are canonical specs (``local/name:variant``).
    """

    server: ServerConfig = field(default_factory=ServerConfig)
    api: ApiConfig = field(default_factory=ApiConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    ollama: OllamaConfig = field(default_factory=OllamaConfig)
    llamacpp: PoolConfig = field(default_factory=PoolConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass(frozen=True, slots=True)
class LoadedConfiguration:
    """A configuration, and in words where it comes from."""

    configuration: Configuration
    source: str


def load_configuration(
    overrides: Mapping[str, Any] | None = None,
    config_path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> LoadedConfiguration:
    """Read the configuration: ``overrides`` over the environment over the file over the defaults.

    Args:
        overrides: values from flags, as nested tables: ``{"server": {"port": 1}}``.
        config_path: the file to read; ``None`` looks for one in the usual places.
        environ: the environment variables.

    Raises:
        ConfigurationError: a file cannot be read, or a key or value in one of the sources is wrong.

    """
    path = find_config_path(config_path, environ)
    file_values = _read_file(path) if path else {}
    variables, environment_values = _read_environment(environ)
    flag_values = _checked_tables(overrides or {}, "command line", Path())
    configuration = _put_together(file_values, environment_values, flag_values)
    ollama, is_host_used = _with_ollama_host(configuration.ollama, environ)
    variables += [OLLAMA_HOST_VARIABLE] if is_host_used else []
    parts = [str(path)] if path else []
    parts += [*variables, *(["command line"] if overrides else [])]
    return LoadedConfiguration(replace(configuration, ollama=ollama), ", ".join(parts) or "defaults")


def inherited_environment() -> dict[str, str]:
    """Return the environment for programs that this server starts."""
    return dict(os.environ)


def _put_together(*sources: Mapping[str, Mapping[str, Any]]) -> Configuration:
    """Build the sections from checked tables; what stands in a later source wins, key by key."""
    sections = dict[str, Any]()
    for section, config in SECTIONS.items():
        tables = [source.get(section, {}) for source in sources]
        if section not in NAMED_TABLES:
            sections[section] = config(**_merged(tables))
        elif config is str:
            sections[section] = _merged(tables)
        else:
            names = dict.fromkeys(name for table in tables for name in table)
            sections[section] = {name: config(**_merged(table.get(name, {}) for table in tables)) for name in names}
    return Configuration(**sections)


def _merged(tables: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for table in tables for name, value in table.items()}


def _with_ollama_host(ollama: OllamaConfig, environ: Mapping[str, str]) -> tuple[OllamaConfig, bool]:
    """Let Ollama's own variable say where the daemon is, where nothing else does."""
    variable = environ.get(OLLAMA_HOST_VARIABLE, "").strip()
    is_host_used = bool(variable) and not ollama.url.strip()
    place, url = (OLLAMA_HOST_VARIABLE, variable) if is_host_used else ("ollama.url", ollama.url)
    try:
        daemon_url(url)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error.message}") from error
    return replace(ollama, url=url), is_host_used


def find_config_path(config_path: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file to read: the given one, ``LLMSPELL_CONFIG``, ``./config.toml``, or the user's; ``None`` if none.

    Raises:
        ConfigurationError: a file that was asked for is not there.

    """
    if config_path is not None:
        return _existing(config_path, "--config")
    if named := environ.get(CONFIG_VARIABLE):
        return _existing(_expanded(named), CONFIG_VARIABLE)
    candidates = (Path("config.toml"), _user_directory(environ, "XDG_CONFIG_HOME", ".config") / "config.toml")
    return next((path.absolute() for path in candidates if path.is_file()), None)


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where to keep what can be found out again: ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``llmspell``.

    It may not exist, and it may not be possible to make it.
    """
    return _user_directory(environ, "XDG_CACHE_HOME", ".cache").absolute()


def home_directory() -> Path:
    """Return the user's home directory, or the root for one whom the system does not know, as in containers."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def _user_directory(environ: Mapping[str, str], variable: str, default: str) -> Path:
    if named := environ.get(variable):
        return Path(named, "llmspell")
    return home_directory() / default / "llmspell"


def _existing(path: Path, asked_by: str) -> Path:
    if not path.exists():
        raise ConfigurationError(f"{asked_by}: there is no file {path}.")
    return path.absolute()


def _read_file(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # what is not UTF-8, and what is not TOML
        raise ConfigurationError(f"{path}: is not valid TOML: {error}.") from error
    return _checked_tables(tables, str(path), path.parent)


def _read_environment(environ: Mapping[str, str]) -> tuple[list[str], dict[str, Any]]:
    """Return the names of the variables that set something, and the tables they make."""
    names, tables = [], dict[str, Any]()
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or _is_foreign(variable, environ[variable]):
            continue
        names.append(variable)
        if variable in _TABLE_VARIABLES:
            section = _TABLE_VARIABLES[variable]
            tables |= _checked_tables({section: _from_json(variable, environ[variable])}, variable, Path())
        elif variable in _VARIABLES:
            section, _, name = _VARIABLES[variable].path.partition(".")
            value = _accepted(_VARIABLES[variable], environ[variable], variable, text=True)
            tables.setdefault(section, {}).update(_with_paths({name: value}, section, Path()))
        else:
            known = closest(variable, [*_VARIABLES, *_TABLE_VARIABLES])
            raise ConfigurationError(f"{variable}: there is no such setting; did you mean {known}?")
    return names, tables


def _is_foreign(variable: str, value: str) -> bool:
    """Whether a variable with our prefix is not a setting: Kubernetes makes some for a service named ``llmspell``."""
    is_service_link = variable.startswith(("LLMSPELL_SERVICE_", "LLMSPELL_PORT_"))
    return variable in _NO_SETTINGS or is_service_link or (variable == "LLMSPELL_PORT" and "://" in value)


def _from_json(variable: str, value: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return read_json(value)
    except ValueError as error:
        raise ConfigurationError(f"{variable}: is not valid JSON: {error}.") from error


def _checked_tables(tables: Mapping[str, Any], place: str, directory: Path) -> dict[str, Any]:
    """Check the keys and values of ``tables`` and convert them; ``place`` is named in errors."""
    for section in tables:
        if section not in SECTIONS:
            candidates = SECTIONS if isinstance(tables[section], Mapping) else [*SECTIONS, *KEYS]
            raise ConfigurationError(_unknown(place, section, candidates))
    checked = dict[str, Any]()
    for section, table in tables.items():
        _require_table(table, place, section)
        if section == "models":
            checked[section] = _checked_models(table, place, directory)
        elif section == "aliases":
            checked[section] = {alias: _checked_alias(alias, spec, place) for alias, spec in table.items()}
        else:
            checked[section] = _with_paths(_checked_table(table, place, section, section), section, directory)
    return checked


def _with_paths(table: dict[str, Any], section: str, directory: Path) -> dict[str, Any]:
    return {
        name: _absolute(value, directory) if f"{section}.{name}" in _PATHS else value for name, value in table.items()
    }


def _absolute(value: str | Iterable[str], directory: Path) -> str | tuple[str, ...]:
    """Make a path, or several, relative to ``directory``; an absolute one stays itself, and an empty one empty."""
    if isinstance(value, str):
        return str(directory / _expanded(value)) if value else ""
    return tuple(str(directory / _expanded(each)) for each in value if each)


def _expanded(text: str) -> Path:
    """Return a path with the home folder in place of ``~``.

    Raises:
        ConfigurationError: nothing can be at such a path.

    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(
            f"The path {text!r} begins with a home folder that is not known here; write the whole path."
        ) from error
    if "\0" in text:
        raise ConfigurationError(f"The path {text!r} has a NUL character in it; write one without.")
    return path


def _checked_table(table: Mapping[str, Any], place: str, section: str, shown: str) -> dict[str, Any]:
    """Check one table whose keys are ``section.<name>`` in ``KEYS`` and are shown as ``shown.<name>``."""
    values = {}
    for name, value in table.items():
        if (key := KEYS.get(f"{section}.{name}")) is None:
            known = [path.replace(section, shown, 1) for path in KEYS if path.startswith(f"{section}.")]
            raise ConfigurationError(_unknown(place, f"{shown}.{name}", known))
        values[name] = _accepted(key, value, f"{place}: {shown}.{name}")
    return values


def _checked_models(table: Mapping[str, Any], place: str, directory: Path) -> dict[str, Any]:
    models = dict[str, Any]()
    for text, keys in table.items():
        shown = f'models."{text}"'
        _require_table(keys, place, shown)
        spec = _model_key(text, f"{place}: {shown}")
        if spec in models:
            raise ConfigurationError(f"{place}: {shown}: {spec} is there twice.")
        model = _checked_table(keys, place, "models.*", shown)
        # an absolute path stays itself when it is joined
        paths = {key: str(directory / _expanded(model[key])) for key in _PATH_KEYS if model.get(key)}
        models[spec] = model | paths
    return models


def _model_key(text: str, place: str) -> str:
    try:
        spec = parse_model_spec(text)
    except InvalidModelSpec as error:
        raise ConfigurationError(f"{place}: {error.message}") from error
    if spec.backend is not None:
        raise ConfigurationError(f'{place}: write it without the backend: models."local/{spec.model}".')
    return str(spec)


def _checked_alias(alias: str, spec: object, place: str) -> str:
    accepted: str = _accepted(KEYS["aliases.*"], spec, f'{place}: aliases."{alias}"')
    try:
        parse_model_spec(accepted)
    except InvalidModelSpec as error:
        raise ConfigurationError(f'{place}: aliases."{alias}": {error.message}') from error
    return accepted


def _accepted(key: Key, value: object, place: str, *, text: bool = False) -> Any:  # noqa: ANN401 - typed by ``key``
    try:
        return key.accept(value, text=text)
    except NotAllowed as error:
        shown = _shown(error.value)
        raise ConfigurationError(f"{place}{error.part}: {shown} is not allowed; it must be {error.allowed}.") from error


def _require_table(value: object, place: str, shown: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{place}: {shown}: {_shown(value)} is not allowed; it must be a table of keys.")


def _shown(value: object) -> str:
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value).lower()  # as TOML and JSON write them
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN_LEN else f"{shown[:_MAX_SHOWN_LEN]}…"


def _unknown(place: str, key: str, known: Iterable[str]) -> str:
    return f"{place}: there is no key {key}; did you mean {closest(key, known)}?"


def closest(name: str, known: Iterable[str]) -> str:
    """Return the member of ``known`` that looks most like ``name``."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
