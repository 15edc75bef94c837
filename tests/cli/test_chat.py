"""``llmspell chat`` as people and scripts start it: on a server, in its own process, in a terminal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import prestarted
import pytest
from fakes.answering import Answering, envelope, stream, stream_head, whole
from fakes.hub import FakeHub
from fakes.ollama import FakeModel, FakeOllama, Pause, Reply
from terminal import CTRL_C, CTRL_D, Terminal
from typer.testing import CliRunner

from server.cli import app
from server.cli.serve import demo_model_path

TIMEOUT = 120
NO_DAEMON = {"LLMSPELL_OLLAMA__ENABLED": "false"}
PARIS = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
INTERRUPTED = 130


@pytest.fixture
def daemon() -> Iterator[FakeOllama]:
    """A daemon whose model ``think`` thinks, ``endless`` never finishes, and ``rude`` wants to change colours."""
    with FakeOllama(
        FakeModel("echo", ("completion",)),
        FakeModel("think", ("completion", "thinking"), reply=Reply(text="Four.", thinking="Two and two.")),
        FakeModel("endless", reply=Reply(tokens=[" word"] * 10)),
        FakeModel("rude", reply=Reply(text="\x1b[31mred")),
    ) as running:
        running.on(Pause(4), model="endless", path="/api/chat", times=None)
        yield running


def using(daemon: FakeOllama) -> dict[str, str]:
    """Variables that lead to the daemon, with patience for busy machines."""
    limits = ("DETECTION_TIMEOUT_SECONDS", "CONNECT_TIMEOUT_SECONDS")
    patience = {f"LLMSPELL_OLLAMA__{name}": "30" for name in limits}
    return {"LLMSPELL_OLLAMA__URL": daemon.url, **patience}


@pytest.fixture(autouse=True)
def nobody_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep a port free of servers, and have the configuration name it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("LLMSPELL_SERVER__PORT", str(taken.getsockname()[1]))
        yield


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "server", "chat", *arguments]


def ask(question: str, *arguments: str, variables: Mapping[str, str] = NO_DAEMON) -> subprocess.CompletedProcess[str]:
    """Ask by a pipe."""
    return prestarted.run("chat", *arguments, text=question, timeout=TIMEOUT, env=os.environ | variables)


def chunk(**delta: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


# --- from a pipe, in its own process ---


def test_one_question(tmp_path: Path) -> None:
    done = ask(f"{PARIS}\n", "--demo", "--temperature", "0", "--timings")
    assert (done.stdout, done.returncode) == (f"{ANSWER}\n", 0)
    assert "tokens/s; first token after" in done.stderr
    assert list(tmp_path.glob("*.json")) == []


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my demo.gguf"
    path.symlink_to(demo_model_path())
    done = ask(PARIS, str(path), "--temperature", "0", "--json")
    document = json.loads(done.stdout)
    assert (document["model"], document["content"], document["finish_reason"]) == ("local/my demo", ANSWER, "stop")
    assert document["timings"]["backend"] == "llamacpp"


def test_what_a_daemon_is_told(daemon: FakeOllama) -> None:
    arguments = ("echo", "--system", "Be kind.", "--temperature", "0.25", "--max-tokens", "3")
    done = ask("one\ntwo\n", *arguments, variables=using(daemon))
    assert done.returncode == 0
    assert "(cut: " in done.stderr
    (recorded,) = [each for each in daemon.requests if each.path == "/api/chat"]
    messages = [(each["role"], each["content"]) for each in recorded.body["messages"]]
    assert messages == [("system", "Be kind."), ("user", "one\ntwo")]
    assert recorded.body["options"]["temperature"] == 0.25
    assert recorded.body["options"]["num_predict"] == 3
    assert "keep_alive" not in recorded.body


def test_reasoning_is_not_part_of_the_answer(daemon: FakeOllama) -> None:
    done = ask("2 + 2?", "think", variables=using(daemon))
    assert (done.stdout, done.returncode) == ("Four.\n", 0)
    assert "Two and two" not in done.stderr
    assert json.loads(ask("2 + 2?", "think", "--json", variables=using(daemon)).stdout)["reasoning"] == "Two and two."


def test_a_model_that_may_be_downloaded_first() -> None:
    spec = "hf.co/owner/spell-GGUF:F16"
    with FakeHub() as hub:
        hub.add("owner/spell-GGUF", {"spell.F16.gguf": demo_model_path()})
        variables = NO_DAEMON | {"HF_ENDPOINT": hub.url}
        assert ask(PARIS, spec, "--temperature", "0", variables=variables).returncode == 1
        done = ask(PARIS, spec, "--temperature", "0", variables=variables | {"LLMSPELL_STORE__AUTO_PULL": "true"})
        assert (done.stdout, done.returncode) == (f"{ANSWER}\n", 0), done.stderr
        assert ask(PARIS, spec, "--temperature", "0", variables=NO_DAEMON).stdout == f"{ANSWER}\n"


def test_no_such_model() -> None:
    done = ask("Hello", "--demo", "local/dema")
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith(
        "llmspell: error: The model 'local/dema' does not exist here. Did you mean local/demo?"
    )


@pytest.mark.parametrize("question", ["", " \n\n"])
def test_no_question(question: str) -> None:
    done = ask(question, "--demo")
    assert (done.stdout, done.returncode) == ("", 2)


def test_no_standard_input() -> None:
    closed = [sys.executable, "-c", "import os, sys; os.close(0); os.execv(sys.executable, sys.argv[1:])"]
    done = subprocess.run(
        [*closed, *command("--demo")], capture_output=True, text=True, timeout=TIMEOUT, check=False, env=os.environ
    )
    assert (done.stdout, done.returncode) == ("", 2)
    assert "Traceback" not in done.stderr


def test_a_question_that_is_no_text() -> None:
    done = subprocess.run(
        command("--demo"), input=b"\xff\xfe", capture_output=True, timeout=TIMEOUT, check=False, env=os.environ
    )
    assert (done.stdout, done.returncode) == (b"", 1)
    assert done.stderr == b"llmspell: error: Standard input is not UTF-8 text.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x", "--temperature", "9"],
        ["x", "--max-tokens", "0"],
        ["x", "y"],
        ["--demo", "--server", "http://127.0.0.1:1"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["chat", *arguments], input="Hello").exit_code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_answer(daemon: FakeOllama, number: signal.Signals) -> None:
    with prestarted.start("chat", "endless", env=os.environ | using(daemon)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Hello")
        process.stdin.close()
        assert process.stdout.read(5) == " word"
        process.send_signal(number)
        assert process.wait(TIMEOUT) == 128 + number
        daemon.wait_for(lambda: daemon.num_running == 0)


# --- on a server ---


def test_a_server_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = stream(chunk(reasoning_content="Hm."), chunk(content="Pa"), chunk(content="ris."), "[DONE]")
    with Answering(answer, answer) as server:
        assert ask(PARIS, "any model", "--server", f"{server.url}/v1", "--max-tokens", "9").stdout == "Paris.\n"
        monkeypatch.setenv("LLMSPELL_SERVER", server.url)
        assert ask(PARIS, "any model").stdout == "Paris.\n"
    assert server.asked[0].json == {
        "model": "any model",
        "messages": [{"role": "user", "content": PARIS}],
        "stream": True,
        "stream_options": {"include_timings": True},
        "max_tokens": 9,
    }


def test_a_server_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    signpost = whole({"name": "llmspell"})
    with Answering(signpost, stream(chunk(content="Paris."), "[DONE]")) as server:
        monkeypatch.setenv("LLMSPELL_SERVER__PORT", server.url.rpartition(":")[2])
        assert ask(PARIS, "x").stdout == "Paris.\n"


def test_something_else_where_a_server_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering(whole("<title>Router</title>")) as other:
        monkeypatch.setenv("LLMSPELL_SERVER__PORT", other.url.rpartition(":")[2])
        done = ask("Hello", "nothing")
    assert done.returncode == 1
    told = done.stderr.splitlines()
    assert told[0] == f"What listens at {other.url} is no llmspell server; going on without one."
    assert "'nothing' does not exist here" in told[1]


def test_a_named_server_that_is_not_there() -> None:
    done = ask("Hello", "--server", "http://127.0.0.1:1", "x")
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("llmspell: error: No server answers at http://127.0.0.1:1 ")


def test_a_server_that_refuses() -> None:
    with Answering(whole(envelope("The queue is full.", "queue_full"), 429)) as server:
        done = ask("Hello", "--server", server.url, "x")
    assert (done.stdout, done.stderr, done.returncode) == ("", "llmspell: error: The queue is full.\n", 1)


def test_a_failure_within_the_answer() -> None:
    failed = stream(chunk(content="Par"), envelope("It fell over.", "backend_error"))
    with Answering(failed, stream(chunk(content="Par"))) as server:
        done = ask("Hello", "--server", server.url, "x")
        assert (done.stdout, done.stderr, done.returncode) == ("Par\n", "llmspell: error: It fell over.\n", 1)
        done = ask("Hello", "--server", server.url, "x")
        assert (done.stdout, done.returncode) == ("Par\n", 1)
        assert "broke off" in done.stderr


# --- in a terminal ---


def test_a_conversation(daemon: FakeOllama, tmp_path: Path) -> None:
    with Terminal(("chat", "echo", "--system", "Be kind.", "--timings"), using(daemon)) as terminal:
        terminal.wait_for("local/echo:latest, without a server. /help lists commands, Ctrl-D leaves.\n")
        for text in ("first words", "second words"):
            terminal.wait_for(">>> ")
            terminal.type(text)
            terminal.wait_for(f"You said: {text}\n")
            terminal.wait_for("first token after")
        terminal.wait_for(">>> ")
        terminal.type(f"/save {tmp_path}/talk.json")
        terminal.wait_for("saved to")
        terminal.wait_for(">>> ")
        terminal.press(CTRL_D)
        assert terminal.exit_code() == 0
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [(each["role"], each["content"]) for each in saved] == [
        ("system", "Be kind."),
        ("user", "first words"),
        ("assistant", "You said: first words"),
        ("user", "second words"),
        ("assistant", "You said: second words"),
    ]


def test_ctrl_c_stops_the_answer_and_then_the_program(daemon: FakeOllama) -> None:
    with Terminal(("chat", "endless"), using(daemon)) as terminal:
        terminal.wait_for(">>> ")
        terminal.type("Go on.")
        terminal.wait_for(" word word word")
        terminal.press(CTRL_C)
        terminal.wait_for("(stopped)")
        terminal.wait_for(">>> ")
        daemon.wait_for(lambda: daemon.num_running == 0)
        terminal.type("Again.")
        terminal.wait_for(" word word word")
        terminal.press(CTRL_C)
        terminal.wait_for(">>> ")
        terminal.press(CTRL_C)
        assert terminal.exit_code() == INTERRUPTED


@pytest.mark.parametrize("typed", ["", "Go on."], ids=["at the prompt", "within an answer"])
def test_sigterm_ends_a_conversation(daemon: FakeOllama, typed: str) -> None:
    with Terminal(("chat", "endless"), using(daemon)) as terminal:
        terminal.wait_for(">>> ")
        if typed:
            terminal.type(typed)
            terminal.wait_for(" word word word")
        terminal.process.terminate()
        assert terminal.exit_code() == 128 + signal.SIGTERM
    daemon.wait_for(lambda: daemon.num_running == 0)


def test_ctrl_c_at_the_prompt(daemon: FakeOllama) -> None:
    with Terminal(("chat", "echo"), using(daemon)) as terminal:
        terminal.wait_for(">>> ")
        terminal.press("half a quest" + CTRL_C)
        terminal.wait_for("to leave)")
        terminal.wait_for(">>> ")
        terminal.type("whole")
        terminal.wait_for("You said: whole\n")
        terminal.wait_for(">>> ")
        terminal.type("/exit")
        assert terminal.exit_code() == 0


def test_a_model_cannot_change_the_terminal(daemon: FakeOllama) -> None:
    with Terminal(("chat", "rude"), using(daemon)) as terminal:
        terminal.wait_for(">>> ")
        terminal.type("Blush.")
        terminal.wait_for("[31mred")
        assert "\x1b[31m" not in terminal.shown


def test_reasoning_is_dimmed(daemon: FakeOllama) -> None:
    with Terminal(("chat", "think"), using(daemon)) as terminal:
        terminal.wait_for(">>> ")
        terminal.type("2 + 2?")
        terminal.wait_for("\x1b[2mTwo and two.\x1b[22m\n\nFour.\n")


def test_a_model_that_is_not_there_is_found_out_before_anybody_types(daemon: FakeOllama) -> None:
    with Terminal(("chat", "ecko"), using(daemon)) as terminal:
        assert terminal.exit_code() == 1
        assert "'ecko' does not exist here" in terminal.shown
        assert ">>> " not in terminal.shown


def test_a_load_is_seen() -> None:
    go_on = threading.Event()

    def loading(connection: socket.socket) -> None:
        connection.sendall(stream_head() + b": keep-alive\n\n: downloading 7%\n\n")
        connection.sendall(b": loading 42% (waiting for memory)\n\n")
        assert go_on.wait(TIMEOUT)
        for data in (json.dumps(chunk(content="Ready.")), "[DONE]"):
            connection.sendall(f"data: {data}\n\n".encode())

    with (
        Answering(whole({"id": "local/x"}), loading) as server,
        Terminal(("chat", "x", "--server", server.url), {}) as terminal,
    ):
        terminal.wait_for(f"local/x, on the server at {server.url}.")
        terminal.wait_for(">>> ")
        terminal.type("Hello")
        terminal.wait_for("downloading 7%")
        terminal.wait_for("loading 42% (waiting for memory)")
        go_on.set()
        terminal.wait_for("Ready.\n")
        terminal.wait_for(">>> ")
