"""``llmspell model pull`` from a stand-in for Hugging Face."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from collections.abc import Iterator

import pytest
from fakes.hub import Cut, FakeHub, Rule, Stall, Status
from program import PATIENCE, Program
from store.made_stores import gguf_bytes

REPOSITORY = "owner/repo-GGUF"
FILE = "model-Q4_K_M.gguf"
SPEC = f"hf.co/{REPOSITORY}"
HEADER = gguf_bytes({"general.name": "model"})
CONTENT = HEADER + random.Random(1).randbytes((1 << 20) - len(HEADER))


@pytest.fixture
def hub(program: Program) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        fake.add(REPOSITORY, {FILE: CONTENT, "model-Q8_0.gguf": CONTENT[::-1]})
        program.variables["HF_ENDPOINT"] = fake.url
        yield fake


def test_standard_output_is_the_spec_and_nothing_else(program: Program, hub: FakeHub) -> None:
    result = program.run("model", "pull", SPEC)
    assert (result.code, result.output) == (0, f"local/{SPEC}:Q4_K_M@llamacpp\n")
    assert f"llmspell chat {SPEC}`" in result.errors, "the name that was asked for will do"
    assert "\x1b" not in result.errors
    assert "\r" not in result.errors
    assert len(result.errors.splitlines()) < 20
    assert (program.models / SPEC / FILE).read_bytes() == CONTENT
    asked = len(hub.asked("/resolve/"))
    again = program.run("model", "pull", SPEC)
    assert (again.code, again.output) == (0, result.output)
    assert len(hub.asked("/resolve/")) == asked
    assert f"{SPEC}:Q4_K_M" in program.run("model", "list").output


def test_what_is_no_model_is_not_offered_for_a_chat(program: Program, hub: FakeHub) -> None:
    hub.add(REPOSITORY, {FILE: b"this is no model, whatever its name says\n" * 1000})
    result = program.run("model", "pull", SPEC)
    assert (result.code, result.output) == (0, f"local/{SPEC}:Q4_K_M@llamacpp\n")
    assert f"It is here, but cannot be used: {program.models / SPEC / FILE} is not a GGUF file" in result.errors
    assert "llmspell chat" not in result.errors


def test_the_quantization_chooses_the_file(program: Program, hub: FakeHub) -> None:
    assert hub.url
    result = program.run("model", "pull", SPEC, "--quantization", "q8_0")
    assert (result.code, result.output) == (0, f"local/{SPEC}:Q8_0@llamacpp\n")
    missing = program.run("model", "pull", SPEC, "--quantization", "Q2_K")
    assert (missing.code, missing.output) == (1, "")
    assert "Q8_0" in missing.errors


def test_a_short_name_is_the_models_name_from_then_on(program: Program, hub: FakeHub) -> None:
    repository = "bartowski/Mistral-7B-Instruct-v0.3-GGUF"
    hub.add(repository, {"Mistral-7B-Instruct-v0.3-Q4_K_M.gguf": CONTENT})
    result = program.run("model", "pull", "llamacpp/mistral:7b")
    assert (result.code, result.output) == (0, f"local/hf.co/{repository}:Q4_K_M@llamacpp\n")
    assert "llmspell chat llamacpp/mistral:7b`" in result.errors
    heading, line = program.run("model", "list").output.splitlines()
    assert "SHORT NAME" in heading
    assert line.split()[:2] == [f"hf.co/{repository}:Q4_K_M", "mistral:7b"]
    assert program.run("model", "rm", "mistral:7b", "--yes").code == 0


def test_events_for_programs_are_those_of_the_stream_over_http(program: Program, hub: FakeHub) -> None:
    hub.rules.append(Rule("/", Cut(1000), times=1, at_hub=False))
    result = program.run("model", "pull", SPEC, "--json")
    events = [json.loads(line) for line in result.output.splitlines()]
    assert result.code == 0
    assert {each["status"] for each in events} <= {"queued", "downloading", "checking", "done", "notice", "success"}
    assert events[-1]["status"] == "success"
    assert events[-1]["paths"] == [str(program.models / SPEC / FILE)]
    assert events[-1]["id"] == f"local/{SPEC}:Q4_K_M@llamacpp"
    assert any(each["status"] == "notice" for each in events)
    assert any(each.get("total_bytes") == len(CONTENT) for each in events)


def test_ctrl_c_keeps_what_has_come_and_the_same_command_goes_on(program: Program, hub: FakeHub) -> None:
    hub.rules.append(Rule("/", Stall(600_000), times=1, at_hub=False))
    with program.started("model", "pull", SPEC, "--json") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("done_bytes", 0) >= 500_000:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert errors == "Interrupted. What has come is kept: run the same command again to go on.\n"
    assert not (program.models / SPEC / FILE).exists()
    sent = hub.bytes_sent
    assert program.run("model", "pull", SPEC).code == 0
    assert hub.bytes_sent - sent < len(CONTENT)
    assert (program.models / SPEC / FILE).read_bytes() == CONTENT


def test_who_presses_ctrl_c_twice_is_not_shown_a_traceback(program: Program, hub: FakeHub) -> None:
    hub.rules.append(Rule("/", Stall(600_000), times=1, at_hub=False))
    with program.started("model", "pull", SPEC, "--json") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("done_bytes", 0) >= 500_000:
                break
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):  # leaving takes a moment, in which the second one comes
            process.wait(timeout=0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode in (130, -signal.SIGINT)
    assert errors == "Interrupted. What has come is kept: run the same command again to go on.\n"


def test_on_a_terminal_there_is_a_bar_that_leaves_no_trace(program: Program, hub: FakeHub) -> None:
    hub.bytes_per_second = 2_000_000
    result = program.on_terminal("model", "pull", SPEC)
    assert result.code == 0
    assert "downloading" in result.output
    assert "of 1.0 MB" in result.output
    assert "MB/s" in result.output or "kB/s" in result.output
    assert result.output.rstrip().endswith(f"`llmspell chat {SPEC}`.")


@pytest.mark.parametrize(
    ("action", "hint"),
    [
        (Status(401, "GatedRepo", "Access to model is restricted."), "HF_TOKEN"),
        (Status(404, "RepoNotFound", "Repository not found"), "owner/repo-GGUF"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(action: Status, hint: str, program: Program, hub: FakeHub) -> None:
    hub.rules.append(Rule("/api/models", action))
    result = program.run("model", "pull", SPEC)
    assert (result.code, result.output) == (1, "")
    assert result.errors.splitlines()[-1].startswith("llmspell: error: ")
    assert hint in result.errors
    assert "Traceback" not in result.errors


def test_without_a_network_it_is_said(program: Program) -> None:
    program.variables["HF_HUB_OFFLINE"] = "1"
    result = program.run("model", "pull", SPEC)
    assert (result.code, result.output) == (1, "")
    assert "HF_HUB_OFFLINE" in result.errors


def test_a_name_that_nobody_knows_is_refused_with_both_ways(program: Program) -> None:
    result = program.run("model", "pull", "nothing:1b")
    assert (result.code, result.output) == (1, "")
    assert "ollama/nothing:1b" in result.errors
    assert "hf.co/" in result.errors


def test_a_folder_that_cannot_be_written_to_is_named(program: Program, hub: FakeHub) -> None:
    assert hub.url
    program.models.parent.mkdir(parents=True)
    program.models.write_text("not a folder")
    result = program.run("model", "pull", SPEC)
    assert (result.code, result.output) == (1, "")
    assert str(program.models) in result.errors
    assert "Traceback" not in result.errors


def test_what_an_interrupted_pull_has_left_is_deleted_after_asking(program: Program, hub: FakeHub) -> None:
    hub.rules.append(Rule("/", Stall(600_000), times=1, at_hub=False))
    with program.started("model", "pull", SPEC, "--json") as process:
        assert process.stdout is not None
        assert any(json.loads(line).get("done_bytes", 0) >= 500_000 for line in process.stdout)
        process.kill()
        process.communicate(timeout=PATIENCE)
    parts = program.models / ".llmspell" / "incomplete"
    assert [*parts.glob("*.part")]
    result = program.on_terminal("model", "rm", SPEC, answer="y\n")
    assert "what has come of" in result.output
    assert (result.code, "freed" in result.output) == (0, True)
    assert not [*parts.glob("*.part")]
