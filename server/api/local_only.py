"""Who may administer the server while there are no keys: people and programs on this machine. Pure.

Browsers are on this machine, too, and run pages from everywhere: a page can send requests to ``localhost`` (their
``Origin`` is the page's), or have its own name resolve to 127.0.0.1 (then ``Host`` is that name). A reverse proxy on
this machine is known by the headers it adds.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

_FORWARDING = frozenset({"forwarded", "via", "x-real-ip"})
_FORWARDING_PREFIX = "x-forwarded-"
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9.\-]+))(?::[0-9]{1,5})?\Z")
_MAX_SHOWN = 64
_ORIGIN_SCHEMES = ("http://", "https://")


def refusal(client: str | None, headers: Iterable[tuple[str, str]]) -> str | None:
    """Return why a request does not come from this machine, as the end of a sentence; ``None`` if it does.

    Args:
        client: the address of the client; an ASGI server that trusts a proxy puts what the proxy says there, so it
            counts only without forwarding headers. ``None`` if it is not known.
        headers: names in lower case, and values, of the request.

    """
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name, []).append(value.lower())
    if proxies := sorted(name for name in values if _is_forwarding(name)):
        return f"this one was forwarded by a proxy (its header {proxies[0][:_MAX_SHOWN]} says so)"
    if client is None or not is_loopback(client):
        return "this one comes from another one"
    hosts = values.get("host", [])
    if not all(_is_loopback_authority(host) for host in hosts):
        return "this one is for another host (its header host says so)"
    if not all(_is_same_origin(origin, hosts) for origin in values.get("origin", [])):
        return "this one was sent by a page of another site (its header origin says so)"
    return None


def is_loopback(host: str) -> bool:
    """Whether an IP address is one that only this machine can have sent from."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def _is_forwarding(name: str) -> bool:
    return name in _FORWARDING or name.startswith(_FORWARDING_PREFIX)


def _is_loopback_authority(authority: str) -> bool:
    match = _AUTHORITY.match(authority)
    if match is None:
        return False
    host = match["v6"] or match["name"]
    return host == "localhost" or is_loopback(host)


def _is_same_origin(origin: str, hosts: Iterable[str]) -> bool:
    """Whether a page of this very host and port asks: other servers on this machine may have pages, too."""
    return any(origin == f"{scheme}{host}" for scheme in _ORIGIN_SCHEMES for host in hosts)
