"""Pulling over TLS and through proxies, as httpx opens these connections and downloads receive from them."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.hub import Chunked, Cut, FakeHub, Redirect, Rule, Stall
from fakes.proxy import FakeProxy
from pulling import FILE, REPOSITORY, Puller, content

from server.core.errors import HubUnreachable, PullFailed
from server.store.hub_settings import HubSettings

MIB = 1 << 20


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key, in one file, for this machine."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("certificate")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=this machine"]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run([*command, *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key").read_bytes() + (folder / "cert").read_bytes())
    return both


@pytest.fixture
def tls_hub(certificate: Path) -> Iterator[FakeHub]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FakeHub(tls=context) as hub:
        yield hub


@pytest.fixture
def trusting(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks now knows the certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProxy]:
    with FakeProxy() as each:
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("HTTPS_PROXY", each.url)
        yield each


@pytest.mark.usefixtures("trusting")
async def test_what_breaks_off_under_tls_is_continued(tls_hub: FakeHub, tmp_path: Path) -> None:
    data = content(3 * MIB)
    tls_hub.add(REPOSITORY, {FILE: data})
    tls_hub.rules.append(Rule(FILE, Cut(2_500_000), times=1, at_hub=False))

    with Puller(HubSettings(tls_hub.url), tmp_path / "models") as puller:
        finished = await puller.pull()

    assert finished.path.read_bytes() == data
    assert tls_hub.bytes_sent == len(data)
    assert tls_hub.asked(FILE, at_hub=False)[-1].headers["range"] == "bytes=2500000-"


@pytest.mark.usefixtures("trusting")
async def test_silence_under_tls_is_a_broken_connection(tls_hub: FakeHub, tmp_path: Path) -> None:
    data = content(MIB)
    tls_hub.add(REPOSITORY, {FILE: data})
    tls_hub.rules.append(Rule(FILE, Stall(after=300_000), times=1, at_hub=False))

    with Puller(HubSettings(tls_hub.url), tmp_path / "models", silence=0.6) as puller:
        assert (await puller.pull()).path.read_bytes() == data
        assert "nothing came for 0.6 s" in puller.notices[0]


@pytest.mark.usefixtures("trusting")
async def test_chunks_under_tls_are_read(tls_hub: FakeHub, tmp_path: Path) -> None:
    data = content(MIB)
    tls_hub.add(REPOSITORY, {FILE: data})
    tls_hub.rules.append(Rule(FILE, Chunked(), at_hub=False))

    with Puller(HubSettings(tls_hub.url), tmp_path / "models") as puller:
        assert (await puller.pull()).path.read_bytes() == data


async def test_a_hub_that_nobody_vouches_for_is_not_believed(tls_hub: FakeHub, tmp_path: Path) -> None:
    tls_hub.add(REPOSITORY, {FILE: content(MIB)})

    with (
        Puller(HubSettings(tls_hub.url), tmp_path / "models") as puller,
        pytest.raises(HubUnreachable, match=r"does not answer .*certificate"),
    ):
        await puller.pull()
    assert tls_hub.requests == []


@pytest.mark.usefixtures("trusting")
async def test_a_redirect_does_not_give_up_encryption(tls_hub: FakeHub, hub: FakeHub, tmp_path: Path) -> None:
    tls_hub.add(REPOSITORY, {FILE: content(MIB)})
    tls_hub.rules.append(Rule("/resolve/", Redirect(f"{hub.storage_url}/{FILE}")))

    with (
        Puller(HubSettings(tls_hub.url), tmp_path / "models") as puller,
        pytest.raises(PullFailed, match=r"to 127\.0\.0\.1 without encryption"),
    ):
        await puller.pull()
    assert hub.requests == []


@pytest.mark.usefixtures("trusting")
async def test_a_proxy_is_used(tls_hub: FakeHub, proxy: FakeProxy, tmp_path: Path) -> None:
    data = content(3 * MIB)
    tls_hub.add(REPOSITORY, {FILE: data})
    tls_hub.rules.append(Rule(FILE, Cut(1_500_000), times=1, at_hub=False))

    with Puller(HubSettings(tls_hub.url), tmp_path / "models") as puller:
        assert (await puller.pull()).path.read_bytes() == data

    hosts = {f"https://{each}" for each in proxy.asked}
    assert hosts == {tls_hub.url, tls_hub.storage_url}
    assert tls_hub.bytes_sent == len(data)
