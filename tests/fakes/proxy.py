"""A stand-in for a company's proxy: it tunnels what it is asked to (``CONNECT``), and records it."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_PIECE_BYTES = 1 << 16


class FakeProxy:
    """A proxy, in threads; a context manager. ``asked`` are the hosts and ports that were asked for."""

    def __init__(self) -> None:
        """Make it; it listens when the context is entered."""
        self.asked: list[str] = []
        self._server = _Server(self)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, proxy: FakeProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_CONNECT(self) -> None:
        self.server.proxy.asked.append(self.path)
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as target:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            upwards = threading.Thread(target=_pass_on, args=(self.connection, target), daemon=True)
            upwards.start()
            _pass_on(target, self.connection)
            upwards.join()
        self.close_connection = True


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until either side closes its connection, then close both."""
    try:
        while piece := source.recv(_PIECE_BYTES):
            target.sendall(piece)
    except OSError:  # whoever has closed a connection has no use for what is still on its way
        pass
    finally:
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it is closed already
