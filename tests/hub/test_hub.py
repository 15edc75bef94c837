from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.hub import Cut, FakeHub, Redirect, Rule, Say, Status
from pulling import FILE, REPOSITORY, content

from server.core.errors import (
    HubBusy,
    HubDenied,
    HubUnreachable,
    InvalidRequest,
    LlmspellError,
    ModelNotFound,
    PullFailed,
)
from server.store.hub import Hub
from server.store.hub_errors import retry_after_seconds
from server.store.hub_listing import ChecksumKind, Gating
from server.store.hub_settings import HubSettings


@pytest.fixture
def client(hub: FakeHub) -> Iterator[Hub]:
    each = Hub(HubSettings(hub.url), silence_seconds=5)
    yield each
    each.close()


def test_a_listing_has_sizes_and_checksums(hub: FakeHub, client: Hub) -> None:
    large = content(1000)
    facts = {"gguf": {"architecture": "llama", "context_length": 8192, "total": 7}}
    hub.add(REPOSITORY, {FILE: large, "tiny.GGUF": b"tiny", "README.md": b""}, gated="manual", extra=facts)

    listing = client.listing(REPOSITORY)

    assert (listing.repository, listing.gating, listing.is_private) == (REPOSITORY, Gating.MANUAL, False)
    assert (listing.architecture, listing.context_length) == ("llama", 8192)
    assert listing.commit == hub.repositories[REPOSITORY].commit
    assert [(each.path, each.size, each.checksum.kind) for each in listing.files] == [
        (FILE, 1000, ChecksumKind.SHA256),
        ("tiny.GGUF", 4, ChecksumKind.GIT),
    ]
    assert listing.files[0].checksum.digest == hub.digest(large)


def test_another_version_can_be_asked_for(hub: FakeHub, client: Hub) -> None:
    hub.add(REPOSITORY, {FILE: b"a"})

    client.listing(REPOSITORY, "refs/pr/1")

    assert hub.requests[-1].path == f"/api/models/{REPOSITORY}/revision/refs/pr/1?blobs=true"


def test_a_renamed_repository_is_followed(hub: FakeHub, client: Hub) -> None:
    hub.add("new/name", {FILE: b"a"})
    hub.rules.append(Rule("old/name", Redirect("/api/models/new/name?blobs=true", 307)))

    assert client.listing("old/name").repository == "new/name"


@pytest.mark.parametrize(
    ("status", "token", "error", "message"),
    [
        (Status(401, "RepoNotFound", "Repository not found"), "", HubDenied, "no repository .* or it is private"),
        (Status(401, "", "Invalid credentials in Authorization header"), "old", HubDenied, "does not accept the token"),
        (Status(401, "GatedRepo", "Access is restricted"), "", HubDenied, "is gated: accept its conditions"),
        (Status(403, "GatedRepo", "not in the authorized list"), "mine", HubDenied, "has no access yet"),
        (Status(403, "", "fine-grained token"), "mine", HubDenied, r"token does not allow .* \(fine-grained token\)"),
        (Status(404, "RepoNotFound", "Repository not found"), "mine", ModelNotFound, "There is no repository"),
        (Status(404, "RevisionNotFound"), "", ModelNotFound, "no longer has this file or version"),
        (Status(429), "", HubBusy, "in a few minutes; .* set HF_TOKEN"),
        (Status(429, headers={"retry-after": "17"}), "mine", HubBusy, "Try again in 17 s"),
        (Status(429, headers={"ratelimit": '"api";r=0;t=42'}), "mine", HubBusy, "Try again in 42 s"),
        (Status(500, body=b"<html>oops</html>"), "", HubUnreachable, r"status 500 \(no reason given\)"),
        (Status(503, "", "Maintenance"), "", HubUnreachable, r"status 503 \(Maintenance\)"),
        (Status(418, body=b"I am a\nteapot"), "", PullFailed, r"status 418 \(I am a teapot\)"),
    ],
)
def test_refusals_say_what_to_do(
    hub: FakeHub, status: Status, token: str, error: type[LlmspellError], message: str
) -> None:
    hub.rules.append(Rule("/api/models", status))
    client = Hub(HubSettings(hub.url, token))

    with pytest.raises(error, match=message):
        client.listing(REPOSITORY)
    client.close()


def test_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    client = Hub(HubSettings(url))

    with pytest.raises(HubUnreachable, match=r"does not answer .*refused.* HTTPS_PROXY and HF_ENDPOINT"):
        client.listing(REPOSITORY)
    client.close()


def test_a_listing_that_breaks_off(hub: FakeHub) -> None:
    hub.rules.append(Rule("/api/models", Say({"content-length": "1000000"})))
    hub.add(REPOSITORY, {FILE: b"a"})
    client = Hub(HubSettings(hub.url), silence_seconds=0.3)

    with pytest.raises(HubUnreachable):
        client.listing(REPOSITORY)
    client.close()


def test_offline_nothing_is_asked(hub: FakeHub) -> None:
    client = Hub(HubSettings(hub.url, is_offline=True))

    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE is set"):
        client.listing(REPOSITORY)
    assert hub.requests == []


@pytest.mark.parametrize(
    "body",
    [b"<!DOCTYPE html>", b"", b"[]", b"{}", b'{"siblings": 5}', b'{"siblings": [], "sha": "../x"}', b"[" * 99999],
)
def test_something_else_answers(hub: FakeHub, client: Hub, body: bytes) -> None:
    hub.rules.append(Rule("/api/models", Status(200, body=body)))

    with pytest.raises(PullFailed, match="does not behave as Hugging Face does"):
        client.listing(REPOSITORY)


@pytest.mark.parametrize("url", ["http://", "hf.example", "ftp://hf.example", "http://[::1", "http://a b"])
def test_an_endpoint_that_is_no_address(url: str) -> None:
    client = Hub(HubSettings(url))

    with pytest.raises(PullFailed, match=r"HF_ENDPOINT"):
        client.listing(REPOSITORY)
    client.close()


@pytest.mark.parametrize(
    "repository", ["a", "a/b/c", "../b", "a/..", "a/.b", "a/b c", "a/b?x=1", "a/b#c", "/a/b", "a/b\n", f"a/{'b' * 200}"]
)
def test_what_is_no_repository_is_not_asked_for(hub: FakeHub, client: Hub, repository: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a repository"):
        client.listing(repository)
    assert hub.requests == []


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://example/x", "javascript:1"])
def test_redirects_lead_to_http_only(hub: FakeHub, client: Hub, location: str) -> None:
    hub.rules.append(Rule("/api/models", Redirect(location)))

    with pytest.raises(PullFailed):
        client.listing(REPOSITORY)


def test_redirects_in_circles_end(hub: FakeHub, client: Hub) -> None:
    hub.rules.append(Rule("/api/models", Redirect(f"/api/models/{REPOSITORY}?blobs=true")))

    with pytest.raises(PullFailed, match="in circles"):
        client.listing(REPOSITORY)
    assert len(hub.requests) == 8


def test_a_token_that_left_does_not_come_back(hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: content(1000)})
    client = Hub(HubSettings(hub.url, "secret"))
    listing = client.listing(REPOSITORY)
    hub.rules.append(Rule(FILE, Redirect(f"{hub.url}/elsewhere"), at_hub=False))

    with pytest.raises(LlmspellError), client.get_file(listing, listing.files[0], {}):
        pass

    told = [(each.at_hub, "authorization" in each.headers) for each in hub.requests[1:]]
    assert told == [(True, True), (False, False), (True, False)]
    client.close()


def test_the_token_is_in_no_text() -> None:
    assert "secret" not in repr(HubSettings("https://hub.example", "secret"))


def test_a_refusal_that_breaks_off_is_still_told(hub: FakeHub) -> None:
    hub.rules.append(Rule("/api/models", Status(403, "GatedRepo", headers={"content-length": "1000"})))
    client = Hub(HubSettings(hub.url), silence_seconds=0.3)

    with pytest.raises(HubDenied, match="is gated"):
        client.listing(REPOSITORY)
    client.close()


def test_no_file_is_written_by_listing(hub: FakeHub, client: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {FILE: content(1000)})
    hub.rules.append(Rule(FILE, Cut(0)))

    client.listing(REPOSITORY)

    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTPS_PROXY", "carrier-pigeon://127.0.0.1"),
        ("HTTPS_PROXY", "http://[::"),
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),  # needs a package that is not installed
        ("SSL_CERT_FILE", "/nowhere/at/all.pem"),
    ],
)
def test_an_environment_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(PullFailed, match=f"environment.*{variable}"):
        Hub(HubSettings())


@pytest.mark.parametrize("endpoint", ["huggingface.co", "https://", "ftp://huggingface.co", "http://"])
def test_an_endpoint_that_is_no_address_is_named(endpoint: str) -> None:
    client = Hub(HubSettings(endpoint))

    with pytest.raises(PullFailed, match="HF_ENDPOINT is"):
        client.listing(REPOSITORY)
    client.close()


@pytest.mark.parametrize(
    "value",
    ["soon", "nan", "1e999", "Mon, 1 Jan 99999999999999999999 00:00:00 GMT", "1 Jan 2024 00:00:00 +99999999999999"],
)
def test_a_pause_that_is_none_is_not_taken(value: str) -> None:
    assert retry_after_seconds({"retry-after": value}) is None


def as_a_mirror_says(hub: FakeHub) -> dict[str, object]:
    """What is left of an answer where nobody knows ``?blobs=true``, nor commits."""
    files = hub.repositories[REPOSITORY].files
    return {"siblings": [{"rfilename": path} for path in files], "sha": None}


def test_a_mirror_that_does_not_describe_files_is_asked_for_its_tree(hub: FakeHub, client: Hub) -> None:
    files = {"a-Q4_K_M.gguf": b"x" * 100, "deep/b-Q8_0.gguf": b"y" * 200, "README.md": b"z", "tiny.gguf": b"t"}
    hub.add(REPOSITORY, files)
    whole = client.listing(REPOSITORY)
    hub.repositories[REPOSITORY].extra = as_a_mirror_says(hub)

    listing = client.listing(REPOSITORY)

    assert listing.files == whole.files
    assert listing.commit == "main"
    assert len(hub.asked("/tree/main")) == len(files) + 1


def test_pages_that_lead_elsewhere_are_not_followed(hub: FakeHub, client: Hub) -> None:
    hub.add(REPOSITORY, {"a-Q4_K_M.gguf": b"x" * 100})
    hub.repositories[REPOSITORY].extra = as_a_mirror_says(hub)
    hub.rules.append(Rule("/tree/", Say({"link": '<http://192.0.2.1/more>; rel="next"'})))

    with pytest.raises(PullFailed, match="does not end"):
        client.listing(REPOSITORY)


def test_a_tree_that_is_too_large_is_not_read_to_its_end(hub: FakeHub, client: Hub) -> None:
    hub.add(REPOSITORY, {"a-Q4_K_M.gguf": b"x" * 100})
    hub.repositories[REPOSITORY].extra = as_a_mirror_says(hub)
    page = b"[" + b",".join([b"{}"] * 60_000) + b"]"
    hub.rules.append(Rule("/tree/", Status(200, headers={"link": '<?page=2>; rel="next"'}, body=page)))

    with pytest.raises(PullFailed, match="does not end"):
        client.listing(REPOSITORY)

    assert len(hub.asked("/tree/")) == 2


def test_credentials_of_a_mirror_are_not_shown(hub: FakeHub) -> None:
    client = Hub(HubSettings(hub.url.replace("://", "://me:secret@")))

    with pytest.raises(ModelNotFound) as raised:
        client.listing("no/such")
    client.close()

    assert hub.url in raised.value.message
    assert "secret" not in raised.value.message
    assert hub.requests[-1].headers["authorization"].startswith("Basic ")
