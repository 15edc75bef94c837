"""``Settings``: everything that an operator can set, for the server.

The values are read and checked in ``server.config_sources``, which commands that need no server use by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from server.api.config import ApiConfig
from server.backends.ollama.config import OllamaConfig
from server.config_keys import LoggingConfig, ServerConfig
from server.config_sources import cache_directory, find_config_path, inherited_environment, load_configuration
from server.pool.config import ModelConfig, PoolConfig
from server.router import RoutingConfig
from server.store.config import StoreConfig

__all__ = [
    "LoadedSettings",
    "LoggingConfig",
    "ServerConfig",
    "Settings",
    "cache_directory",
    "find_config_path",
    "inherited_environment",
    "load_settings",
]


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


def load_settings(
    overrides: Mapping[str, Any] | None = None,
    config_path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> LoadedSettings:
    """Read the configuration, as ``load_configuration`` does.

    Raises:
        ConfigurationError: a file cannot be read, or a key or value in one of the sources is wrong.

    """
    loaded = load_configuration(overrides, config_path, environ)
    sections = {name: getattr(loaded.configuration, name) for name in Settings.model_fields}
    return LoadedSettings(Settings(**sections), loaded.source)
