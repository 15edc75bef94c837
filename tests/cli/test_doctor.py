"""``llmspell doctor`` as users start it, on machines that lack one thing or another."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import prestarted
import pytest
from fakes.hub import FakeHub, Rule, Status
from fakes.ollama import Answer, FakeModel, FakeOllama, Pause
from store.made_stores import put

from server import __version__
from server.store.recommended import load_recommended

TIMEOUT = 120
REPOSITORY = next(iter(load_recommended())).repository
SECRET = "hf_secretsecretsecret"


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    """A machine without a daemon, and a port that nobody else's test takes."""
    foreign = ("LLMSPELL_", "OLLAMA_", "HF_", "HUGGING", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "HOME": str(home),
        "LLMSPELL_SERVER__PORT": "0",
        "LLMSPELL_OLLAMA__URL": "http://127.0.0.1:1",
    }


def doctor(environ: Mapping[str, str], *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return prestarted.run("doctor", *arguments, timeout=TIMEOUT, env=environ, cwd=cwd)


def diagnosis(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The document on standard output, which has nothing else; the findings are by the name of their check."""
    document: dict[str, Any] = json.loads(process.stdout)
    assert process.returncode == (0 if document["can_serve"] else 1)
    return document | {"findings": {each["check"]: each for each in document["findings"]}}


@pytest.fixture
def native(tmp_path: Path, environ: dict[str, str]) -> Path:
    """A package llama_cpp in place of the real one; returns its code."""
    folder = tmp_path / "native" / "llama_cpp"
    folder.mkdir(parents=True)
    environ["PYTHONPATH"] = os.pathsep.join([str(folder.parent), environ.get("PYTHONPATH", "")])
    return folder / "__init__.py"


# --- what is seen ---


def test_a_machine_with_nothing_on_it(environ: dict[str, str], home: Path) -> None:
    found = diagnosis(doctor(environ, "--json"))
    assert (found["object"], found["version"], found["can_serve"]) == ("diagnosis", __version__, True)
    findings = found["findings"]
    assert findings["llama.cpp"]["status"] in {"ok", "note", "warning"}
    assert "CPU (" in findings["devices"]["details"][0]
    assert findings["model folders"]["summary"] == "0 models for llama.cpp"
    assert findings["downloads"]["summary"].startswith(f"to {home}/")
    assert any("llmspell model pull" in line for line in found["advice"])
    assert list(home.iterdir()) == []


def test_models_and_what_is_wrong_with_them(environ: dict[str, str], home: Path, tmp_path: Path) -> None:
    put(home / ".local/share/llmspell/models/good-Q4_K_M.gguf")
    put(home / ".lmstudio/models/maker/model/other.gguf")
    put(tmp_path / "mine" / "broken.gguf", b"")
    config = tmp_path / "my.toml"
    config.write_text(
        f'[llamacpp]\nmodel_dirs = ["{tmp_path / "mine"}", "lost"]\n'
        '[models."local/lost"]\npath = "lost.gguf"\n[models."local/later"]\npreload = true\n',
        encoding="utf-8",
    )
    found = diagnosis(doctor(environ, "--json", "--config", str(config)))
    folders = found["findings"]["model folders"]
    assert folders["summary"] == "2 models for llama.cpp"
    assert f"{home}/.local/share/llmspell/models (own): 1 model" in folders["details"]
    assert f"{tmp_path / 'lost'} (folder): is not there" in folders["details"]
    assert any("broken.gguf: " in line for line in folders["details"])
    assert found["findings"]["configuration"]["summary"].startswith(str(config))
    assert found["findings"]["configured models"]["status"] == "warning"
    assert found["can_serve"] is True


def test_other_programs_models_are_not_looked_for_when_they_are_not_wanted(environ: dict[str, str], home: Path) -> None:
    put(home / ".lmstudio/models/maker/model/other.gguf")
    found = diagnosis(doctor(environ | {"LLMSPELL_STORE__DISCOVER": "false"}, "--json"))
    assert found["findings"]["model folders"]["summary"] == "0 models for llama.cpp"


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_configuration_that_cannot_be_used(
    environ: dict[str, str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "config.toml").write_text("[server]\nprot = 1\n", encoding="utf-8")
    process = doctor(environ, *arguments, cwd=tmp_path)
    assert (process.returncode, process.stderr) == (1, "")
    problem = f"{tmp_path}/config.toml: there is no key server.prot; did you mean server.port?"
    if arguments:
        found = diagnosis(process)
        assert found["findings"]["configuration"]["summary"] == problem
        assert found["advice"][0].endswith(problem)
        assert found["findings"]["llama.cpp"]["status"] != "failed"
    else:
        assert f"failed   configuration  {problem}\n" in process.stdout
        assert "The server cannot serve anything as things are.\nWhat to do:\n  1. Correct" in process.stdout


@pytest.mark.parametrize("arguments", [("--server", "localhost"), ("--conformance", "a", "--online"), ("extra",)])
def test_wrong_usage_is_exit_code_2(environ: dict[str, str], arguments: tuple[str, ...]) -> None:
    process = doctor(environ, *arguments)
    assert (process.returncode, process.stdout) == (2, "")


def test_a_configuration_that_is_not_there_is_one_line(environ: dict[str, str]) -> None:
    process = doctor(environ, "--config", "nothing.toml")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "llmspell: error: --config: there is no file nothing.toml.\n"


# --- llama.cpp ---


def test_a_native_crash_is_a_finding(environ: dict[str, str], native: Path) -> None:
    native.write_text(f"import os\nos.kill(os.getpid(), {int(signal.SIGILL)})\n", encoding="utf-8")
    found = diagnosis(doctor(environ, "--json"))
    assert found["can_serve"] is False
    assert "built for a processor that can do more" in found["findings"]["llama.cpp"]["summary"]
    assert "tools/setup" in found["advice"][0]
    assert "devices" not in found["findings"]


def test_ollama_serves_where_llama_cpp_cannot(environ: dict[str, str], native: Path) -> None:
    native.write_text("raise ImportError('libllama.so: cannot open shared object file')\n", encoding="utf-8")
    with FakeOllama(FakeModel("spell"), version="0.12.5") as daemon:
        found = diagnosis(doctor(environ | {"LLMSPELL_OLLAMA__URL": daemon.url}, "--json"))
    assert found["can_serve"] is True
    llama = found["findings"]["llama.cpp"]
    assert llama["status"] == "failed"
    assert llama["details"][-1] == "ImportError: libllama.so: cannot open shared object file"
    ollama = found["findings"]["Ollama"]
    assert (ollama["status"], ollama["details"][0]) == ("warning", f"address: {daemon.url} ([ollama] url)")
    assert ollama["summary"].startswith("0.12.5, 1 model: older than 0.12.6")


# --- Ollama ---


def test_the_daemon_of_ollama_host(environ: dict[str, str]) -> None:
    del environ["LLMSPELL_OLLAMA__URL"]
    with FakeOllama(FakeModel("spell"), FakeModel("other")) as daemon:
        found = diagnosis(doctor(environ | {"OLLAMA_HOST": daemon.url}, "--json"))
    ollama = found["findings"]["Ollama"]
    assert (ollama["status"], ollama["summary"]) == ("ok", "0.30.0, 2 models")
    assert ollama["details"][0] == f"address: {daemon.url} (OLLAMA_HOST)"


@pytest.mark.parametrize(
    "answer", [Answer(200, body="<html>"), Answer(404, body="nothing"), Answer(200, body='{"no": "version"}')]
)
def test_something_else_where_the_daemon_should_be(environ: dict[str, str], answer: Answer) -> None:
    with FakeOllama() as daemon:
        daemon.on(answer, path="/api/version", times=None)
        found = diagnosis(doctor(environ | {"LLMSPELL_OLLAMA__URL": daemon.url}, "--json"))
    ollama = found["findings"]["Ollama"]
    assert ollama["status"] == "warning"
    assert ollama["summary"].startswith(f"something else answers at {daemon.url}: ")


def test_ctrl_c_ends_it(environ: dict[str, str]) -> None:
    with FakeOllama() as daemon:
        daemon.on(Pause("request"), path="/api/version", times=None)
        command = [sys.executable, "-m", "server", "doctor"]
        variables = environ | {"LLMSPELL_OLLAMA__URL": daemon.url}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=variables, stdout=pipe, stderr=pipe, text=True) as process:
            daemon.wait_for(lambda: daemon.requests)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, output, errors) == (130, "", "")


# --- the port ---


@contextmanager
def mumbling() -> Iterator[int]:
    """A program on a port that speaks no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def mumble() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"220 mail\r\n")

        thread = threading.Thread(target=mumble, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_port_that_somebody_else_has(environ: dict[str, str]) -> None:
    with mumbling() as port:
        found = diagnosis(doctor(environ | {"LLMSPELL_SERVER__PORT": str(port)}, "--json"))
    assert found["can_serve"] is False
    assert found["findings"]["port"]["summary"] == f"127.0.0.1 port {port} is in use by another program"
    assert "--port" in found["advice"][0]


def test_an_address_that_is_not_of_this_machine(environ: dict[str, str]) -> None:
    found = diagnosis(doctor(environ | {"LLMSPELL_SERVER__HOST": "host.invalid"}, "--json"))
    assert (found["can_serve"], found["findings"]["port"]["status"]) == (False, "failed")


def test_a_port_that_our_server_has(environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "server", "serve", "--demo"]
    serving = environ | {"LLMSPELL_LOGGING__FORMAT": "json", "LLMSPELL_OLLAMA__ENABLED": "false"}
    with subprocess.Popen(command, env=serving, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = json.loads(server.stderr.readline())["url"]
        variables = {"LLMSPELL_SERVER__PORT": url.removesuffix("/v1").rpartition(":")[2]}
        found = diagnosis(doctor(environ | variables, "--json"))
        server.terminate()
        server.communicate(timeout=TIMEOUT)
    assert found["findings"]["port"]["status"] == "ok"
    assert "a server of ours answers" in found["findings"]["port"]["summary"]


# --- the hub ---


def asked_hub(environ: dict[str, str], hub: FakeHub, **variables: str) -> tuple[dict[str, Any], str]:
    process = doctor(environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": SECRET} | variables, "--online", "--json")
    assert SECRET not in process.stdout + process.stderr
    return diagnosis(process)["findings"]["hub"], process.stdout


def test_the_hub_is_asked_only_when_that_is_wanted(environ: dict[str, str]) -> None:
    with FakeHub() as hub:
        hub.add(REPOSITORY, {"a.Q4_K_M.gguf": b"x" * 32})
        process = doctor(environ | {"HF_ENDPOINT": hub.url}, "--json")
        assert "not asked" in diagnosis(process)["findings"]["hub"]["summary"]
        assert hub.requests == []
        found, _ = asked_hub(environ, hub)
        assert (found["status"], found["summary"]) == ("ok", f"{hub.url} answers, with a token")
        found, _ = asked_hub(environ, hub, HF_HUB_OFFLINE="1")
        assert found["status"] == "note"
        assert len(hub.requests) == 1


def test_a_hub_that_refuses(environ: dict[str, str]) -> None:
    with FakeHub() as hub:
        hub.rules.append(Rule("/api/models/", Status(401)))
        found, _ = asked_hub(environ, hub)
    assert found["status"] == "warning"
    assert found["summary"].startswith("the hub answers, and refuses: ")


def test_a_hub_that_is_not_there(environ: dict[str, str]) -> None:
    process = doctor(environ | {"HF_ENDPOINT": "http://127.0.0.1:1"}, "--online", "--json")
    assert diagnosis(process)["findings"]["hub"]["status"] == "warning"


# --- what is shown ---


def test_a_table_on_a_terminal(environ: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "server", "doctor"]
    with subprocess.Popen(
        command, env=environ | {"TERM": "xterm", "COLUMNS": "100"}, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while data := _read(ours):
            shown += data
        assert process.wait(TIMEOUT) == 0
    os.close(ours)
    assert b"\x1b[32mok" in shown
    assert b"What to do:" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux tells that nobody has the other side open
        return b""
