"""Where the Ollama daemon is: the meaning of ``OLLAMA_HOST``, the same as for Ollama's own command line.

Follows ``Host`` and ``ConnectableHost`` of
https://github.com/ollama/ollama/blob/main/envconfig/config.go, so that a value that works there works here.
"""

from __future__ import annotations

import ipaddress
import re

from server.core.errors import ConfigurationError

_DEFAULT_HOST = "127.0.0.1"
_DEFAULT_PORTS = {"http": 80, "https": 443}  # of URLs; without a scheme it is Ollama's own
_OLLAMA_PORT = 11434
_OLLAMA_CLOUD = "ollama.com"
_HOST_AND_PORT = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*)):([^\[\]:]*)")
_PORT = re.compile(r"[+-]?[0-9]{1,10}")
_LABEL = r"[A-Za-z0-9_-]{1,63}"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_ALMOST_AN_ADDRESS = re.compile(r"[0-9]+.[0-9]+.[0-9]+.[0-9]+")  # what httpx takes for an IPv4 address
_ZONE = re.compile(r"[A-Za-z0-9._-]+")
_MAX_NAME_LEN = 253

_ADVICE = "Write it as http://host:port, such as http://127.0.0.1:11434."


def daemon_url(text: str) -> str:
    """Give the base URL, ``scheme://host:port[/path]`` without a trailing slash, that ``OLLAMA_HOST`` stands for.

    What Ollama's command line makes of a value is what this makes of it: an empty one is ``http://127.0.0.1:11434``,
    an invalid port is the default one, and an address to listen on (``0.0.0.0``) becomes one to connect to.

    Raises:
        ConfigurationError: no daemon can be reached under this value.

    """
    value = text.strip().strip("\"'").strip()
    _check_characters(value)
    scheme, rest, default_port = _split_scheme(value)
    authority, _, path = rest.partition("/")
    host, port = _split_authority(authority, default_port)
    if port == 0:
        raise ConfigurationError(f"The Ollama address {value!r} names port 0, which nothing can connect to. {_ADVICE}")
    path = path.strip("/")
    return f"{scheme}://{_connectable(host, value)}:{port}" + (f"/{path}" if path else "")


def _check_characters(value: str) -> None:
    if "@" in value:  # the value is not repeated: it may hold a password
        raise ConfigurationError(f"The Ollama address must not hold a user name or password. {_ADVICE}")
    if any(character.isspace() or not character.isprintable() for character in value):
        raise ConfigurationError(f"The Ollama address {value!r} has a space or a control character inside. {_ADVICE}")
    if "?" in value or "#" in value:
        raise ConfigurationError(f"The Ollama address {value!r} must end with the path: no '?', no '#'. {_ADVICE}")


def _split_scheme(value: str) -> tuple[str, str, int]:
    """Give the scheme, what follows it, and the port that is meant when none is named."""
    scheme, separator, rest = value.partition("://")
    if not separator:
        return ("https", value, 443) if value == _OLLAMA_CLOUD else ("http", value, _OLLAMA_PORT)
    if scheme.lower() not in _DEFAULT_PORTS:
        raise ConfigurationError(f"The Ollama address {value!r} has a scheme other than http and https. {_ADVICE}")
    # Ollama looks for the default port before it ignores case.
    return scheme.lower(), rest, _DEFAULT_PORTS.get(scheme, _OLLAMA_PORT)


def _split_authority(authority: str, default_port: int) -> tuple[str, int]:
    match = _HOST_AND_PORT.fullmatch(authority)
    if match is None:  # no port, or an IPv6 address without brackets
        bare = authority.strip("[]")
        return (bare if _parse_address(bare) else authority) or _DEFAULT_HOST, default_port
    bracketed, plain, port = match.groups()
    return bracketed or plain or _DEFAULT_HOST, _parse_port(port, default_port)


def _parse_port(text: str, default: int) -> int:
    number = int(text) if _PORT.fullmatch(text) else -1
    return number if 0 <= number <= 65535 else default


def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _connectable(host: str, value: str) -> str:
    """Give the host as it stands in a URL; an address that means "all interfaces" becomes this machine."""
    address = _parse_address(host)
    if address is None:
        return _check_name(host, value)
    if isinstance(address, ipaddress.IPv4Address):
        return _DEFAULT_HOST if address.is_unspecified else str(address)
    if address.scope_id is not None and not _ZONE.fullmatch(address.scope_id):
        raise _wrong_host(value)
    return "[::1]" if address.is_unspecified else f"[{address}]"


def _check_name(name: str, value: str) -> str:
    """Give a host name as DNS knows it: international ones are encoded."""
    encoded = name.lower() if name.isascii() else _international(name, value)
    if _ALMOST_AN_ADDRESS.fullmatch(encoded) or len(encoded) > _MAX_NAME_LEN or not _NAME.fullmatch(encoded):
        raise _wrong_host(value)
    return encoded


def _international(name: str, value: str) -> str:
    import httpx  # noqa: PLC0415 - it takes longer to import than most commands take, and few hosts need it

    try:
        return httpx.URL(f"http://{name}").raw_host.decode("ascii")
    except httpx.InvalidURL as error:
        raise _wrong_host(value) from error


def _wrong_host(value: str) -> ConfigurationError:
    return ConfigurationError(f"The Ollama address {value!r} names no host that can exist. {_ADVICE}")
