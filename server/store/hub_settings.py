"""Where the hub is and who asks: what Hugging Face's own environment variables and files say.

https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_ENDPOINT = "https://huggingface.co"

_TRUE = {"1", "on", "yes", "true"}
_MAX_TOKEN_LEN = 4096
_CREDENTIALS = re.compile(r"(?<=://)[^/]*@")


@dataclass(frozen=True, slots=True)
class HubSettings:
    """The hub that models come from.

    Attributes:
        endpoint: its base URL, without a slash at the end.
        token: access token, or empty; sent to the endpoint and nowhere else.
        is_offline: nothing is asked of the hub.

    """

    endpoint: str = DEFAULT_ENDPOINT
    token: str = field(default="", repr=False)
    is_offline: bool = False

    @property
    def shown(self) -> str:
        """The endpoint as it may be shown: without the name and the password that some mirrors have in it."""
        return _CREDENTIALS.sub("", self.endpoint)


def hub_settings(environment: Mapping[str, str], home: Path) -> HubSettings:
    """Read what Hugging Face's own tools would read, so that who is logged in there is logged in here.

    Args:
        environment: the process's variables.
        home: the user's home directory, for the token that `hf auth login` stores.

    """
    return HubSettings(
        endpoint=(environment.get("HF_ENDPOINT", "").strip() or DEFAULT_ENDPOINT).rstrip("/"),
        token=_token(environment, home),
        is_offline=_is_true(environment, "HF_HUB_OFFLINE"),
    )


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").strip().lower() in _TRUE


def _token(environment: Mapping[str, str], home: Path) -> str:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := _usable(environment.get(name, "")):
            return token
    if _is_true(environment, "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return ""
    try:
        return _usable(_token_path(environment, home).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not logged in
        return ""


def _token_path(environment: Mapping[str, str], home: Path) -> Path:
    if path := environment.get("HF_TOKEN_PATH"):
        return _expanded(path, home)
    if folder := environment.get("HF_HOME"):
        return _expanded(folder, home) / "token"
    cache = environment.get("XDG_CACHE_HOME")
    return (_expanded(cache, home) if cache else home / ".cache") / "huggingface" / "token"


def _expanded(path: str, home: Path) -> Path:
    return home / path.removeprefix("~").lstrip("/\\") if path.startswith("~") else Path(path)


def _usable(text: str) -> str:
    """Return a token without the line ends that files have, or nothing for what no header can hold."""
    token = text.strip()
    return token if token.isascii() and token.isprintable() and len(token) <= _MAX_TOKEN_LEN else ""
