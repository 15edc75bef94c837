"""A stand-in for Hugging Face: a real HTTP server that speaks the hub's API, and one for its storage.

In a test::

    with FakeHub() as hub:
        hub.add("owner/repo", {"model.Q4_K_M.gguf": b"..."})
        hub.rules.append(Rule("/resolve/", Cut(after=1000), times=1))

The hub answers ``/api/models/…`` and redirects ``/{repo}/resolve/{commit}/{file}`` to the storage, which is another
port, hence another origin. The storage knows ranges, ``If-Range`` and ETags. All requests are recorded.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

_LARGE_BYTES = 16  # from here on, files are kept as large ones are: by their SHA-256
_PIECE_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Generated:
    """Content that is made while it is sent: ``size`` bytes, of which no two blocks of a mebibyte are the same."""

    size: int

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        """Return the content from a position on."""
        for number in range(start // _BLOCK_BYTES, -(-self.size // _BLOCK_BYTES)):
            position = number * _BLOCK_BYTES
            block = number.to_bytes(8, "big") + _random_block()[8 : self.size - position]
            yield block[max(start - position, 0) : self.size - position]

    @property
    def digest(self) -> str:
        """The SHA-256 of all of it."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()


Content = bytes | Path | Generated


@cache
def _random_block() -> bytes:
    return random.Random(1).randbytes(_BLOCK_BYTES)


@dataclass(frozen=True)
class Status:
    """Answer with an error."""

    status: int
    code: str = ""
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Cut:
    """Close the connection after that many bytes of the body."""

    after: int


@dataclass(frozen=True)
class Stall:
    """Send nothing more after that many bytes of the body, until the client goes or the server is closed."""

    after: int


@dataclass(frozen=True)
class Corrupt:
    """Change one byte of the content."""

    at: int = 0


@dataclass(frozen=True)
class Redirect:
    """Redirect to somewhere."""

    location: str
    status: int = 302


@dataclass(frozen=True)
class Say:
    """Answer with headers of its own, instead of or beside the usual ones; ``None`` leaves one out."""

    headers: dict[str, str | None]
    status: int | None = None


@dataclass(frozen=True)
class Chunked:
    """Send the body in chunks, without its length."""


@dataclass(frozen=True)
class IgnoreRange:
    """Send everything, whatever part is asked for."""


Action = Status | Cut | Stall | Corrupt | Redirect | Say | Chunked | IgnoreRange


@dataclass
class Rule:
    """What happens to requests whose path contains ``path``, ``times`` times.

    ``at_hub`` and ``ranged`` restrict it to requests at the hub or at the storage, with a range or without. Of rules
    with the same kind of action the last one counts.
    """

    path: str
    action: Action
    times: int | None = None
    at_hub: bool | None = None
    ranged: bool | None = None


@dataclass(frozen=True)
class Recorded:
    """A request that came."""

    path: str
    headers: dict[str, str]
    at_hub: bool


@dataclass
class Repository:
    """What is in a repository. ``token`` is what it takes to read it."""

    files: dict[str, Content]
    commit: str
    gated: bool | str = False
    token: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class FakeHub:
    """The hub and its storage, in threads; a context manager.

    ``bytes_per_second`` slows each download down; files can also be ``Generated``, or paths, which are sent as fast as
    the system can. With ``tls`` both servers speak HTTPS.
    """

    def __init__(self, *, bytes_per_second: float = 0.0, tls: ssl.SSLContext | None = None) -> None:
        """Make it; it listens when the context is entered."""
        self.tls = tls
        self.repositories: dict[str, Repository] = {}
        self.rules: list[Rule] = []
        self.requests: list[Recorded] = []
        self.bytes_per_second = bytes_per_second
        self.bytes_sent = 0
        self.most_at_once = 0
        self.is_closed = threading.Event()
        self._lock = threading.Lock()
        self._num_sending = 0
        self._digests: dict[Path | Generated, str] = {}
        self._servers: list[_Server] = []

    def add(
        self,
        name: str,
        files: Mapping[str, Content],
        *,
        gated: bool | str = False,
        token: str | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> Repository:
        """Put a repository there, or a new version of one."""
        summary = "".join(f"{path} {self.digest(content)}" for path, content in sorted(files.items()))
        commit = hashlib.sha1(f"{name}{summary}".encode()).hexdigest()
        self.repositories[name] = Repository(dict(files), commit, gated, token, dict(extra or {}))
        return self.repositories[name]

    def digest(self, content: Content) -> str:
        """Return the SHA-256 of a file; a large one is read once."""
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        if content not in self._digests:
            self._digests[content] = self._read_digest(content)
        return self._digests[content]

    def _read_digest(self, content: Path | Generated) -> str:
        if isinstance(content, Path):
            with content.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return content.digest

    @property
    def url(self) -> str:
        """Where the hub is."""
        return self._servers[0].url

    @property
    def storage_url(self) -> str:
        """Where its storage is."""
        return self._servers[1].url

    def asked(self, path: str, *, at_hub: bool | None = None) -> list[Recorded]:
        """Return the requests whose path contains ``path``."""
        return [each for each in list(self.requests) if path in each.path and at_hub in (None, each.at_hub)]

    def take_rules(self, path: str, *, at_hub: bool, ranged: bool) -> list[Action]:
        """Return what is to happen to a request, and count it."""
        with self._lock:
            actions: list[Action] = []
            for rule in reversed(self.rules):
                fits = rule.path in path and rule.at_hub in (None, at_hub) and rule.ranged in (None, ranged)
                if fits and rule.times != 0 and not any(type(rule.action) is type(each) for each in actions):
                    rule.times = None if rule.times is None else rule.times - 1
                    actions.append(rule.action)
            return actions

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Count how many downloads there are at once."""
        with self._lock:
            self._num_sending += 1
            self.most_at_once = max(self.most_at_once, self._num_sending)
        try:
            yield
        finally:
            with self._lock:
                self._num_sending -= 1

    def count(self, num_bytes: int) -> None:
        """Count bytes of bodies."""
        with self._lock:
            self.bytes_sent += num_bytes

    def __enter__(self) -> Self:
        self._servers = [_Server(self, at_hub=True), _Server(self, at_hub=False)]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: FakeHub, *, at_hub: bool) -> None:
        self.hub = hub
        self.at_hub = at_hub
        super().__init__(("127.0.0.1", 0), _Handler)
        if hub.tls is not None:  # hands are shaken where the first bytes are read: in the thread of the connection
            self.socket = hub.tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'http' if hub.tls is None else 'https'}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as socketserver has it
        """Say nothing of connections that end: clients may go whenever they like."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # or a body waits for the receipt of its headers, for 40 ms
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        hub, path = self.server.hub, unquote(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append(Recorded(path, headers, self.server.at_hub))
        actions = hub.take_rules(path, at_hub=self.server.at_hub, ranged="range" in headers)
        for action in actions:
            if isinstance(action, Status):
                self._refuse(action)
                return
            if isinstance(action, Redirect):
                self._send(action.status, {"location": action.location}, b"")
                return
        if self.server.at_hub:
            self._answer_as_hub(path, actions)
        else:
            self._answer_as_storage(path, actions)

    def _answer_as_hub(self, path: str, actions: list[Action]) -> None:
        if match := re.match(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+)\?recursive=true(?:&cursor=([0-9]+))?\Z", path):
            if (repository := self._repository(match[1])) is not None:
                self._answer_with_tree(repository, int(match[3] or 0), path, actions)
        elif match := re.match(r"/api/models/([^/]+/[^/?]+)", path):
            if (repository := self._repository(match[1])) is not None:
                self._send(200, self._said({}, actions), json.dumps(self._described(match[1], repository)).encode())
        elif match := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (repository := self._repository(match[1])) is None:
                return
            content = repository.files.get(match[3])
            if content is None:
                self._refuse(Status(404, "EntryNotFound", "Entry not found"))
                return
            location = f"{self.server.hub.storage_url}/{match[1]}/{match[3]}?signature=0123456789"
            headers: dict[str, str | None] = {
                "location": location,
                "x-repo-commit": repository.commit,
                "x-linked-etag": f'"{self.server.hub.digest(content)}"',
                "x-linked-size": str(_size(content)),
            }
            self._send(302, self._said(headers, actions), b"Found. Redirecting")
        else:
            self._refuse(Status(404, "", "Not found"))

    def _repository(self, name: str) -> Repository | None:
        """Return a repository if whoever asks may see it, or refuse."""
        repository = self.server.hub.repositories.get(name)
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if repository is None:
            found = Status(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repository.token is None or token == repository.token:
            return repository
        elif repository.gated and not self.path.startswith("/api/"):
            message = "Access to model is restricted. You must have access to it and be authenticated to access it."
            found = Status(403 if token else 401, "GatedRepo", message)
        elif repository.gated:
            return repository
        else:
            found = Status(401, "RepoNotFound", "Repository not found")
        self._refuse(found)
        return None

    def _answer_with_tree(self, repository: Repository, number: int, path: str, actions: list[Action]) -> None:
        """Send one row a page, as the hub sends a thousand."""
        siblings = [self._sibling(*each) for each in repository.files.items()]
        rows: list[dict[str, Any]] = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "folder.gguf"}]
        for each in siblings:
            row = {"type": "file", "path": each["rfilename"], "size": each["size"], "oid": each["blobId"]}
            large = each.get("lfs")
            rows.append(row | ({"lfs": {"oid": large["sha256"], "size": large["size"]}} if large else {}))
        headers: dict[str, str | None] = {}
        if number + 1 < len(rows):
            following = f"{path.split('&', maxsplit=1)[0]}&cursor={number + 1}"
            headers["link"] = f'<{self.server.hub.url}{following}>; rel="next"'
        self._send(200, self._said(headers, actions), json.dumps(rows[number : number + 1]).encode())

    def _described(self, name: str, repository: Repository) -> dict[str, Any]:
        return {
            "id": name,
            "sha": repository.commit,
            "private": repository.token is not None and not repository.gated,
            "gated": repository.gated,
            "siblings": [self._sibling(path, content) for path, content in repository.files.items()],
        } | repository.extra

    def _sibling(self, path: str, content: Content) -> dict[str, Any]:
        size = _size(content)
        if isinstance(content, bytes) and size < _LARGE_BYTES:
            blob = hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
            return {"rfilename": path, "size": size, "blobId": blob}
        large = {"sha256": self.server.hub.digest(content), "size": size, "pointerSize": 134}
        return {"rfilename": path, "size": size, "blobId": "0" * 40, "lfs": large}

    def _answer_as_storage(self, path: str, actions: list[Action]) -> None:
        split = urlsplit(path)
        owner, name, file = split.path.lstrip("/").split("/", 2)
        repository = self.server.hub.repositories.get(f"{owner}/{name}")
        content = None if repository is None else repository.files.get(file)
        if content is None or "signature" not in parse_qs(split.query):
            self._refuse(Status(403, "", "AccessDenied"))
            return
        size, etag = _size(content), f'"{self._etag(content)}"'
        start = self._start(etag, actions)
        if start is not None and start >= size:
            self._refuse(Status(416, headers={"content-range": f"bytes */{size}"}))
            return
        headers: dict[str, str | None] = {"etag": etag, "accept-ranges": "bytes"}
        if start is not None:
            headers["content-range"] = f"bytes {start}-{size - 1}/{size}"
        with self.server.hub.sending():
            self._send_content(content, start, self._said(headers, actions), actions)

    def _etag(self, content: Content) -> str:
        return hashlib.md5(content).hexdigest() if isinstance(content, bytes) else "of-a-large-file"

    def _start(self, etag: str, actions: list[Action]) -> int | None:
        match = re.match(r"bytes=(\d+)-\Z", self.headers.get("range", ""))
        if match is None or any(isinstance(action, IgnoreRange) for action in actions):
            return None
        return int(match[1]) if self.headers.get("if-range", etag) == etag else None

    def _said(self, headers: dict[str, str | None], actions: list[Action]) -> dict[str, str | None]:
        for action in actions:
            if isinstance(action, Say):
                headers = headers | action.headers
        return headers

    def _send_content(
        self, content: Content, start: int | None, headers: dict[str, str | None], actions: list[Action]
    ) -> None:
        status = next((each.status for each in actions if isinstance(each, Say) and each.status), None)
        status = status or (200 if start is None else 206)
        is_chunked = any(isinstance(action, Chunked) for action in actions)
        length = _size(content) - (start or 0)
        framing = {"transfer-encoding": "chunked"} if is_chunked else {"content-length": str(length)}
        self._send_head(status, {**framing, **headers})
        if isinstance(content, Path):
            self._send_path(content, start or 0)
            return
        pieces = self._pieces(content, start or 0, actions)
        ends = [action for action in actions if isinstance(action, Cut | Stall)]
        self._send_pieces(_first(pieces, ends[0].after) if ends else pieces, is_chunked=is_chunked)
        if ends:
            if isinstance(ends[0], Stall):
                self.server.hub.is_closed.wait()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif is_chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _pieces(self, content: bytes | Generated, start: int, actions: list[Action]) -> Iterator[bytes]:
        if isinstance(content, Generated):
            return content.pieces(start)
        for action in actions:
            if isinstance(action, Corrupt):
                at = action.at
                content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        speed = self.server.hub.bytes_per_second
        num_bytes = max(min(_PIECE_BYTES, int(speed / 50)), 1) if speed else _PIECE_BYTES
        return (content[position : position + num_bytes] for position in range(start, len(content), num_bytes))

    def _send_path(self, path: Path, start: int) -> None:
        with path.open("rb") as file:
            self.server.hub.count(self.connection.sendfile(file, start))

    def _send_pieces(self, pieces: Iterable[bytes], *, is_chunked: bool) -> None:
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
            self.server.hub.count(len(piece))
            if speed := self.server.hub.bytes_per_second:
                time.sleep(len(piece) / speed)

    def _refuse(self, status: Status) -> None:
        said = {"x-error-code": status.code or None, "x-error-message": status.message or None, **status.headers}
        self._send(status.status, said, status.body or json.dumps({"error": status.message}).encode())

    def _send(self, status: int, headers: dict[str, str | None], body: bytes) -> None:
        self._send_head(status, {"content-length": str(len(body)), **headers})
        self.wfile.write(body)

    def _send_head(self, status: int, headers: dict[str, str | None]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()


def _size(content: Content) -> int:
    match content:
        case bytes():
            return len(content)
        case Path():
            return content.stat().st_size
        case Generated():
            return content.size


def _first(pieces: Iterable[bytes], num_bytes: int) -> Iterator[bytes]:
    for piece in pieces:
        if num_bytes <= 0:
            return
        yield piece[:num_bytes]
        num_bytes -= len(piece)
