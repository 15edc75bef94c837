"""CPU time that HTTP and server-sent events cost per streamed token.

Clients in this process read streams of a tiny random-weight model from a real server on a real port. Measured is the
CPU time of the server's event loop thread, which does everything but the model: parsing, events from the engine's
thread, framing, sockets.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server_process import ServerProcess, chat_body, running_server, stream

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from gguf_shapes import write_llama

ROUNDS = 5


def loop_seconds(server: ServerProcess) -> float:
    """Return the CPU time of the main thread, which runs the event loop."""
    thread = next(thread for thread in server.process.threads() if thread.id == server.process.pid)
    return float(thread.user_time + thread.system_time)


def read(port: int, num_tokens: int) -> int:
    """Read one stream and return the number of its events."""
    body = chat_body("local/tiny", "Hi", num_tokens, ignore_eos=True, temperature=0.7)
    received = b"".join(data for _, data in stream(port, body))
    if b"[DONE]" not in received:
        sys.exit(f"a stream broke off: {received[-200:]!r}")
    return received.count(b"data: ")


def microseconds_per_token(server: ServerProcess, num_streams: int, num_tokens: int) -> float:
    """Serve one round of streams and return the event loop's CPU time per event."""
    before = loop_seconds(server)
    with ThreadPoolExecutor(num_streams) as clients:
        num_events = sum(clients.map(read, [server.port] * num_streams, [num_tokens] * num_streams))
    return (loop_seconds(server) - before) / num_events * 1e6


def main() -> None:
    """Measure 1, 8 and 16 streams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=450, help="tokens of each stream")
    arguments = parser.parse_args()
    print("| streams | CPU in HTTP and SSE per token, median (range) |")
    print("| --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        write_llama(path)
        with running_server("--model", str(path)) as server:
            for num_streams in (1, 8, 16):
                microseconds_per_token(server, num_streams, arguments.tokens)  # warm up
                costs = [microseconds_per_token(server, num_streams, arguments.tokens) for _ in range(ROUNDS)]
                print(f"| {num_streams} | {statistics.median(costs):.0f} µs ({min(costs):.0f} to {max(costs):.0f}) |")


if __name__ == "__main__":
    main()
