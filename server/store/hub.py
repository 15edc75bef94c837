"""The hub's HTTP API: what a repository holds, and the bytes of its files.

https://huggingface.co/docs/hub/api describes it. Blocking; safe to use from several threads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from typing import NoReturn
from urllib.parse import quote

import httpx

from server.core.errors import PullFailed
from server.store.hub_errors import error_of_response, no_hub, no_way_out, offline, redirected_astray, unreachable
from server.store.hub_listing import (
    ChecksumKind,
    HubFile,
    HubListing,
    check_repository,
    read_listing,
    tree_to_ask,
    with_tree,
)
from server.store.hub_settings import HubSettings

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 30.0
_MAX_REDIRECTS = 8
_MAX_ERROR_BYTES = 64 << 10
_MAX_LISTING_BYTES = 64 << 20
_MAX_PAGES = 100
_MAX_ROWS = 100_000
_USER_AGENT = "llmspell"


class Hub:
    """Hugging Face, or what stands in for it."""

    def __init__(self, settings: HubSettings, *, silence_seconds: float = _SILENCE_SECONDS) -> None:
        """Take the settings; nothing is sent yet.

        Raises:
            PullFailed: what the environment says of proxies and certificates cannot be used.

        """
        self.settings = settings
        self.silence_seconds = silence_seconds
        try:
            self._client = httpx.Client(
                timeout=httpx.Timeout(silence_seconds, connect=_CONNECT_SECONDS, pool=None),
                # what is stored is what was hashed: nothing may be compressed on the way
                headers={"user-agent": _USER_AGENT, "accept-encoding": "identity"},
                limits=httpx.Limits(max_connections=None),
            )
        except (httpx.InvalidURL, ImportError, OSError, ValueError) as error:  # ImportError: a kind of proxy
            raise no_way_out(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def listing(self, repository: str, revision: str | None = None) -> HubListing:
        """Ask what a repository holds, at its default branch or at another branch, tag or commit.

        Raises:
            LlmspellError: there is no such repository, or the hub does not say.

        """
        repository = check_repository(repository)
        version = "" if revision is None else f"/revision/{quote(revision, safe='')}"
        about = f"{self.settings.endpoint}/api/models/{repository}"
        answer, _ = self._asked(f"{about}{version}?blobs=true", repository)
        if (tree := tree_to_ask(answer)) is not None:
            answer = with_tree(answer, self._tree(f"{about}/tree/{quote(tree, safe='')}", repository))
        return read_listing(answer, repository)

    def _tree(self, url: str, repository: str) -> list[object]:
        """Ask for all files in all folders; the answer comes in pages."""
        rows: list[object] = []
        following: str | None = f"{url}?recursive=true"
        for _ in range(_MAX_PAGES):
            if following is None:
                return rows
            page, following = self._asked(following, repository)
            rows += page if isinstance(page, list) else []
            if len(rows) > _MAX_ROWS:
                break
            if following is not None and _origin(self._parse(following)) != _origin(self._parse(url)):
                break
        raise PullFailed(f"What {self.settings.shown} says of the files of {repository} does not end.")

    def _asked(self, url: str, repository: str) -> tuple[object, str | None]:
        """Return a JSON answer, and where the next page of it is."""
        with self.get(url, repository) as response:
            body = self._body(response, _MAX_LISTING_BYTES)
            following = response.links.get("next", {}).get("url")
        try:
            return json.loads(body), None if following is None else str(httpx.URL(url).join(following))
        except (ValueError, RecursionError, httpx.InvalidURL) as error:
            raise PullFailed(
                f"{self.settings.shown} does not behave as Hugging Face does: what it says of {repository} is not "
                "JSON. Check HF_ENDPOINT, and whether a proxy or a login page answers instead."
            ) from error

    def file_url(self, listing: HubListing, file: HubFile) -> str:
        """Return where a file is, at the commit of the listing: it cannot change there."""
        return f"{self.settings.endpoint}/{listing.repository}/resolve/{listing.commit}/{quote(file.path)}"

    def get_file(
        self, listing: HubListing, file: HubFile, headers: Mapping[str, str]
    ) -> AbstractContextManager[httpx.Response]:
        """Get a file or, with a ``Range``, its rest; that there is no such range is an answer and no error.

        An ``If-Range`` is for hubs that do not say themselves which content they have: storages may name the same
        content differently from one day to the next, and a download would begin again for nothing.
        """

        def check(said: httpx.Headers, headers: dict[str, str]) -> None:
            _compare(said, headers, file)

        return self.get(self.file_url(listing, file), listing.repository, headers, check)

    @contextmanager
    def get(
        self,
        url: str,
        repository: str,
        headers: Mapping[str, str] | None = None,
        check: Callable[[httpx.Headers, dict[str, str]], None] = lambda *_: None,
    ) -> Iterator[httpx.Response]:
        """Get something, through redirects to storage; the response is open while the context is.

        The token goes to the hub itself only, and not to where the hub sends us. ``check`` gets what the hub itself
        says, and the headers of the request for the storage, before that is sent.

        Raises:
            LlmspellError: the hub or the storage refuses, or does not answer.

        """
        if self.settings.is_offline:
            raise offline(repository)
        with self._final_response(url, repository, dict(headers or {}), check) as response:
            is_range_refused = response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            if response.status_code >= HTTPStatus.BAD_REQUEST and not is_range_refused:
                self._refuse(response, repository)
            yield response

    @contextmanager
    def _final_response(
        self, url: str, repository: str, headers: dict[str, str], check: Callable[[httpx.Headers, dict[str, str]], None]
    ) -> Iterator[httpx.Response]:
        target = hub = self._parse(url)
        if hub.scheme not in {"http", "https"} or not hub.host:
            raise no_hub(self.settings.shown)
        is_at_hub = True
        for _ in range(_MAX_REDIRECTS):
            is_at_hub = is_at_hub and _origin(target) == _origin(hub)  # who has left is not let in again
            if is_at_hub and self.settings.token:
                headers["authorization"] = f"Bearer {self.settings.token}"
            else:
                headers.pop("authorization", None)
            try:
                response = self._client.send(self._client.build_request("GET", target, headers=headers), stream=True)
            except httpx.HTTPError as error:
                raise unreachable(str(target.host), error) from error
            except httpx.InvalidURL as error:  # httpx looks at the redirect, too
                raise redirected_astray(repository, f"to no address ({error})") from error
            try:
                if is_at_hub and response.status_code < HTTPStatus.BAD_REQUEST:
                    check(response.headers, headers)
                if not response.has_redirect_location:
                    yield response
                    return
                target = self._redirected(target, response, repository)
            finally:
                response.close()
        raise redirected_astray(repository, "in circles")

    def _redirected(self, source: httpx.URL, response: httpx.Response, repository: str) -> httpx.URL:
        target = source.join(self._parse(response.headers["location"]))
        if target.scheme not in {"http", "https"} or not target.host:
            raise redirected_astray(repository, f"to {str(target)[:200]!r}")
        if source.scheme == "https" and target.scheme == "http":
            raise redirected_astray(repository, f"to {target.host} without encryption")
        return target

    def _parse(self, url: str) -> httpx.URL:
        try:
            return httpx.URL(url)
        except httpx.InvalidURL as error:
            raise PullFailed(f"{url[:200]!r} is not an address ({error}); check HF_ENDPOINT.") from error

    def _refuse(self, response: httpx.Response, repository: str) -> NoReturn:
        at_hub = _origin(response.request.url) == _origin(self._parse(self.settings.endpoint))
        raise error_of_response(
            response.status_code,
            response.headers,
            self._body(response, _MAX_ERROR_BYTES, is_cut=True),
            repository,
            self.settings,
            at_hub=at_hub,
        )

    def _body(self, response: httpx.Response, limit: int, *, is_cut: bool = False) -> bytes:
        body = bytearray()
        try:
            for piece in response.iter_bytes():
                body += piece
                if len(body) > limit:
                    break
        except httpx.HTTPError as error:
            if not is_cut:
                raise unreachable(str(response.request.url.host), error) from error
        if len(body) > limit and not is_cut:
            raise PullFailed(
                f"{response.request.url.host} sends more than {limit >> 20} MiB where a list was asked for."
            )
        return bytes(body[:limit])


def _compare(said: httpx.Headers, headers: dict[str, str], file: HubFile) -> None:
    """Notice before the first byte whether the hub has the content that it listed."""
    named = said.get("x-linked-etag", "").removeprefix("W/").strip('"')
    if file.checksum.kind is not ChecksumKind.SHA256 or len(named) != len(file.checksum.digest):
        return
    if named != file.checksum.digest:
        raise PullFailed(f"{file.path} was replaced on the hub meanwhile. Pull again to get the new version.")
    headers.pop("if-range", None)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
