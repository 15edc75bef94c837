"""Images that a request names by URL: decoded when they are inline, fetched when they are elsewhere.

The daemon wants bytes, so this server fetches what a client points at. A client must not reach through it into the
operator's network: unless that is allowed, each hop goes to an address that was found to be public, and to that very
address, because a name may resolve to another one a moment later.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import httpx

from server.core.errors import InvalidRequest

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""Give the addresses of a host name, best first; raises ``OSError`` or ``ValueError`` when there are none."""

_MAX_REDIRECTS = 3
_MAX_ADDRESSES_TRIED = 4
_MAX_URL_SHOWN = 100
_REDIRECTS = {301, 302, 303, 307, 308}
_INLINE_FORM = "data:image/png;base64,…"
_SEND_INLINE = f"send the image itself as a URL of the form {_INLINE_FORM}"
_ACCEPTED = "PNG, JPEG, GIF, WebP and BMP"

_IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_BMP_HEADER_SIZES = {12, 40, 52, 56, 64, 108, 124}


_MAX_ESCAPES = 1_000_000
"""Undoing a percent escape takes far longer than decoding the character it stands for."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may cost.

    Attributes:
        max_bytes: largest image, encoded as PNG, JPEG and so on.
        timeout_seconds: time for one image in all: name resolution, redirects and transfer.
        allow_private: fetch from addresses that are not public, such as those of the operator's own network.

    """

    max_bytes: int
    timeout_seconds: float
    allow_private: bool


def decode_data_url(url: str, param: str, limits: ImageLimits) -> bytes:
    """Decode ``data:[type];base64,…``; what the image is, its first bytes say, whatever type the URL claims.

    Raises:
        InvalidRequest: not a base64 data URL, not an image, or too large; ``param`` is the path of the URL's field.

    """
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise InvalidRequest(f"The image URL is not of the form {_INLINE_FORM}.", param=param)
    if body.count("%") > _MAX_ESCAPES:
        raise InvalidRequest(f"The image URL has more than {_MAX_ESCAPES} escapes; send plain base64.", param=param)
    try:
        encoded = b"".join(unquote_to_bytes(body).split())  # some clients wrap lines, some escape + and /
        if len(encoded) // 4 * 3 > limits.max_bytes + 3:
            raise _too_large(param, limits)
        data = base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except ValueError as error:
        raise InvalidRequest(f"The image URL holds invalid base64: {error}.", param=param) from error
    return _checked(data, param, limits)


async def resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class ImageFetcher:
    """Loads images by URL. Callers bound how many at a time."""

    def __init__(
        self,
        limits: ImageLimits,
        resolve: Resolver = resolve,
        make_transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        """Open nothing yet; the first fetch calls ``make_transport`` in a worker thread."""
        self._limits = limits
        self._resolve = resolve
        self._make_transport = make_transport or _make_transport
        self._opening = asyncio.Lock()
        self._transport: httpx.AsyncBaseTransport | None = None

    async def load(self, url: str, param: str) -> bytes:
        """Give the image that a ``data:``, ``http:`` or ``https:`` URL stands for.

        Raises:
            InvalidRequest: the URL is wrong, or what it names cannot be had or is no image; ``param`` says which.

        """
        url = url.strip()
        if url[:5].lower() == "data:":
            # megabytes of base64 take a while, in which the event loop would serve nobody
            return await asyncio.to_thread(decode_data_url, url, param, self._limits)
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                data = await self._fetch(_parsed(url, param), param)
        except TimeoutError as error:
            seconds = self._limits.timeout_seconds
            raise _not_fetched(url, f"took longer than {seconds:g} s", param) from error
        return _checked(data, param, self._limits)

    async def aclose(self) -> None:
        """Close all connections; no ``load`` may be under way."""
        if self._transport is not None:
            await self._transport.aclose()

    async def _fetch(self, url: httpx.URL, param: str) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._get(url, param)
            try:
                if response.status_code not in _REDIRECTS:
                    return await self._read(response, url, param)
                url = _target(url, response, param)
            finally:
                await response.aclose()
        raise _not_fetched(url, f"is behind more than {_MAX_REDIRECTS} redirects", param)

    async def _get(self, url: httpx.URL, param: str) -> httpx.Response:
        """Send the request to the first of the host's addresses that takes it."""
        transport = await self._opened()
        addresses = (await self._addresses(url, param))[:_MAX_ADDRESSES_TRIED]
        seconds = self._limits.timeout_seconds / len(addresses)
        for address in addresses:
            try:
                return await transport.handle_async_request(_request(url, address, seconds))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _not_fetched(url, "was answered with something other than HTTP", param) from error
        raise _not_fetched(url, "could not be connected to, or its certificate is not valid", param)

    async def _addresses(self, url: httpx.URL, param: str) -> list[str]:
        try:
            addresses = await self._resolve(_ascii_host(url), _port(url))
        except (OSError, ValueError) as error:
            raise _not_fetched(url, "has a host name that cannot be resolved", param) from error
        if not addresses:
            raise _not_fetched(url, "has a host name that cannot be resolved", param)
        if not self._limits.allow_private and not all(_is_public(address) for address in addresses):
            raise InvalidRequest(
                f"The image URL {_shown(url)} leads to a private address, which this server does not fetch from; "
                f"{_SEND_INLINE}. (The operator may allow it with `[ollama] allow_private_images = true`.)",
                param=param,
            )
        return addresses

    async def _read(self, response: httpx.Response, url: httpx.URL, param: str) -> bytes:
        if response.status_code != httpx.codes.OK:
            raise _not_fetched(url, f"was answered with HTTP status {response.status_code}", param)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise _not_fetched(url, "was answered with compressed data, which was not asked for", param)
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self._limits.max_bytes:
            raise _too_large(param, self._limits)
        try:
            return await self._read_body(response, param)
        except httpx.HTTPError as error:
            raise _not_fetched(url, "broke off while its image was transferred", param) from error

    async def _read_body(self, response: httpx.Response, param: str) -> bytes:
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > self._limits.max_bytes:
                raise _too_large(param, self._limits)
        return bytes(data)

    async def _opened(self) -> httpx.AsyncBaseTransport:
        async with self._opening:
            if self._transport is None:  # in a thread: reading the certificates takes tens of milliseconds
                self._transport = await asyncio.to_thread(self._make_transport)
            return self._transport


def _make_transport() -> httpx.AsyncBaseTransport:
    """Make a bare transport: it knows no redirects, cookies or proxies.

    Connections are not kept: they are pooled by address, and one that was opened for a name must not serve another.
    """
    return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))


def _request(url: httpx.URL, address: str, connect_seconds: float) -> httpx.Request:
    """Ask ``address`` for what ``url`` names; the certificate is checked against the URL's name."""
    return httpx.Request(
        "GET",
        url.copy_with(host=address, fragment=None),
        headers={
            "Host": url.netloc.decode("ascii"),
            "Accept": "image/*",
            "Accept-Encoding": "identity",  # what arrives is what is counted
            "User-Agent": "llmspell-server",
            "Connection": "close",
        },
        extensions={"sni_hostname": _ascii_host(url).rstrip("."), "timeout": {"connect": connect_seconds}},
    )


def _parsed(url: str, param: str) -> httpx.URL:
    if not url.lower().startswith(("http:", "https:")):
        raise _wrong_scheme(url, param)
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidRequest(f"The image URL {_shown(url)} is invalid: {error}.", param=param) from error
    return _acceptable(parsed, param)


def _acceptable(url: httpx.URL, param: str) -> httpx.URL:
    if url.scheme not in {"http", "https"}:
        raise _wrong_scheme(url, param)
    if url.userinfo:  # not shown: it may hold a password
        raise InvalidRequest(f"An image URL must not hold a user name or password; {_SEND_INLINE}.", param=param)
    if not url.host:
        raise InvalidRequest(f"The image URL {_shown(url)} names no host.", param=param)
    return url


def _target(url: httpx.URL, response: httpx.Response, param: str) -> httpx.URL:
    """Give where a redirect leads."""
    try:
        target = url.join(response.headers["location"])
    except (KeyError, httpx.InvalidURL, ValueError) as error:
        raise _not_fetched(url, "redirects to nowhere", param) from error
    return _acceptable(target, param)


def _ascii_host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii")


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _is_public(text: str) -> bool:
    """Whether anyone on the internet could reach this address, whichever way it is written."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    embedded = _embedded(address)
    if embedded is not None:
        return _is_public(str(embedded))
    return address in _IPV6_UNICAST and address.is_global


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Give the IPv4 address that traffic to an IPv6 address ends up at, if it is one of the translated ranges."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


def _checked(data: bytes, param: str, limits: ImageLimits) -> bytes:
    if len(data) > limits.max_bytes:
        raise _too_large(param, limits)
    if not _is_image(data):
        raise InvalidRequest(f"The data is not an image that can be used: {_ACCEPTED} are accepted.", param=param)
    return data


def _is_image(data: bytes) -> bool:
    if data[:4] == b"RIFF":
        return data[8:12] == b"WEBP"
    if data[:2] == b"BM":  # two letters are not enough: text may begin with them
        return data[6:10] == bytes(4) and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES
    return data.startswith(_SIGNATURES)


def _shown(url: httpx.URL | str) -> str:
    text = str(url)
    return repr(text if len(text) <= _MAX_URL_SHOWN else text[:_MAX_URL_SHOWN] + "…")


def _wrong_scheme(url: httpx.URL | str, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"The image URL {_shown(url)} must begin with http:// or https://; or {_SEND_INLINE}.", param=param
    )


def _not_fetched(url: httpx.URL | str, what: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"The image at {_shown(url)} {what}; check the URL, or {_SEND_INLINE}.", param=param)


def _too_large(param: str, limits: ImageLimits) -> InvalidRequest:
    size = f"{limits.max_bytes / 2**20:.3g} MiB" if limits.max_bytes >= 2**20 else f"{limits.max_bytes} bytes"
    return InvalidRequest(
        f"The image is larger than {size}, the most that this server takes; scale it down or compress it more.",
        param=param,
    )
