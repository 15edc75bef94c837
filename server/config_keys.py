"""The keys of the configuration: the sections they are in, what each may be, which variable sets it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from server.api.config import ApiConfig
from server.backends.ollama.config import OllamaConfig
from server.config_values import NotAllowed, in_words, read_text, read_value
from server.core.duration import Duration, duration_seconds
from server.pool.config import ModelConfig, PoolConfig
from server.router import RoutingConfig
from server.store.config import StoreConfig

ENVIRONMENT_PREFIX = "LLMSPELL_"


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


SECTIONS: dict[str, Any] = {
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
NAMED_TABLES = ("models", "aliases")

_RANGES: dict[str, tuple[float, float]] = {
    "server.port": (0, 65535),
    "server.graceful_shutdown_seconds": (0, 3600),
    "api.max_body_bytes": (1024, 2**30),
    "api.max_messages": (1, 100_000),
    "api.max_n": (1, 128),
    "api.max_stop_sequences": (0, 64),
    "api.max_stop_len": (1, 65536),
    "api.max_logit_bias": (0, 300_000),
    "api.max_tools": (0, 1024),
    "api.max_schema_bytes": (64, 2**19),
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
        return None if section in NAMED_TABLES else f"{ENVIRONMENT_PREFIX}{section}__{name}".upper()

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
    for section, config in SECTIONS.items():
        if not is_dataclass(config):
            continue
        hints = get_type_hints(config)
        for field in fields(config):
            path = f"{section}.*.{field.name}" if section in NAMED_TABLES else f"{section}.{field.name}"
            yield Key(path, hints[field.name], field.default, _RANGES.get(path))


KEYS: dict[str, Key] = {key.path: key for key in _keys()} | {"aliases.*": Key("aliases.*", str, MISSING, None)}
