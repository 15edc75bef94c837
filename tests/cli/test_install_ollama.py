"""``install-ollama`` as a program of its own, with a download host on this machine and programs that only write down
how they were called."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server.cli.install_ollama import SCRIPT_URL, Found, InstallationFailed, explanation, take, ways

TIMEOUT = 60
PROGRAM = (
    "import typer; from server.cli import main; from server.cli.install_ollama import install_ollama; "
    "app = typer.Typer(pretty_exceptions_enable=False); app.command()(install_ollama); main(app)"
)
SCRIPT = b"#!/bin/sh\necho the real script ran\n"


class Host:
    """A download host; what it answers can be replaced."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {"/install.sh": (200, {}, SCRIPT)}
        self.num_requests = 0
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.num_requests += 1
                status, headers, body = host.answers.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in ({"content-length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/install.sh"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def host() -> Iterator[Host]:
    running = Host()
    yield running
    running.close()


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The only folder on the programs' PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.fixture
def environ(programs: Path, tmp_path: Path, host: Host) -> dict[str, str]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    kept = {name: os.environ[name] for name in ("HOME", "PYTHONPATH") if name in os.environ}
    return kept | {"PATH": str(programs), "TMPDIR": str(scratch), "OLLAMA_INSTALL_URL": host.url}


def put_program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def put_shell(folder: Path, tmp_path: Path, then: str = "exit 0") -> Path:
    """A shell that writes down what it is to run; returns where."""
    told = tmp_path / "told"
    put_program(folder, "sh", f'echo "$@" >>{told}; PATH=/usr/bin:/bin; cat "$1" >>{told}; echo installing; {then}')
    return told


def put_ollama(folder: Path, version: str) -> None:
    put_program(folder, "ollama", f"echo 'ollama version is {version}'")


def run(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it where nobody can be asked."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


class Terminal:
    """The program on a terminal, which somebody reads and types into."""

    def __init__(self, environ: Mapping[str, str], *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            env={**environ, "TERM": "dumb"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        while text not in self.seen:
            assert self._read(), f"it ended without {text!r}: {self.seen}"

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        while self._read():
            pass
        os.close(self._ours)
        return self.process.wait(TIMEOUT)

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 4096)
        except OSError:  # how Linux tells that nobody has the other side open
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


# --- which ways there are ---


def which(*names: str) -> Callable[[str], str | None]:
    return lambda name: f"/bin/{name}" if name in names else None


def test_linux() -> None:
    script, archive = ways("linux", "aarch64", which())
    assert script.is_script
    assert script.commands[0].startswith(f"curl -fsSL {SCRIPT_URL} -o")
    assert not any("| sh" in command for way in (script, archive) for command in way.commands)
    assert "ollama-linux-arm64.tar.zst" in archive.commands[0]
    assert not archive.can_run
    titles = [way.title for way in ways("linux", "x86_64", which("pacman", "brew"))]
    assert titles[2:] == ["pacman", "Homebrew"]


def test_macos() -> None:
    first, *others = ways("darwin", "arm64", which("brew"))
    assert first.program == ("brew", "install", "ollama")
    assert [each.can_run for each in others] == [False]
    assert ways("darwin", "arm64", which())[0].is_script


def test_windows() -> None:
    assert ways("win32", "AMD64", which("winget"))[0].program[0] == "winget"
    assert not ways("win32", "AMD64", which())[0].can_run


@pytest.mark.parametrize(
    ("version", "is_recent"), [("0.12.10", False), ("0.12.11", True), ("0.0.0", True), (None, True)]
)
def test_what_is_recent(version: str | None, is_recent: bool) -> None:  # noqa: FBT001
    assert Found("/bin/ollama", version).is_recent is is_recent


def test_an_old_installation_is_explained_like_none() -> None:
    lines = explanation(Found("/bin/ollama", "0.5.0"), ways("linux", "x86_64", which()))
    assert "wants 0.12.11 or newer" in lines[0]
    assert any("--run" in line for line in lines)


# --- explaining ---


def test_nothing_happens_without_being_asked_for(environ: dict[str, str], host: Host) -> None:
    process = run(environ)
    assert (process.returncode, process.stderr, host.num_requests) == (0, "", 0)
    assert "Ollama is not installed" in process.stdout
    assert host.url in process.stdout


def test_explained_as_json(environ: dict[str, str]) -> None:
    document = json.loads(run(environ, "--json").stdout)
    assert (document["path"], document["version"], document["is_recent"]) == (None, None, None)
    assert document["ways"][0]["can_run"] is True


def test_an_installation_is_found(environ: dict[str, str], programs: Path, host: Host) -> None:
    put_ollama(programs, "0.33.0")
    for arguments in ((), ("--run", "--yes")):
        process = run(environ, *arguments)
        assert (process.returncode, process.stdout) == (0, f"Ollama 0.33.0 is installed: {programs / 'ollama'}\n")
    assert host.num_requests == 0


# --- running ---


def test_a_script_is_downloaded_to_a_file_and_run(
    environ: dict[str, str], programs: Path, tmp_path: Path, host: Host
) -> None:
    told = put_shell(programs, tmp_path, then=f"cp {tmp_path / 'new'} {programs / 'ollama'}")
    put_ollama(tmp_path, "0.33.0")
    (tmp_path / "ollama").rename(tmp_path / "new")
    process = run(environ, "--run", "--yes")
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"Ollama 0.33.0 is installed: {programs / 'ollama'}\n"
    called, _, script = told.read_text(encoding="utf-8").partition("\n")
    assert called.endswith("/install.sh")
    assert script.encode() == SCRIPT
    assert f"{len(SCRIPT)} bytes, SHA-256 {hashlib.sha256(SCRIPT).hexdigest()}" in process.stderr
    assert "installing" in process.stderr
    assert not Path(called).exists()
    assert host.num_requests == 1


def test_nobody_to_ask_means_that_nothing_is_run(
    environ: dict[str, str], programs: Path, tmp_path: Path, host: Host
) -> None:
    told = put_shell(programs, tmp_path)
    process = run(environ, "--run")
    assert (process.returncode, process.stdout, host.num_requests) == (1, "", 0)
    assert host.url in process.stderr
    assert "add --yes" in process.stderr.splitlines()[-1]
    assert not told.exists()


def test_asked_first_and_read_first(environ: dict[str, str], programs: Path, tmp_path: Path) -> None:
    told = put_shell(programs, tmp_path)
    terminal = Terminal(environ, "--run")
    terminal.wait_for("[r]ead it first: ")
    assert not told.exists()
    terminal.type("r\n")
    terminal.wait_for("echo the real script ran")
    assert not told.exists()
    terminal.wait_for("[r]ead it first: ")
    terminal.type("y\n")
    assert terminal.end() == 0, terminal.seen
    assert told.exists()


@pytest.mark.parametrize("typed", ["n\n", "\x04"])
def test_a_no_is_a_no(environ: dict[str, str], programs: Path, tmp_path: Path, typed: str) -> None:
    told = put_shell(programs, tmp_path)
    terminal = Terminal(environ, "--run")
    terminal.wait_for("[r]ead it first: ")
    terminal.type(typed)
    assert terminal.end() == 1
    assert "Nothing was run. The script is still in " in terminal.seen
    assert not told.exists()


def test_ctrl_c_at_the_question(environ: dict[str, str], programs: Path, tmp_path: Path) -> None:
    told = put_shell(programs, tmp_path)
    terminal = Terminal(environ, "--run")
    terminal.wait_for("[r]ead it first: ")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130, terminal.seen
    assert "Traceback" not in terminal.seen
    assert not told.exists()


def test_a_script_that_fails_is_kept(environ: dict[str, str], programs: Path, tmp_path: Path) -> None:
    told = put_shell(programs, tmp_path, then="echo no sudo >&2; exit 3")
    process = run(environ, "--run", "--yes")
    assert (process.returncode, process.stdout) == (1, "")
    assert "no sudo" in process.stderr
    last = process.stderr.splitlines()[-1]
    assert last.startswith("llmspell: error: `sh ")
    assert "exit code 3" in last
    assert Path(told.read_text(encoding="utf-8").split("\n")[0]).read_bytes() == SCRIPT


def test_without_a_shell(environ: dict[str, str]) -> None:
    process = run(environ, "--run", "--yes")
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("llmspell: error: sh cannot be started: No such file")


def test_a_package_manager_is_run_directly(
    programs: Path, tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "told"
    put_program(programs, "brew", f'echo "$@" >{told}; echo pouring; exit 2')
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    way = ways("darwin", "arm64", shutil.which)[0]
    with pytest.raises(InstallationFailed, match="Nothing was run"):
        take(way, host.url, is_agreed=False)
    assert not told.exists()
    with pytest.raises(InstallationFailed, match="`brew install ollama` ended with exit code 2"):
        take(way, host.url, is_agreed=True)
    assert told.read_text(encoding="utf-8") == "install ollama\n"
    output, errors = capfd.readouterr()
    assert (output, "pouring" in errors, host.num_requests) == ("", True, 0)


def test_no_way_to_run() -> None:
    with pytest.raises(InstallationFailed, match=r"/download/OllamaSetup\.exe"):
        take(ways("win32", "AMD64", which())[0], SCRIPT_URL, is_agreed=True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, {}, b"nothing"), "answers HTTP 404"),
        ((200, {}, b"<html>log in to this network</html>"), "is no shell script"),
        ((200, {}, b""), "is no shell script"),
        ((200, {"content-length": "1000"}, SCRIPT), "cannot be downloaded"),
        ((200, {}, b"#!" + bytes(5 << 20)), "too large"),
        ((302, {"location": "http://127.0.0.1:1/"}, b""), "cannot be downloaded"),
    ],
)
def test_downloads_that_fail(
    environ: dict[str, str],
    programs: Path,
    tmp_path: Path,
    host: Host,
    answer: tuple[int, dict[str, str], bytes],
    reason: str,
) -> None:
    told = put_shell(programs, tmp_path)
    host.answers["/install.sh"] = answer
    process = run(environ, "--run", "--yes")
    assert (process.returncode, process.stdout) == (1, "")
    assert reason in process.stderr.splitlines()[-1]
    assert "OLLAMA_INSTALL_URL" in process.stderr.splitlines()[-1]
    assert not told.exists()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_host_that_is_not_there(environ: dict[str, str]) -> None:
    process = run(environ | {"OLLAMA_INSTALL_URL": "http://127.0.0.1:1/install.sh"}, "--run", "--yes")
    assert process.returncode == 1
    assert "cannot be downloaded" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_proxy_that_is_none(environ: dict[str, str], host: Host) -> None:
    environ |= {"ALL_PROXY": "socks5://127.0.0.1:1", "no_proxy": "", "NO_PROXY": ""}

    process = run(environ, "--run", "--yes")

    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith(f"llmspell: error: {host.url} cannot be downloaded")
    assert host.num_requests == 0
