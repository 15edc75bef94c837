"""``llmspell model`` on a machine where no server runs: files in places, and nothing else."""

from __future__ import annotations

import http.server
import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import NOWHERE, Program
from store.made_stores import put, put_hub, put_ollama

from server import __version__

COMMANDS = ("status", "list", "available", "pull", "show", "rm", "load", "unload", "install-ollama")


@pytest.fixture
def stocked(program: Program) -> Program:
    """A machine with models in several places."""
    put(program.models / "mine-Q4_K_M.gguf")
    put(program.models / "empty.gguf", b"")
    put_ollama(program.home / ".ollama" / "models", "registry.ollama.ai/library/phi3/3.8b")
    put_hub(program.home / ".cache" / "huggingface" / "hub", "owner/Model-GGUF", "Model-Q8_0.gguf")
    return program


def test_a_list_is_one_line_for_each_model_with_what_is_wrong(stocked: Program) -> None:
    result = stocked.run("model", "list")
    assert (result.code, result.errors) == (0, "")
    head, *lines = result.output.splitlines()
    assert head.split() == ["NAME", "SHORT", "NAME", "BACKEND", "SIZE", "QUANTIZATION", "MODIFIED", "SOURCE", "PROBLEM"]
    cells = {line.split()[0]: line for line in lines}
    assert [*cells] == ["empty", "hf.co/owner/Model-GGUF:Q8_0", "mine:Q4_K_M", "phi3:3.8b"]
    assert cells["empty"].endswith("empty.gguf has 0 bytes, which is no model")
    assert cells["mine:Q4_K_M"].split()[-1] == "own"
    assert cells["hf.co/owner/Model-GGUF:Q8_0"].split()[1:3] == ["Model:Q8_0", "llamacpp"]
    assert "Q8_0" in cells["hf.co/owner/Model-GGUF:Q8_0"].split()
    assert cells["hf.co/owner/Model-GGUF:Q8_0"].endswith("huggingface")


def test_a_list_for_programs_is_the_same_as_over_http(stocked: Program) -> None:
    document = stocked.run("model", "list", "--json").document
    assert document["object"] == "list"
    mine = next(each for each in document["data"] if each["name"] == "mine:Q4_K_M")
    assert mine["id"] == "local/mine:Q4_K_M@llamacpp"
    assert mine["path"] == str(stocked.models / "mine-Q4_K_M.gguf")
    assert (mine["state"], mine["problem"], mine["backend"]) == (None, None, "llamacpp")


def test_a_list_of_one_backend_says_why_it_is_empty(stocked: Program) -> None:
    result = stocked.run("model", "list", "--backend", "ollama")
    assert (result.code, result.output) == (0, "")
    assert result.errors == "ollama is down: the connection is refused\n"


def test_a_list_of_nothing_says_how_to_get_models(program: Program) -> None:
    result = program.run("model", "list")
    assert (result.code, result.output) == (0, "")
    assert "llmspell model pull" in result.errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.parametrize("command", [("model", "list"), ("model", "list", "--json"), ("--help",), ("doctor",)])
def test_output_that_cannot_be_written_is_an_error_of_one_line(stocked: Program, command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            stocked.command(*command),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=stocked.environment,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "llmspell: error: The output cannot be written: No space left on device."
    assert "Traceback" not in done.stderr


def test_closed_streams_are_no_reason_to_fail(stocked: Program) -> None:
    script = f"{shlex.join(stocked.command('model', 'list'))} <&- >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", script], env=stocked.environment, check=False).returncode == 0


def test_a_list_on_a_terminal_has_all_names_whatever_its_width(stocked: Program) -> None:
    wide = stocked.on_terminal("model", "list", size=(40, 200))
    assert wide.code == 0
    assert "hf.co/owner/Model-GGUF:Q8_0" in wide.output
    assert "has 0 bytes" in wide.output
    narrow = stocked.on_terminal("model", "list", size=(40, 40))
    assert narrow.code == 0
    assert "…" not in narrow.output


def test_names_cannot_move_the_cursor(program: Program) -> None:
    put(program.models / "bad\x1b[2Jname.gguf", b"")
    result = program.run("model", "list")
    assert (result.code, "\x1b" in result.output) == (0, False)


def test_files_whose_names_are_no_text_are_listed(program: Program) -> None:
    folder = program.models
    folder.mkdir(parents=True)
    (Path(str(folder)) / b"caf\xe9.gguf".decode(errors="surrogateescape")).write_bytes(b"")
    for arguments in (["model", "list"], ["model", "list", "--json"]):
        result = program.run(*arguments)
        assert (result.code, result.errors) == (0, ""), arguments
        assert "0 bytes" in result.output


def test_a_terminal_that_knows_few_letters_shows_the_rest(program: Program) -> None:
    put(program.models / "x.gguf", b"")
    put(program.models / "\N{CYRILLIC SMALL LETTER ZHE}.gguf", b"")
    program.variables["PYTHONIOENCODING"] = "latin-1"
    result = program.run("model", "list")
    assert (result.code, result.errors) == (0, "")
    assert "\\u0436.gguf has 0 bytes" in result.output


def test_a_reader_that_stops_early_is_no_bug(stocked: Program) -> None:
    for number in range(300):
        put(stocked.models / f"many-{number}-Q4_0.gguf")
    with stocked.started("model", "list") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def test_show_tells_what_the_file_says(stocked: Program) -> None:
    result = stocked.run("model", "show", "mine")
    assert (result.code, result.errors) == (0, "")
    facts = {line[:14].strip(): line[14:].strip() for line in result.output.splitlines()}
    assert facts["spec"] == "local/mine:Q4_K_M@llamacpp"
    assert facts["architecture"] == "llama"
    assert facts["files"] == str(stocked.models / "mine-Q4_K_M.gguf")
    document = stocked.run("model", "show", "mine", "--json").document
    assert document["architecture"] == "llama"
    assert [each["context_length"] for each in document["memory"]] == [2048, 8192, 32768]


def test_what_is_not_there_is_said_with_what_to_do(stocked: Program) -> None:
    for command in ("show", "load", "unload", "rm --yes"):
        result = stocked.run("model", *command.split(), "mine:Q4_K_S")
        assert (result.code, result.output) == (1, ""), command
        assert result.errors.startswith("llmspell: error: "), command
        assert "mine:Q4_K_M" in result.errors, command
        assert result.errors.count("\n") == 1, command


@pytest.mark.parametrize("spec", ["", "a b:", "../../etc/passwd", "x@y", "ollama/x@llamacpp"])
def test_what_is_no_spec_is_refused(spec: str, stocked: Program) -> None:
    result = stocked.run("model", "show", spec)
    assert (result.code, result.output) == (1, "")
    assert result.errors.startswith("llmspell: error: ")
    assert "Traceback" not in result.errors


def test_a_model_is_deleted_when_nobody_has_to_be_asked(stocked: Program) -> None:
    path = stocked.models / "mine-Q4_K_M.gguf"
    size = path.stat().st_size
    refused = stocked.run("model", "rm", "mine")
    assert (refused.code, refused.output) == (2, "")
    assert "--yes" in refused.errors
    assert path.exists()
    document = stocked.run("model", "rm", "mine", "--yes", "--json").document
    assert document["deleted"] is True
    assert (document["paths"], document["freed_bytes"]) == ([str(path)], size)
    assert not path.exists()


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("\n", 1), ("\x04", 1), ("\x03", 130), ("y\n", 0)])
def test_on_a_terminal_a_deletion_is_asked_for(answer: str, code: int, stocked: Program) -> None:
    result = stocked.on_terminal("model", "rm", "mine", answer=answer)
    assert result.code == code
    assert f"at {stocked.models}/mine-Q4_K_M.gguf?" in result.output.replace("\n", "")
    assert (stocked.models / "mine-Q4_K_M.gguf").exists() == (code != 0)
    assert ("freed" in result.output) == (code == 0)


def test_files_of_others_are_not_deleted(stocked: Program) -> None:
    for spec in ("phi3:3.8b", "hf.co/owner/Model-GGUF:Q8_0"):
        result = stocked.run("model", "rm", spec, "--yes")
        assert (result.code, result.output) == (1, ""), spec
    assert len(stocked.run("model", "list").output.splitlines()) == 5


def test_loading_needs_a_server(stocked: Program) -> None:
    result = stocked.run("model", "load", "mine")
    assert (result.code, result.output) == (1, "")
    assert "llmspell serve" in result.errors


def test_status_without_a_server(stocked: Program) -> None:
    result = stocked.run("model", "status")
    assert (result.code, result.errors) == (0, "")
    assert result.output.startswith("Server: none at http://127.0.0.1:9; `llmspell serve` starts one\n")
    assert [line.split()[:2] for line in result.output.splitlines()[3:5]] == [["ollama", "down"], ["llamacpp", "up"]]
    assert "3" in result.output.splitlines()[4].split()
    document = stocked.run("model", "status", "--json").document
    assert (document["object"], document["version"], document["started"]) == ("status", __version__, None)
    assert {each["name"]: each["up"] for each in document["backends"]} == {"ollama": False, "llamacpp": True}
    assert document["models"] == document["pulls"] == document["devices"] == []


def test_the_catalogue_says_what_fits_and_what_is_here(program: Program) -> None:
    put(program.models / "hf.co" / "bartowski" / "Llama-3.2-1B-Instruct-GGUF" / "Llama-3.2-1B-Instruct-Q4_K_M.gguf")
    result = program.run("model", "available", "--recommended")
    assert result.code == 0
    assert "of memory" in result.errors
    lines = result.output.splitlines()
    for name in ("phi3:3.8b", "mistral:7b", "llama3.1:8b", "gemma2:9b"):
        line = next(each for each in lines if f"ollama/{name}" in each)
        assert f"llamacpp/{name}" in line
        assert any(word in line for word in ("  yes", "GPU", "freed", "too large")), line
    document = program.run("model", "available", "--recommended", "--json").document
    entries = {each["name"]: each for each in document["data"]}
    assert entries["llama3.2:1b"]["installed"] == ["llamacpp"]
    assert entries["phi3:3.8b"]["installed"] == []
    assert entries["phi3:3.8b"]["size_class"] == "1 to 3 GB"
    fitting = {each["name"] for each in program.run("model", "available", "--json").document["data"]}
    assert fitting == {name for name, each in entries.items() if each["fits"] != "no"}


def test_the_users_own_recommendations_are_available(program: Program, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        "[[models]]\nname = 'ours:1b'\ntitle = 'Ours'\nparameters = '1B'\nrepository = 'us/ours-GGUF'\n"
        "size_bytes = 1\ncontext_length = 1\nlicence = 'ours'\n"
    )
    program.variables["LLMSPELL_STORE__RECOMMENDED"] = str(own)
    assert "llamacpp/ours:1b" in program.run("model", "available").output
    own.write_text("[[models]]\nname = 'ours:1b'\n")
    result = program.run("model", "available")
    assert (result.code, result.output) == (1, "")
    assert str(own) in result.errors


def test_aliases_of_the_configuration_are_specs(stocked: Program, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[aliases]\n'gpt 4' = 'local/mine'\n")
    assert stocked.run("model", "show", "gpt 4", "--config", str(config)).code == 0
    config.write_text("[aliases]\nnothing = 1\n")
    result = stocked.run("model", "list", "--config", str(config))
    assert (result.code, result.output) == (1, "")
    assert str(config) in result.errors


def test_a_server_that_was_named_must_answer(stocked: Program) -> None:
    for arguments, variables in ((["--server", NOWHERE], {}), ([], {"LLMSPELL_SERVER": NOWHERE})):
        stocked.variables |= variables
        result = stocked.run("model", "list", *arguments)
        assert (result.code, result.output) == (1, ""), arguments
        assert "127.0.0.1:9" in result.errors


class _SomethingElse(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html><title>Login</title></html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def something_else() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _SomethingElse) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_something_else_at_the_servers_port_is_told_and_passed_by(stocked: Program, something_else: int) -> None:
    stocked.variables["LLMSPELL_SERVER__PORT"] = str(something_else)
    result = stocked.run("model", "list")
    assert result.code == 0
    assert "mine:Q4_K_M" in result.output
    assert "going on without a server" in result.errors
    named = stocked.run("model", "list", "--server", f"http://127.0.0.1:{something_else}")
    assert (named.code, named.output) == (1, "")


def test_every_command_has_an_example_and_names_exit_codes(program: Program) -> None:
    overview = program.run("model", "--help")
    assert "130 it was interrupted" in " ".join(overview.output.split())
    assert [line.split()[0] for line in overview.output.partition("Commands:\n")[2].splitlines()] == [*COMMANDS]
    for command in COMMANDS:
        result = program.run("model", command, "--help")
        assert result.code == 0
        assert f"    llmspell model {command}" in result.output.partition("Examples:")[2]


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["list", "--backend", "x"], ["show"], ["list", "extra"], ["list", "--config"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], program: Program) -> None:
    result = program.run("model", *arguments)
    assert (result.code, result.output) == (2, "")
    assert "Traceback" not in result.errors


def test_a_list_imports_nothing_slow(stocked: Program) -> None:
    slow = {"pydantic", "httpx", "fastapi", "uvicorn", "numpy", "llama_cpp", "rich"}
    program = (
        "import sys, atexit, json; sys.argv = ['llmspell', 'model', 'list']\n"
        f"atexit.register(lambda: print(json.dumps(sorted({slow} & {{*sys.modules}})), file=sys.stderr))\n"
        "from server.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=stocked.environment,
        cwd=stocked.home,
    )
    assert "mine:Q4_K_M" in result.stdout
    assert json.loads(result.stderr) == []
