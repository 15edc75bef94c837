"""Images by URL: what is decoded, what is fetched over real sockets, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import AsyncIterator

import pytest
from image_site import LIMITS, PARAM, PNG, Handler, Site, answer, data_url, listening, load, redirect, refusal, resolver

from server.backends.ollama.images import ImageFetcher, ImageLimits, decode_data_url
from server.core.errors import InvalidRequest

BMP = b"BM" + (70).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little") + bytes(9)
IMPATIENT = ImageLimits(max_bytes=1000, timeout_seconds=0.2, allow_private=True)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with listening(Site()) as site:
        yield site


# --- data: URLs ---


@pytest.mark.parametrize(
    "image",
    [PNG, b"\xff\xd8\xff\xe0JFIF", b"GIF87a..", b"GIF89a..", b"RIFF\x10\x00\x00\x00WEBPVP8 ", BMP],
    ids=["png", "jpeg", "gif87", "gif89", "webp", "bmp"],
)
def test_all_formats_are_decoded(image: bytes) -> None:
    assert decode_data_url(data_url(image), PARAM, LIMITS) == image


@pytest.mark.parametrize(
    "url",
    [
        data_url(PNG, kind=""),
        data_url(PNG, kind="image/jpeg"),
        data_url(PNG, kind="image/png;name=a.png"),
        data_url(PNG).replace("data:image/png;base64", "DATA:IMAGE/PNG;BASE64"),
        data_url(PNG).rstrip("="),
        data_url(PNG).replace("+", "%2B").replace("/", "%2F").replace("=", "%3D").replace("image%2Fpng", "image/png"),
        data_url(PNG)[:40] + "\r\n" + data_url(PNG)[40:] + "\n",
        f"  {data_url(PNG)}",
    ],
)
async def test_spellings_of_data_urls(url: str) -> None:
    assert await load(ImageFetcher(LIMITS), url) == PNG


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64", "of the form"),
        ("data:image/png,hello", "of the form"),
        ("data:,", "of the form"),
        ("data:image/png;base64,", "PNG, JPEG, GIF, WebP and BMP"),
        ("data:image/png;base64,?!", "invalid base64"),
        ("data:image/png;base64,ié", "invalid base64"),
        ("data:image/png;base64,\ud800", "invalid base64"),
        ("data:image/png;base64,A", "invalid base64"),
        ("data:image/png;base64,QUJ=QUJD", "invalid base64"),
        (data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "PNG, JPEG, GIF, WebP and BMP"),
        (data_url(b"<!doctype html>"), "PNG, JPEG, GIF, WebP and BMP"),
        (data_url(b"RIFF\x10\x00\x00\x00WAVEfmt "), "PNG, JPEG, GIF, WebP and BMP"),
        (data_url(b"BMW is a maker of cars"), "PNG, JPEG, GIF, WebP and BMP"),
        (data_url(PNG + bytes(LIMITS.max_bytes)), "larger than 1000 bytes"),
        (data_url(PNG + bytes(LIMITS.max_bytes + 1 - len(PNG))), "larger than 1000 bytes"),
    ],
)
async def test_wrong_data_urls(url: str, message: str) -> None:
    assert message in await refusal(ImageFetcher(LIMITS), url)


def test_an_image_may_be_as_large_as_the_limit() -> None:
    image = PNG + bytes(LIMITS.max_bytes - len(PNG))
    assert decode_data_url(data_url(image), PARAM, LIMITS) == image


def test_a_limit_is_named_in_mebibytes() -> None:
    limits = ImageLimits(max_bytes=3 * 2**19, timeout_seconds=1, allow_private=False)
    with pytest.raises(InvalidRequest, match=r"1\.5 MiB"):
        decode_data_url(data_url(PNG + bytes(limits.max_bytes)), PARAM, limits)


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("ftp://example.com/a.png", "must begin with http"),
        ("/images/a.png", "must begin with http"),
        ("//example.com/a.png", "must begin with http"),
        (base64.b64encode(bytes(100_000)).decode(), "must begin with http"),
        ("http:a.png", "names no host"),
        ("https:///a.png", "names no host"),
        ("http://ann:secret@example.com/", "user name or password"),
        ("http://example.com:port/", "invalid"),
        ("http://exa\x00mple.com/", "invalid"),
        ("http://\ud800/", "invalid"),
        ("http://example.com/" + "a" * 100_000, "invalid"),
    ],
)
async def test_wrong_urls(url: str, message: str) -> None:
    told = await refusal(ImageFetcher(LIMITS), url)
    assert message in told
    assert "secret" not in told
    assert len(told) < 400


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64 + ".example", "exa%20mple.com"])
async def test_a_name_that_does_not_resolve(host: str) -> None:
    assert "cannot be resolved" in await refusal(ImageFetcher(LIMITS), f"http://{host}/a.png")


async def test_a_resolver_without_answers() -> None:
    assert "cannot be resolved" in await refusal(ImageFetcher(LIMITS, resolver([])), "http://images.test/")


# --- what is sent, and how answers are taken ---


async def test_an_image_is_fetched_with_a_plain_request(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    site.paths["/a.png?x=1"] = answer(PNG)
    assert await load(ImageFetcher(LIMITS, resolver(["127.0.0.1"])), site.url("/a.png?x=1#top", "images.test")) == PNG
    request = site.requests[0].decode().lower()
    assert f"host: images.test:{site.port}\r\n" in request
    assert "accept: image/*\r\n" in request
    assert "accept-encoding: identity\r\n" in request
    assert not {"cookie", "authorization", "referer"} & {line.split(":")[0] for line in request.splitlines()}


async def test_redirects_are_followed_without_cookies(site: Site) -> None:
    site.paths |= {"/1": redirect("/2"), "/2": redirect("3"), "/3": redirect(site.url("/4")), "/4": answer(PNG)}
    assert await load(ImageFetcher(LIMITS), site.url("/1")) == PNG
    assert not any(b"ookie" in request for request in site.requests)


async def test_too_many_redirects(site: Site) -> None:
    site.paths["/1"] = redirect("/1")
    assert "more than 3 redirects" in await refusal(ImageFetcher(LIMITS), site.url("/1"))
    assert len(site.requests) == 4


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/passwd", "must begin with http"),
        (data_url(PNG), "must begin with http"),
        ("http://ann:secret@127.0.0.1/", "user name or password"),
        ("http://1.2.3.400/", "redirects to nowhere"),
    ],
)
async def test_redirects_that_lead_nowhere(site: Site, location: str, message: str) -> None:
    site.paths["/"] = redirect(location)
    assert message in await refusal(ImageFetcher(LIMITS), site.url("/"))


async def test_a_redirect_without_location(site: Site) -> None:
    site.paths["/"] = answer(status="302 Found")
    assert "redirects to nowhere" in await refusal(ImageFetcher(LIMITS), site.url("/"))


@pytest.mark.parametrize("status", ["204 No Content", "206 Partial Content", "304 Not Modified", "404 Not Found"])
async def test_other_statuses(site: Site, status: str) -> None:
    site.paths["/"] = answer(status=status)
    assert f"HTTP status {status[:3]}" in await refusal(ImageFetcher(LIMITS), site.url("/"))


@pytest.mark.parametrize("body", [b"<svg/>", b"<!doctype html>", b"", b"\x00"])
async def test_what_is_not_an_image(site: Site, body: bytes) -> None:
    site.paths["/a.png"] = answer(body, content_type="image/png")
    assert "PNG, JPEG, GIF, WebP and BMP are accepted" in await refusal(ImageFetcher(LIMITS), site.url("/a.png"))


async def test_compressed_answers_are_refused(site: Site) -> None:
    site.paths["/"] = answer(gzip.compress(PNG), content_encoding="gzip")
    assert "compressed" in await refusal(ImageFetcher(LIMITS), site.url("/"))


@pytest.mark.parametrize("length", ["1001", "9" * 19])
async def test_an_announced_size_is_believed(site: Site, length: str) -> None:
    async def announce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(content_length=length))
        await reader.read()  # until the client hangs up: it waits for no byte of the body

    site.paths["/"] = announce
    assert "larger than 1000 bytes" in await refusal(ImageFetcher(LIMITS), site.url("/"))


async def test_bytes_are_counted_as_they_come(site: Site) -> None:
    has_gone = asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(transfer_encoding="chunked"))
        while not reader.at_eof():
            writer.write(b"100\r\n" + PNG.ljust(256) + b"\r\n")
            with_patience = asyncio.create_task(reader.read())
            await asyncio.wait([with_patience], timeout=0.001)
            with_patience.cancel()
        has_gone.set()

    site.paths["/"] = pour
    assert "larger than 1000 bytes" in await refusal(ImageFetcher(LIMITS), site.url("/"))
    await has_gone.wait()


async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(content_length="900"))
    hung_up = asyncio.create_task(reader.read())
    while not hung_up.done():
        writer.write(b"\x89")
        await asyncio.wait([hung_up], timeout=0.01)


@pytest.mark.parametrize("behaviour", [hang, drip])
async def test_the_deadline_covers_the_transfer(site: Site, behaviour: Handler) -> None:
    site.paths["/"] = behaviour
    assert "took longer than 0.2 s" in await refusal(ImageFetcher(IMPATIENT), site.url("/"))


async def test_the_deadline_covers_redirects_together(site: Site) -> None:
    async def redirect_late(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.12)
        writer.write(redirect("/"))

    site.paths["/"] = redirect_late
    assert "took longer than 0.2 s" in await refusal(ImageFetcher(IMPATIENT), site.url("/"))


async def test_the_deadline_covers_name_resolution() -> None:
    async def never(_host: str, _port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    assert "took longer than 0.2 s" in await refusal(ImageFetcher(IMPATIENT, never), "http://images.test/")


@pytest.mark.parametrize(
    ("bytes_sent", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "other than HTTP"),
        (b"", "other than HTTP"),
        (answer(PNG, content_length="999"), "broke off"),
        (answer(b"zz\r\n", transfer_encoding="chunked"), "broke off"),
    ],
)
async def test_servers_that_do_not_speak_http(site: Site, bytes_sent: bytes, message: str) -> None:
    site.paths["/"] = bytes_sent
    assert message in await refusal(ImageFetcher(LIMITS), site.url("/"))


async def test_the_next_address_is_tried(site: Site) -> None:
    site.paths["/"] = answer(PNG)
    fetcher = ImageFetcher(LIMITS, resolver(["::1", "127.0.0.1"]))
    assert await load(fetcher, site.url("/", "images.test")) == PNG


async def test_nothing_listens(site: Site) -> None:
    fetcher = ImageFetcher(LIMITS, resolver(["::1"]))
    assert "could not be connected to" in await refusal(fetcher, site.url("/", "images.test"))


async def test_one_transport_serves_all(site: Site) -> None:
    site.paths["/"] = answer(PNG)
    fetcher = ImageFetcher(LIMITS)
    assert await asyncio.gather(*(fetcher.load(site.url("/"), PARAM) for _ in range(5))) == [PNG] * 5
    await fetcher.aclose()


def test_a_data_url_of_escapes_is_refused_before_they_are_undone() -> None:
    with pytest.raises(InvalidRequest, match="escapes"):
        decode_data_url("data:image/png;base64," + "%41" * 1_000_001, PARAM, LIMITS)
