"""What an operator can set, and where from: flags over environment over file over defaults.

Every value is checked where it stands, so that an error names the file, variable or flag to change.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import Field
from pydantic_core import from_json
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from server.api.config import ApiConfig
from server.backends.ollama.config import OllamaConfig
from server.backends.ollama.host import daemon_url
from server.config_values import NotAllowed, in_words, read_text, read_value
from server.core.duration import Duration, duration_seconds
from server.core.errors import ConfigurationError, InvalidModelSpec
from server.core.model_spec import parse_model_spec
from server.pool.config import ModelConfig, PoolConfig
from server.router import RoutingConfig
from server.store.config import StoreConfig

ENVIRONMENT_PREFIX = "LLMSPELL_"
CONFIG_VARIABLE = "LLMSPELL_CONFIG"
OLLAMA_HOST_VARIABLE = "OLLAMA_HOST"
"""Ollama's own variable, which says where its daemon is."""
_MAX_SHOWN_LEN = 80


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Section ``[server]``: where the server listens.

    Attributes:
        host: address to listen on; "0.0.0.0" makes the server reachable from other machines.
        port: TCP port; 0 takes a free one, which the first log line names.
        graceful_shutdown_seconds: how long running requests may take to finish after SIGTERM or Ctrl-C.

    """

    host: str = "127.0.0.1"
    port: int = 8000
    graceful_shutdown_seconds: int = 30


@dataclass(frozen=True, slots=True)
class LoggingConfig:
    """Section ``[logging]``: what is written to standard error, and how.

    Attributes:
        format: "human" for people, "json" for one JSON object a line.
        level: least severe messages that are written; "debug" includes llama.cpp's own.

    """

    format: Literal["human", "json"] = "human"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(BaseSettings):
    """Everything that can be set, one field for each section.

    ``Settings()`` is the defaults: only ``load_settings`` reads files and the environment. The keys of ``models`` are
    canonical specs (``local/name:variant``).
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    server: ServerConfig = Field(default_factory=ServerConfig)
    api: ApiConfig = Field(default_factory=ApiConfig)
    routing: RoutingConfig = Field(default_factory=RoutingConfig)
    ollama: OllamaConfig = Field(default_factory=OllamaConfig)
    llamacpp: PoolConfig = Field(default_factory=PoolConfig)
    store: StoreConfig = Field(default_factory=StoreConfig)
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keep construction free of surprises: no environment, no files."""
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and in words where they come from."""

    settings: Settings
    source: str


_SECTIONS: dict[str, Any] = {
    "server": ServerConfig,
    "api": ApiConfig,
    "routing": RoutingConfig,
    "ollama": OllamaConfig,
    "llamacpp": PoolConfig,
    "store": StoreConfig,
    "models": ModelConfig,
    "aliases": str,
    "logging": LoggingConfig,
}
_NAMED_TABLES = ("models", "aliases")
_PATH_KEYS = ("path", "chat_template")
_PATHS = ("llamacpp.model_dirs", "store.models_dir", "store.recommended")
"""Keys of sections whose values are paths; like ``_PATH_KEYS`` of models they are relative to the file."""

_RANGES: dict[str, tuple[float, float]] = {
    "server.port": (0, 65535),
    "server.graceful_shutdown_seconds": (0, 3600),
    "api.max_body_bytes": (1024, 2**30),
    "api.max_messages": (1, 100_000),
    "api.max_n": (1, 128),
    "api.max_stop_sequences": (0, 64),
    "api.max_stop_len": (1, 65536),
    "api.max_logit_bias": (0, 300_000),
    "api.keep_alive_comment_seconds": (0, 3600),
    "api.loading_comment_seconds": (0, 3600),
    "api.send_timeout_seconds": (1, 86400),
    "ollama.autostart_timeout_seconds": (1, 3600),
    "ollama.connect_timeout_seconds": (0.01, 60),
    "ollama.detection_timeout_seconds": (0.01, 60),
    "ollama.detection_cache_seconds": (0, 3600),
    "ollama.silence_timeout_seconds": (1, 86400),
    "ollama.max_images": (0, 1024),
    "ollama.max_image_bytes": (1024, 2**30),
    "ollama.image_timeout_seconds": (0.1, 600),
    "llamacpp.longest_wait_seconds": (0, 3600),
    "llamacpp.ttft_target_ms": (0, 600_000),
    "llamacpp.max_sequences": (1, 256),
    "llamacpp.queue_size": (0, 100_000),
    "llamacpp.batch_size": (32, 65536),
    "llamacpp.inter_token_target_ms": (1, 60_000),
    "llamacpp.threads": (0, 1024),
    "models.*.context_length": (0, 2**24),
    "models.*.kv_cells": (0, 2**26),
    "models.*.n_gpu_layers": (-1, 10_000),
    "models.*.max_sequences": (0, 256),
    "models.*.ttft_target_ms": (-1, 600_000),
    "models.*.threads": (0, 1024),
    "models.*.main_gpu": (-1, 63),
}
_NOT_ZERO = ("llamacpp.load_timeout",)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration.

    ``path`` is ``section.name``, or ``models.*.name`` for a key of each model. ``default`` is ``MISSING`` when a value
    is required. ``limits`` are the least and the greatest number allowed.
    """

    path: str
    type: Any
    default: Any
    limits: tuple[float, float] | None

    @property
    def variable(self) -> str | None:
        """The environment variable that sets this key; keys of models have none of their own."""
        section, _, name = self.path.partition(".")
        return None if section in _NAMED_TABLES else f"{ENVIRONMENT_PREFIX}{section}__{name}".upper()

    @property
    def allowed(self) -> str:
        """What a value may be, in words."""
        words = in_words(self.type)
        if self.limits is not None:
            low, high = self.limits
            words += f" from {low:g} to {high:.15g}"
        if self.path in _NOT_ZERO:
            words += ", but not 0"
        return f"empty, or {words}" if self._may_be_empty else words

    def accept(self, value: object, *, text: bool = False) -> Any:  # noqa: ANN401 - typed by ``type``
        """Return ``value`` in the key's type; ``text`` says that it is text which stands for the value.

        Raises:
            NotAllowed: the value is of the wrong type or out of range.

        """
        if self._may_be_empty and value == "":
            return self.default
        try:
            accepted = read_text(self.type, str(value)) if text else read_value(self.type, value)
        except NotAllowed:
            raise
        except ValueError as error:
            raise NotAllowed(value, self.allowed) from error
        if not self._is_in_range(accepted):
            raise NotAllowed(value, self.allowed)
        return accepted

    @property
    def _may_be_empty(self) -> bool:
        """Whether it is a duration that can be left unsaid."""
        return self.type is Duration and self.default == ""

    def _is_in_range(self, value: Any) -> bool:  # noqa: ANN401 - typed by ``type``
        if self.path in _NOT_ZERO and duration_seconds(value) == 0:
            return False
        return self.limits is None or isinstance(value, str) or self.limits[0] <= value <= self.limits[1]


def _keys() -> Iterator[Key]:
    for section, config in _SECTIONS.items():
        if not is_dataclass(config):
            continue
        hints = get_type_hints(config)
        for field in fields(config):
            path = f"{section}.*.{field.name}" if section in _NAMED_TABLES else f"{section}.{field.name}"
            yield Key(path, hints[field.name], field.default, _RANGES.get(path))


KEYS: dict[str, Key] = {key.path: key for key in _keys()} | {"aliases.*": Key("aliases.*", str, MISSING, None)}
_VARIABLES = {key.variable: key for key in KEYS.values() if key.variable}
_TABLE_VARIABLES = {f"{ENVIRONMENT_PREFIX}{section.upper()}": section for section in _NAMED_TABLES}


def load_settings(
    overrides: Mapping[str, Any] | None = None,
    config_path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> LoadedSettings:
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
    layers = tuple(InitSettingsSource(Settings, values) for values in (flag_values, environment_values, file_values))
    settings = Settings(_build_sources=(layers, {}))  # type: ignore[call-arg] # pydantic's own, not a field
    settings, is_host_used = _with_ollama_host(settings, environ)
    variables += [OLLAMA_HOST_VARIABLE] if is_host_used else []
    parts = [str(path)] if path else []
    parts += [*variables, *(["command line"] if overrides else [])]
    return LoadedSettings(settings, ", ".join(parts) or "defaults")


def inherited_environment() -> dict[str, str]:
    """Return the environment for programs that this server starts."""
    return dict(os.environ)


def _with_ollama_host(settings: Settings, environ: Mapping[str, str]) -> tuple[Settings, bool]:
    """Let Ollama's own variable say where the daemon is, where nothing else does."""
    variable = environ.get(OLLAMA_HOST_VARIABLE, "").strip()
    is_host_used = bool(variable) and not settings.ollama.url.strip()
    place, url = (OLLAMA_HOST_VARIABLE, variable) if is_host_used else ("ollama.url", settings.ollama.url)
    try:
        daemon_url(url)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error.message}") from error
    return settings.model_copy(update={"ollama": replace(settings.ollama, url=url)}), is_host_used


def find_config_path(config_path: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file to read: the given one, ``LLMSPELL_CONFIG``, ``./config.toml``, or the user's; ``None`` if none.

    Raises:
        ConfigurationError: a file that was asked for is not there.

    """
    if config_path is not None:
        return _existing(config_path, "--config")
    if named := environ.get(CONFIG_VARIABLE):
        return _existing(Path(named).expanduser(), CONFIG_VARIABLE)
    candidates = (Path("config.toml"), _user_directory(environ, "XDG_CONFIG_HOME", ".config") / "config.toml")
    return next((path.absolute() for path in candidates if path.is_file()), None)


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where to keep what can be found out again: ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``llmspell``.

    It may not exist, and it may not be possible to make it.
    """
    return _user_directory(environ, "XDG_CACHE_HOME", ".cache").absolute()


def _user_directory(environ: Mapping[str, str], variable: str, default: str) -> Path:
    if named := environ.get(variable):
        return Path(named, "llmspell")
    try:
        home = Path.home()
    except RuntimeError:
        home = Path("/")  # what container runtimes give a user without an entry
    return home / default / "llmspell"


def _existing(path: Path, asked_by: str) -> Path:
    if not path.exists():
        raise ConfigurationError(f"{asked_by}: there is no file {path}.")
    return path.absolute()


def _read_file(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:  # what is not UTF-8, and what is not TOML
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
    return variable == CONFIG_VARIABLE or is_service_link or (variable == "LLMSPELL_PORT" and "://" in value)


def _from_json(variable: str, value: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return from_json(value)
    except ValueError as error:
        raise ConfigurationError(f"{variable}: is not valid JSON: {error}.") from error


def _checked_tables(tables: Mapping[str, Any], place: str, directory: Path) -> dict[str, Any]:
    """Check the keys and values of ``tables`` and convert them; ``place`` is named in errors."""
    for section in tables:
        if section not in _SECTIONS:
            candidates = _SECTIONS if isinstance(tables[section], Mapping) else [*_SECTIONS, *KEYS]
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
        return str(directory / Path(value).expanduser()) if value else ""
    return tuple(str(directory / Path(each).expanduser()) for each in value if each)


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
        paths = {key: str(directory / Path(model[key]).expanduser()) for key in _PATH_KEYS if model.get(key)}
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
