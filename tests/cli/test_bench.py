"""``llmspell bench`` as users start it: models in its own process, and on a stand-in for the Ollama daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import prestarted
import pytest
import typer
from fakes.ollama import Answer, FakeModel, FakeOllama, Reply
from gguf_shapes import write_llama
from typer.testing import CliRunner

from server.cli import app
from server.cli.bench import stream_counts, what_to_measure
from server.cli.serve import demo_model_path
from server.core.errors import ConfigurationError

TIMEOUT = 120
QUICK = ("--rounds", "1", "--max-tokens", "4", "--prompt-tokens", "120", "--streams", "1,2", "--seed", "1")
NO_DAEMON = {"LLMSPELL_OLLAMA__ENABLED": "false"}


@pytest.fixture
def daemon() -> Iterator[FakeOllama]:
    """A daemon whose model ``early`` ends its answers before it must."""
    reply = Reply(tokens=[" word"] * 100)
    with FakeOllama(FakeModel("spell", reply=reply), FakeModel("early", reply=Reply(tokens=[" end"]))) as running:
        yield running


def using(daemon: FakeOllama) -> dict[str, str]:
    """Variables that lead to the daemon, with patience for busy machines."""
    limits = ("DETECTION_TIMEOUT_SECONDS", "CONNECT_TIMEOUT_SECONDS")
    return {"LLMSPELL_OLLAMA__URL": daemon.url} | {f"LLMSPELL_OLLAMA__{name}": "30" for name in limits}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "server", "bench", *arguments]


def run(*arguments: str, variables: Mapping[str, str] = NO_DAEMON) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return prestarted.run("bench", *arguments, timeout=TIMEOUT, env=os.environ | variables)


def results(process: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What standard output says of each spec; there must be nothing else on it."""
    return {each["spec"]: each for each in json.loads(process.stdout)["results"]}


# --- what is to be measured ---


@pytest.mark.parametrize(("text", "counts"), [("1", (1,)), ("1,4", (1, 4)), ("8, 2,8", (2, 8)), ("256", (256,))])
def test_numbers_of_streams(text: str, counts: tuple[int, ...]) -> None:
    assert stream_counts(text) == counts


@pytest.mark.parametrize("text", ["", "x", "0", "1,", "-1,2", "1.5", "257"])
def test_what_is_no_number_of_streams(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        stream_counts(text)


def test_specs_and_files(tmp_path: Path) -> None:
    path = tmp_path / "A model.GGUF"
    path.touch()
    models, specs = what_to_measure(["local/a@ollama", str(path), "a", "a", str(path)], demo=True)
    assert specs == ["local/a@ollama", "local/A model", "a", "local/demo"]
    assert {spec: keys["path"] for spec, keys in models.items()} == {
        "local/A model": str(path),
        "local/demo": str(demo_model_path()),
    }


@pytest.mark.parametrize("spec", ["local/demo", "demo@llamacpp", "llamacpp/demo"])
def test_a_demo_model_that_is_named_is_measured_once(spec: str) -> None:
    assert what_to_measure([spec], demo=True)[1] == [spec]


def test_files_that_cannot_be_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "same.gguf" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    with pytest.raises(ConfigurationError, match="would both be local/same"):
        what_to_measure([str(path) for path in paths], demo=False)


def test_a_file_that_is_missing() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no file nothing\.gguf"):
        what_to_measure(["nothing.gguf"], demo=False)


@pytest.mark.parametrize(
    "arguments", [[], ["local/a", "--streams", "x"], ["local/a", "--rounds", "0"], ["local/a", "--max-tokens", "1"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["bench", *arguments]).exit_code == 2


# --- measuring ---


def test_a_model_in_this_process() -> None:
    process = run("--demo", "--json", *QUICK, "--rounds", "2")
    assert process.returncode == 0, process.stderr
    assert process.stderr.splitlines() == [f"llmspell bench: round {each} of 2: local/demo" for each in (1, 2)]
    found = results(process)["local/demo"]
    assert (found["backend"], found["error"], found["notes"]) == ("llamacpp", None, [])
    assert found["load_seconds"] > 0
    assert found["memory_bytes"] > 0
    assert found["predicted_memory_bytes"] > 0
    assert found["together"].keys() == {"1", "2"}
    speeds = [found["tokens_per_second"], *found["together"].values()]
    assert all(speed > 0 for speed in speeds)
    assert found["completion_tokens"] == 4
    assert 100 <= found["prompt_tokens"] <= 140
    assert found["cached_tokens"] >= found["prompt_tokens"] - 2
    assert len(found["rounds"]) == 2


def test_both_backends_side_by_side(daemon: FakeOllama, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_llama(path)
    specs = (str(path), "spell", "local/early@ollama")
    process = run(*specs, "--json", *QUICK, "--rounds", "2", variables=using(daemon))
    assert process.returncode == 0, process.stderr
    found = results(process)
    assert [each["backend"] for each in found.values()] == ["llamacpp", "ollama", "ollama"]
    spell, early = found["spell"], found["local/early@ollama"]
    assert spell["memory_bytes"] > 5_000_000
    assert spell["memory_by_device"] == {"predicted": None, "measured": {"ollama": spell["memory_bytes"]}}
    assert (spell["completion_tokens"], spell["first_token_seconds"] > 0) == (4, True)
    assert early["completion_tokens"] < 4
    assert any("ended by themselves" in note for note in early["notes"])


def test_what_a_daemon_is_asked(daemon: FakeOllama) -> None:
    assert run("spell", *QUICK, "--rounds", "2", variables=using(daemon)).returncode == 0
    prompts = [chat.body["messages"][0]["content"] for chat in daemon.chats]
    lengths = [chat.body["options"]["num_predict"] for chat in daemon.chats]
    # in each round a warm-up (and once a second one, for the length of words), then alone, seen, two together
    assert lengths == [1, 1, 4, 1, 4, 4, 1, 4, 1, 4, 4]
    assert (prompts[2], prompts[7]) == (prompts[3], prompts[8])
    assert len(set(prompts)) == len(prompts) - 2
    assert all(chat.body["options"]["temperature"] == 0 for chat in daemon.chats)
    assert not any("keep_alive" in chat.body for chat in daemon.chats)


def test_a_seed_makes_the_same_prompts(daemon: FakeOllama) -> None:
    told = []
    for arguments in (QUICK, QUICK, (*QUICK, "--seed", "2")):
        before = len(daemon.chats)
        assert run("spell", *arguments, "--streams", "1", variables=using(daemon)).returncode == 0
        told.append([chat.body["messages"] for chat in daemon.chats[before:]])
    assert told[0] == told[1]
    assert all(one != other for one, other in zip(told[0], told[2], strict=True))


def test_a_model_that_was_in_memory_before_has_no_load(daemon: FakeOllama) -> None:
    first, second = (results(run("spell", "--json", *QUICK, variables=using(daemon)))["spell"] for _ in range(2))
    assert first["load_seconds"] is not None
    assert second["load_seconds"] is None
    assert any("in memory before" in note for note in second["notes"])


def test_models_that_cannot_be_measured_do_not_keep_the_others_from_it(daemon: FakeOllama) -> None:
    daemon.on(Answer(500, error="out of luck"), path="/api/chat", model="early", times=None)
    process = run("local/missing", "early", "--demo", *QUICK, variables=using(daemon))
    assert process.returncode == 1
    assert "local/missing: failed: The model 'local/missing' does not exist here." in process.stdout
    assert "early: failed: " in process.stdout
    assert "out of luck" in process.stdout
    assert "tokens/s, 2 streams" in process.stdout
    assert "Traceback" not in process.stderr


def test_a_daemon_that_is_down() -> None:
    process = run("spell@ollama", *QUICK, variables={"LLMSPELL_OLLAMA__URL": "http://127.0.0.1:1"})
    assert process.returncode == 1
    assert process.stdout.startswith("spell@ollama: failed: The Ollama daemon at http://127.0.0.1:1 does not")


def test_a_prompt_that_does_not_fit() -> None:
    process = run("--demo", "--json", *QUICK, "--prompt-tokens", "100000")
    assert process.returncode == 1
    found = results(process)["local/demo"]
    assert "context" in found["error"]
    assert (found["first_token_seconds"], found["notes"]) == (None, [f"failed: {found['error']}"])


def test_models_that_do_not_fit_together_take_turns(tmp_path: Path) -> None:
    """Even if the configuration wants each of them to stay."""
    config = tmp_path / "config.toml"
    table = f'path = "{demo_model_path()}"\npin = true\npreload = true\nkeep_alive = "0s"\n'
    models = "".join(f'[models."local/{name}"]\n{table}' for name in ("one", "other"))
    config.write_text(f'[llamacpp]\nmemory_budget = "180MiB"\n{models}', encoding="utf-8")
    process = run("one", "other", "--json", "--config", str(config), *QUICK, "--rounds", "2")
    assert process.returncode == 0, process.stdout
    found = results(process)
    assert all(each["cached_tokens"] > 40 for each in found.values())
    assert all(each["memory_bytes"] > 90 * 2**20 for each in found.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command("--demo", "--json", "--rounds", "100000"),
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=os.environ | NO_DAEMON,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "llmspell bench: round 1 of 100000: local/demo\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, output) == (130, "")
    assert errors.endswith("llmspell bench: interrupted; nothing is shown of what was measured.\n")
    assert "Traceback" not in errors
