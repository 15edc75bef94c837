"""Where an image may be fetched from: public addresses, the very ones that were checked, and certified names."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from image_site import LIMITS, PNG, Recorder, Site, answer, listening, load, refusal, resolver

from server.backends.ollama.images import ImageFetcher, ImageLimits

PUBLIC_ONLY = ImageLimits(max_bytes=1000, timeout_seconds=10, allow_private=False)
PUBLIC = "93.184.215.14"


# --- private addresses ---


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::7f00:1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "100::1",
        "2001:db8::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:10.0.0.1", "64:ff9b::10.0.0.1",
        "64:ff9b::169.254.169.254", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:0a00:0001::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:0:0:0:0:0:f5ff:fffe", "4000::1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", [[], [PUBLIC]])
async def test_private_addresses_are_refused(address: str, beside: list[str]) -> None:
    recorder = Recorder()
    fetcher = ImageFetcher(PUBLIC_ONLY, resolver([*beside, address]), lambda: recorder)
    message = await refusal(fetcher, "http://images.test/")
    assert "`[ollama] allow_private_images = true`" in message
    assert "data:image/png;base64" in message
    assert address not in message
    assert recorder.requests == []


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "[::1]", "[::ffff:127.0.0.1]"],
)
async def test_spellings_of_this_machine_are_refused(host: str) -> None:
    recorder = Recorder()
    fetcher = ImageFetcher(PUBLIC_ONLY, make_transport=lambda: recorder)
    message = await refusal(fetcher, f"http://{host}/")
    assert "private address" in message or "cannot be resolved" in message or "invalid" in message
    assert recorder.requests == []


@pytest.mark.parametrize(
    "address",
    [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", f"64:ff9b::{PUBLIC}", "2002:5db8:d70e::1", f"::ffff:{PUBLIC}"],
)
async def test_a_public_address_is_connected_to_by_address(address: str) -> None:
    recorder = Recorder(httpx.Response(200, stream=httpx.ByteStream(PNG)))
    fetcher = ImageFetcher(PUBLIC_ONLY, resolver([address]), lambda: recorder)
    assert await load(fetcher, "https://Images.Test.:8443/a.png") == PNG
    (request,) = recorder.requests
    assert request.url.port == 8443
    assert ip_address(request.url.host) == ip_address(address)
    assert request.headers["host"] == "images.test.:8443"
    assert request.extensions["sni_hostname"] == "images.test"


async def test_a_name_that_changes_its_address_is_looked_up_once_per_hop() -> None:
    """DNS rebinding: public when it is checked, private when it would be connected to."""
    recorder = Recorder(httpx.Response(200, stream=httpx.ByteStream(PNG)))
    fetcher = ImageFetcher(PUBLIC_ONLY, resolver([PUBLIC], ["127.0.0.1"]), lambda: recorder)
    assert await load(fetcher, "http://images.test/") == PNG
    assert [request.url.host for request in recorder.requests] == [PUBLIC]


@pytest.mark.parametrize("location", ["/again", "http://169.254.169.254/latest/meta-data/", "http://localhost/"])
async def test_redirects_to_private_addresses_are_refused(location: str) -> None:
    recorder = Recorder(httpx.Response(302, headers={"location": location}))
    fetcher = ImageFetcher(PUBLIC_ONLY, resolver([PUBLIC], ["10.0.0.1"]), lambda: recorder)
    assert "private address" in await refusal(fetcher, "http://images.test/")
    assert len(recorder.requests) == 1


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key, in one file, for images.test alone."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "images.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    extension = "subjectAltName=DNS:images.test"
    files = ["-keyout", str(path) + ".key", "-out", str(path)]
    subprocess.run([openssl, *options.split(), "-addext", extension, *files], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.key").read_bytes())
    return path


@pytest.fixture
async def tls_site(certificate: Path) -> AsyncIterator[Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with listening(Site({"/": answer(PNG)}, scheme="https"), context) as site:
        yield site


def trusting(certificate: Path) -> ImageFetcher:
    context = ssl.create_default_context(cafile=str(certificate))
    return ImageFetcher(LIMITS, resolver(["127.0.0.1"]), lambda: httpx.AsyncHTTPTransport(verify=context))


async def test_a_certificate_for_the_name_is_accepted(tls_site: Site, certificate: Path) -> None:
    assert await load(trusting(certificate), tls_site.url("/", "images.test")) == PNG


@pytest.mark.parametrize("host", ["other.test", "127.0.0.1"])
async def test_a_certificate_for_another_name_is_refused(tls_site: Site, certificate: Path, host: str) -> None:
    assert "certificate is not valid" in await refusal(trusting(certificate), tls_site.url("/", host))
    assert tls_site.requests == []


async def test_an_unknown_certificate_is_refused(tls_site: Site) -> None:
    fetcher = ImageFetcher(LIMITS, resolver(["127.0.0.1"]))
    assert "certificate is not valid" in await refusal(fetcher, tls_site.url("/", "images.test"))
    assert tls_site.requests == []
