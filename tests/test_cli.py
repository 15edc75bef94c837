from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from server import __version__
from server.cli import app, main
from server.cli.http_server import base_url, bind
from server.cli.serve import demo_model_path, is_model_file, load_with_models, model_name, models_from_arguments
from server.config import ServerConfig
from server.core.errors import ConfigurationError, PullFailed
from server.core.model_spec import parse_model_spec

STUB = Path(__file__).parent / "stub_server.py"
TIMEOUT = 60

Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Start stub servers; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(case: str, port: int = 0, log_format: str = "human") -> subprocess.Popen[str]:
        command = [sys.executable, str(STUB), case, str(port), log_format]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_version() -> None:
    result = run_command("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"llmspell {__version__}\n", "")


def test_help_is_shown_without_arguments() -> None:
    result = CliRunner().invoke(app, [])
    assert "serve" in result.output


def test_help_imports_nothing_slow() -> None:
    slow = {"fastapi", "uvicorn", "llama_cpp", "pydantic", "pydantic_settings", "httpx", "numpy", "rich"}
    for arguments in ([], ["model"], ["model", "pull"]):
        program = (
            f"import sys, atexit; sys.argv = ['llmspell', *{arguments}, '--help']\n"
            f"atexit.register(lambda: print(*({slow} & {{*sys.modules}}), file=sys.stderr))\n"
            "from server.cli import main; main()"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert result.stdout.startswith(" ".join(["Usage: llmspell", *arguments]))
        assert result.stderr == "\n"


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["serve", "--nothing"], ["serve", "--port", "x"], ["serve", "--port", "65536"], ["serve", "extra"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nothing.toml"], "--config: there is no file nothing.toml."),
        (["--model", "nothing.gguf"], "--model: there is no file nothing.gguf."),
        (["--model", "a b:"], "--model: 'a b:' is not a model spec."),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_code_1(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_command("serve", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"llmspell: error: {message}")
    assert result.stderr.count("\n") == 1


def test_what_others_say_is_one_line_that_cannot_move_the_cursor(capfd: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise PullFailed("The hub says: \x1b]0;owned\x07\x1b[2J\r\nno")

    with pytest.raises(SystemExit) as ended:
        main(refuse)

    assert ended.value.code == 1
    line = capfd.readouterr().err.removesuffix("\n")
    assert line.startswith("llmspell: error: The hub says: ")
    assert line.endswith(" no")
    assert line.isprintable()


def test_a_name_that_stands_for_no_file_ends_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_command("serve", "--port", "0", "--model", "local/nothing")
    assert (result.returncode, result.stdout) == (1, "")
    assert "llmspell: error: The model local/nothing has no file" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("argument", "is_file"),
    [
        ("nothing.gguf", True),
        ("./nothing.GGUF", True),
        ("/a b/nothing:8b.gguf", True),
        ("there", True),
        ("hf.co/owner/repo:Name-Q4_K_M.gguf", False),
        ("llamacpp/hf.co/owner/repo:Name.gguf", False),
        ("phi3:3.8b", False),
        ("a b:", False),
    ],
)
def test_files_are_told_from_specs(
    argument: str, *, is_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    assert is_model_file(argument) is is_file


def test_a_file_is_served_under_its_stem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Qwen3-4B.Q4_K_M.gguf").touch()
    monkeypatch.chdir(tmp_path)
    models = models_from_arguments(["Qwen3-4B.Q4_K_M.gguf", "phi3:3.8b"])
    assert models == {
        "local/Qwen3-4B.Q4_K_M": {"path": str(tmp_path / "Qwen3-4B.Q4_K_M.gguf"), "preload": True},
        "local/phi3:3.8b": {"preload": True},
    }


def test_models_of_the_flags_are_loaded_at_start_and_those_of_the_file_by_the_first_request(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.gguf" for name in ("listed", "asked-for", "ready", "one", "two")}
    for path in files.values():
        path.touch()
    config = tmp_path / "config.toml"
    config.write_text(
        "[models.listed]\npath = 'listed.gguf'\n"
        "[models.asked-for]\npath = 'asked-for.gguf'\ncontext_length = 512\npreload = false\n"
        "[models.ready]\npath = 'ready.gguf'\npreload = true\n",
        encoding="utf-8",
    )
    arguments = ["asked-for", str(files["one"]), str(files["two"])]
    models = load_with_models(config, {"server": {"port": 1}}, arguments, demo=True).settings.models
    assert {spec: (model.path, model.preload) for spec, model in models.items()} == {
        "local/listed": (str(files["listed"]), False),
        "local/asked-for": (str(files["asked-for"]), True),
        "local/ready": (str(files["ready"]), True),
        "local/one": (str(files["one"]), True),
        "local/two": (str(files["two"]), True),
        "local/demo": (str(demo_model_path()), True),
    }
    assert models["local/asked-for"].context_length == 512


def test_a_file_named_like_the_demo_is_not_mixed_up_with_it(tmp_path: Path) -> None:
    (tmp_path / "demo.gguf").touch()
    with pytest.raises(ConfigurationError, match="would both be local/demo"):
        load_with_models(None, {}, [str(tmp_path / "demo.gguf")], demo=True)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "m.gguf", tmp_path / "b" / "m.gguf"]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    with pytest.raises(ConfigurationError, match="would both be local/m"):
        models_from_arguments([str(path) for path in paths])
    assert len(models_from_arguments([str(paths[0])] * 2)) == 1


@pytest.mark.parametrize(
    ("file", "name"),
    [("a.gguf", "a"), ("a:b@c.gguf", "a-b-c"), ("_größe 1.gguf", "gr-e 1"), ("A.B-c_d+e.GGUF", "A.B-c_d+e")],
)
def test_file_names_become_valid_names(file: str, name: str) -> None:
    assert model_name(Path(file)) == name
    assert parse_model_spec(f"local/{name}").name == name


def test_a_file_name_without_letters_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no letter or digit"):
        model_name(Path("é.gguf"))


def test_a_taken_port_is_told_before_models_are_loaded(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = launch("ok", port)
        output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, output) == (1, "")
    assert errors == (
        f"llmspell: error: cannot listen on 127.0.0.1 port {port}: the port is in use. "
        "Stop what uses it, or choose another one with --port.\n"
    )


def test_every_address_of_a_host_gets_the_same_port() -> None:
    sockets = bind(ServerConfig(host="localhost", port=0))
    try:
        assert len({bound.getsockname()[1] for bound in sockets}) == 1
        assert base_url("localhost", sockets[0]) == f"http://localhost:{sockets[0].getsockname()[1]}/v1"
        assert base_url("::1", sockets[0]).startswith("http://[::1]:")
    finally:
        for bound in sockets:
            bound.close()


async def test_nothing_waits_for_the_receipt_of_what_was_sent_before() -> None:
    """With Nagle's algorithm, an event would wait for as long as a client puts its receipt off, which is 40 ms."""
    is_at_once = asyncio.get_running_loop().create_future()

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        is_at_once.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
        writer.close()

    (bound,) = bind(ServerConfig(port=0))
    async with await asyncio.start_server(accept, sock=bound):
        _, writer = await asyncio.open_connection(*bound.getsockname())
        assert await asyncio.wait_for(is_at_once, TIMEOUT)
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("host", ["host.invalid", "256.0.0.1", "a" * 100])
def test_an_unknown_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        bind(ServerConfig(host=host))


def test_a_model_that_cannot_be_loaded_is_one_line_and_exit_code_1(launch: Launch) -> None:
    process = launch("fails")
    announcement = first_line(process)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert "http://127.0.0.1:" in announcement
    assert (process.returncode, errors) == (1, "llmspell: error: x.gguf is truncated.\n")


def test_a_bug_at_start_keeps_its_traceback(launch: Launch) -> None:
    process = launch("bug")
    first_line(process)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert errors.startswith("Traceback")
    assert errors.endswith("ZeroDivisionError\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_finish(launch: Launch, number: signal.Signals) -> None:
    process = launch("ok", log_format="json")
    announcement = json.loads(first_line(process))
    assert announcement["models"] == []
    assert announcement["configuration"] == "command line"
    assert json.loads(first_line(process))["message"] == "ready"
    url = announcement["url"].removesuffix("/v1")
    with httpx.stream("GET", f"{url}/numbers", timeout=TIMEOUT) as response:
        lines = response.iter_lines()
        received = [next(lines)]
        process.send_signal(number)
        received += lines
    assert received == ["0", "1", "2", "3", "4"]
    assert "server" not in response.headers
    output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, output, errors) == (0, "loading\nunloaded\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_loading_of_models(launch: Launch, number: signal.Signals) -> None:
    process = launch("slow")
    first_line(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, output, errors) == (0, "unloaded\n", "")
