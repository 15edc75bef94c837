"""Starting and stopping the daemon, with small real programs named ``ollama``, on both event loops."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.backends.ollama.autostart import DaemonProcess

LONG = 60.0  # never waited for
PREAMBLE = """
import json, os, signal, socket, subprocess, sys, time
host, port = os.environ["OLLAMA_HOST"].rsplit(":", 1)

def tell(**facts):
    facts |= {"pid": os.getpid(), "session": os.getsid(0), "arguments": sys.argv[1:], "environ": dict(os.environ)}
    with open(os.environ["FACTS"] + ".new", "w") as file:
        json.dump(facts, file)
    os.replace(file.name, os.environ["FACTS"])

def serve():
    listener = socket.create_server((host, int(port)))
    while True:
        listener.accept()[0].close()
"""


@dataclass
class Bench:
    """A machine with one program, and a port for it."""

    directory: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def facts_path(self) -> Path:
        return self.directory / "facts"

    @property
    def environ(self) -> dict[str, str]:
        return {"PATH": str(self.directory), "FACTS": str(self.facts_path), "OLLAMA_HOST": "0.0.0.0", "KEPT": "yes"}

    def install(self, code: str) -> None:
        self.write(f"#!{sys.executable} -IS\n{PREAMBLE}\n{code}\n")

    def write(self, text: str) -> None:
        program = self.directory / "ollama"
        program.write_text(text)
        program.chmod(0o755)

    def daemon(self, timeout_seconds: float = LONG, grace_seconds: float = LONG) -> DaemonProcess:
        return DaemonProcess(self.url, timeout_seconds, self.answers, self.environ, grace_seconds=grace_seconds)

    async def answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def never_answers(self) -> bool:
        return False

    def facts(self) -> dict[str, Any]:
        """What the program told of itself."""
        return dict(json.loads(self.facts_path.read_text()))

    def was_started(self) -> bool:
        return self.facts_path.exists()


def has_children() -> bool:
    """Whether any process of ours is left, zombies included."""
    return bool(psutil.Process().children(recursive=True))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    directory = tmp_path / "programs"
    directory.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield Bench(directory, port)
    assert not has_children()


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="server.backends.ollama")
    return caplog


Run = Callable[[Coroutine[None, None, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=loop_factory(request.param)) as runner:
        yield runner.run


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    if importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    import uvloop  # noqa: PLC0415

    return uvloop.new_event_loop


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does, which nothing here is told of."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def start_and_stop(daemon: DaemonProcess) -> None:
    await daemon.start_if_absent()
    await daemon.stop()


def messages(log: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno == level]


def test_a_daemon_is_started_and_stopped(run: Run, bench: Bench, log: pytest.LogCaptureFixture) -> None:
    bench.install("tell(); print('Listening', flush=True); serve()")

    async def scenario() -> None:
        daemon = bench.daemon()
        await daemon.start_if_absent()
        assert await bench.answers()
        assert has_children()
        await daemon.stop()
        assert not await bench.answers()
        await daemon.stop()

    run(scenario())
    facts = bench.facts()
    assert facts["arguments"] == ["serve"]
    assert facts["session"] == facts["pid"]  # Ctrl-C in our terminal does not reach it
    assert facts["environ"].items() >= (bench.environ | {"OLLAMA_HOST": f"127.0.0.1:{bench.port}"}).items()
    assert any("answers at" in message for message in messages(log, logging.INFO))
    assert ("server.backends.ollama.daemon", logging.DEBUG, "Listening") in log.record_tuples
    assert messages(log, logging.WARNING) == messages(log, logging.ERROR) == []


def test_a_daemon_that_answers_already_is_left_alone(run: Run, bench: Bench) -> None:
    bench.install("tell()")

    async def scenario() -> None:
        async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", bench.port):
            daemon = bench.daemon()
            await daemon.start_if_absent()
            await daemon.stop()
            assert await bench.answers()

    run(scenario())
    assert not bench.was_started()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://192.0.2.7:11434", "192.0.2.7 is not this machine"),
        ("http://ollama.example:80", "ollama.example is not this machine"),
        ("https://127.0.0.1:443", "does not speak https"),
        ("http://localhost:80/ollama", "does not answer under a path"),
    ],
)
async def test_nothing_is_started_for_other_urls(
    bench: Bench, log: pytest.LogCaptureFixture, url: str, reason: str
) -> None:
    bench.install("tell()")
    await start_and_stop(DaemonProcess(url, LONG, bench.never_answers, bench.environ))
    assert not bench.was_started()
    (message,) = messages(log, logging.WARNING)
    assert reason in message


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.9", "[::1]"])
async def test_all_names_of_this_machine_are_started_for(bench: Bench, host: str) -> None:
    bench.install("tell()")
    daemon = DaemonProcess(f"http://{host}:{bench.port}", LONG, bench.never_answers, bench.environ)
    await daemon.start_if_absent()
    assert bench.facts()["environ"]["OLLAMA_HOST"] == f"{host}:{bench.port}"


async def test_no_program(bench: Bench, log: pytest.LogCaptureFixture) -> None:
    await bench.daemon().start_if_absent()
    (message,) = messages(log, logging.WARNING)
    assert "no program 'ollama' on the PATH" in message


def test_a_file_that_is_no_program(run: Run, bench: Bench, log: pytest.LogCaptureFixture) -> None:
    bench.write("#!/no/such/interpreter\n")
    run(start_and_stop(bench.daemon()))
    (message,) = messages(log, logging.ERROR)
    assert "cannot be started" in message


def test_a_daemon_that_fails_is_reported_at_once(run: Run, bench: Bench, log: pytest.LogCaptureFixture) -> None:
    bench.install("print('line 0'); [print(f'line {n}') for n in range(1, 30)]; sys.exit('Error: no disk')")

    async def scenario() -> None:
        daemon = bench.daemon()
        await daemon.start_if_absent()
        await daemon.stop()

    began = time.monotonic()
    run(scenario())
    assert time.monotonic() - began < LONG / 2
    (message,) = messages(log, logging.ERROR)
    assert "exit code 1" in message
    assert "Error: no disk" in message
    assert "line 29" in message
    assert "line 9\n" not in message


def test_a_daemon_that_never_answers(run: Run, bench: Bench, log: pytest.LogCaptureFixture) -> None:
    bench.install("tell(); signal.pause()")

    async def scenario() -> None:
        daemon = bench.daemon(timeout_seconds=0.2)
        await daemon.start_if_absent()
        assert has_children()
        await daemon.stop()

    run(scenario())
    (message,) = messages(log, logging.ERROR)
    assert "left running" in message
    assert messages(log, logging.WARNING) == []


def test_the_limit_holds_when_the_question_hangs(run: Run, bench: Bench) -> None:
    bench.install("signal.pause()")
    num_questions = 0

    async def hangs_later() -> bool:
        nonlocal num_questions
        num_questions += 1
        if num_questions > 1:
            await asyncio.Event().wait()
        return False

    run(start_and_stop(DaemonProcess(bench.url, 0.1, hangs_later, bench.environ)))


def test_a_daemon_that_ignores_sigterm_is_killed(run: Run, bench: Bench, log: pytest.LogCaptureFixture) -> None:
    bench.install("signal.signal(signal.SIGTERM, signal.SIG_IGN); serve()")

    async def scenario() -> None:
        daemon = bench.daemon(grace_seconds=0.1)
        await daemon.start_if_absent()
        await asyncio.gather(daemon.stop(), daemon.stop())

    run(scenario())
    assert any("is killed" in message for message in messages(log, logging.WARNING))


def test_a_cancelled_stop_kills(run: Run, bench: Bench) -> None:
    bench.install("signal.signal(signal.SIGTERM, signal.SIG_IGN); serve()")

    async def scenario() -> None:
        daemon = bench.daemon()
        await daemon.start_if_absent()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(daemon.stop(), 0.1)
        await daemon.stop()

    run(scenario())


def test_stop_ends_a_start_under_way(run: Run, bench: Bench) -> None:
    bench.install("tell(); signal.pause()")

    async def scenario() -> None:
        daemon = bench.daemon()
        starts = [asyncio.create_task(daemon.start_if_absent()) for _ in range(2)]
        await wait_until(bench.was_started)
        await daemon.stop()
        await asyncio.gather(*starts)
        await daemon.start_if_absent()
        assert not has_children()

    run(scenario())


@pytest.mark.parametrize("num_turns", range(8))
def test_stop_at_any_moment_of_a_start_leaves_no_process(run: Run, bench: Bench, num_turns: int) -> None:
    bench.install("signal.pause()")

    async def scenario() -> None:
        daemon = DaemonProcess(bench.url, LONG, bench.never_answers, bench.environ)
        start = asyncio.create_task(daemon.start_if_absent())
        for _ in range(num_turns):
            await asyncio.sleep(0)
        await daemon.stop()
        await start
        assert not has_children()

    run(scenario())


def test_a_caller_that_gives_up_does_not_lose_the_process(run: Run, bench: Bench) -> None:
    bench.install("tell(); signal.pause()")

    async def scenario() -> None:
        daemon = bench.daemon()
        start = asyncio.create_task(daemon.start_if_absent())
        await wait_until(bench.was_started)
        start.cancel()
        await asyncio.wait([start])
        await daemon.stop()

    run(scenario())


def test_another_daemon_takes_the_port_first(run: Run, bench: Bench, log: pytest.LogCaptureFixture) -> None:
    bench.install("tell(); sys.exit('Error: listen tcp 127.0.0.1:11434: bind: address already in use')")

    async def other_answers() -> bool:
        return bench.was_started() and not has_children()

    run(start_and_stop(DaemonProcess(bench.url, LONG, other_answers, bench.environ)))
    assert any("another Ollama daemon" in message for message in messages(log, logging.INFO))
    assert messages(log, logging.WARNING) == messages(log, logging.ERROR) == []


def test_a_later_death_is_reported(run: Run, bench: Bench, log: pytest.LogCaptureFixture) -> None:
    bench.install("tell(); print('loading', flush=True); serve()")

    async def scenario() -> None:
        daemon = bench.daemon()
        await daemon.start_if_absent()
        os.kill(bench.facts()["pid"], signal.SIGKILL)
        await wait_until(lambda: bool(messages(log, logging.WARNING)))
        await daemon.stop()

    run(scenario())
    (message,) = messages(log, logging.WARNING)
    assert "signal 9" in message
    assert "loading" in message


def test_what_a_dead_daemon_left_behind_is_ended(run: Run, bench: Bench, log: pytest.LogCaptureFixture) -> None:
    bench.install("runner = subprocess.Popen(['/bin/sleep', '60']); tell(runner=runner.pid); os._exit(3)")

    async def scenario() -> None:
        daemon = bench.daemon()
        await daemon.start_if_absent()
        runner = bench.facts()["runner"]
        await wait_until(lambda: not psutil.pid_exists(runner) or is_zombie(runner))
        await daemon.stop()

    run(scenario())
    assert "exit code 3" in messages(log, logging.ERROR)[0]


def is_zombie(pid: int) -> bool:
    """In a container nobody may collect orphans."""
    return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_whatever_a_daemon_writes_it_is_never_held_up(run: Run, bench: Bench, log: pytest.LogCaptureFixture) -> None:
    bench.install(
        "os.write(2, b'\\xff\\n\\n'); [os.write(1, b'x' * 4096) for _ in range(300)]; os.write(2, b'end'); serve()"
    )
    run(start_and_stop(bench.daemon()))
    lines = [record.getMessage() for record in log.records if record.name == "server.backends.ollama.daemon"]
    assert lines[:2] == ["\N{REPLACEMENT CHARACTER}", ""]
    assert sum(map(len, lines[2:])) == 4096 * 300 + len("end")
