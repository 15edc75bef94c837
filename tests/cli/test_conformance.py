"""``llmspell doctor --conformance``: models that do as they should, and a server with one fault after the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

import prestarted
import pytest
from conformance_stand_in import MODEL, StandIn
from fakes.ollama import Call, FakeModel, FakeOllama, Reply

from server.cli.conformance import CHECKS
from server.cli.conformance_report import plain_matrix, reasons, summary
from server.cli.conformance_suite import ModelReport, Outcome, Result, run_checks
from server.cli.conformance_wire import Wire
from server.cli.serve import demo_model_path

TIMEOUT = 300

FAULTS = [
    ("models are not listed", "models: list"),
    ("models cannot be retrieved", "models: retrieve"),
    ("answers of another kind", "chat"),
    ("usage does not add up", "chat: usage"),
    ("all answers have one id", "request ids"),
    ("no ids of requests", "request ids"),
    ("events are no JSON", "stream: events"),
    ("another id in each chunk", "stream: events"),
    ("no role", "stream: role first"),
    ("streams lose text", "stream: text"),
    ("length is called stop", "stream: finish_reason"),
    ("no finish_reason", "stream: finish_reason"),
    ("text after the end", "stream: finish_reason"),
    ("no [DONE]", "stream: [DONE]"),
    ("more after [DONE]", "stream: [DONE]"),
    ("usage in every chunk", "stream: include_usage"),
    ("no chunk with usage", "stream: include_usage"),
    ("usage unasked", "stream: no usage unasked"),
    ("stop strings are kept", "stop"),
    ("stop is called length", "stop"),
    ("length is called stop", "max_tokens"),
    ("max_completion_tokens is ignored", "max_completion_tokens"),
    ("n is ignored", "n"),
    ("answers vary", "seed, temperature 0"),
    ("logprobs are ignored", "logprobs"),
    ("logprobs are positive", "logprobs"),
    ("logit_bias is ignored", "logit_bias"),
    ("penalties have no limit", "penalties"),
    ("no developers", "system and developer"),
    ("parts cost more", "content parts"),
    ("characters are torn", "unicode"),
    ("characters are halved", "unicode"),
    ("characters become question marks", "unicode"),
    ("one stream at a time", "four streams at once"),
    ("streams go on for nobody", "client hangs up"),
    ("calls have no id", "tools: auto"),
    ("arguments are no JSON", "tools: required"),
    ("another tool is called", "tools: named"),
    ("none is ignored", "tools: none"),
    ("calls come together", "tools: one at a time"),
    ("strict is ignored", "tools: strict"),
    ("calls have no index", "tools: streamed"),
    ("results are not understood", "tools: results"),
    ("results are not understood", "tools: call, result, answer"),
    ("JSON in a fence", "response_format: json_object"),
    ("schemas are ignored", "response_format: json_schema"),
    ("streams ignore schemas", "response_format: streamed"),
    ("length is called stop", "response_format: cut short"),
    ("schemas fail open", "response_format: unenforceable"),
    ("grammar is ignored", "grammar"),
    ("guided_regex is ignored", "guided_regex"),
    ("guided_choice is ignored", "guided_choice"),
    ("thoughts are part of the answer", "reasoning"),
    ("thoughts are not streamed", "reasoning"),
    ("thoughts are not counted", "reasoning: usage"),
    ("images are a failure", "images"),
    ("any spec is taken", "error: bad spec"),
    ("unknown models are replaced", "error: unknown model"),
    ("errors without param", "error: wrong type"),
    ("temperatures have no limit", "error: out of range"),
    ("messages are not named", "error: no messages"),
    ("bad JSON is a failure", "error: not JSON"),
    ("prompts are cut", "error: prompt too long"),
    ("unknown parameters are dropped", "error: unknown parameter"),
    ("functions are dropped", "error: legacy functions"),
    ("choices are not looked at", "error: absent function"),
    ("cut arguments are a failure", "error: cut arguments"),
    ("errors come in streams", "error: before a stream"),
    ("addresses answer in HTML", "error: unknown address"),
]


def doctor(*arguments: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"LLMSPELL_OLLAMA__ENABLED": "false"} | dict(variables or {})
    return prestarted.run("doctor", *arguments, timeout=TIMEOUT, env=environ)


def results(process: subprocess.CompletedProcess[str]) -> dict[str, dict[str, tuple[str, str | None]]]:
    """What standard output says of each model and check; there must be nothing else on it."""
    models = json.loads(process.stdout)["models"]
    return {each["model"]: {row["check"]: (row["result"], row["reason"]) for row in each["checks"]} for each in models}


# --- each check finds its fault ---


async def test_a_server_without_faults_passes_everything() -> None:
    with StandIn() as server:
        async with Wire(server.url) as wire:
            report = await run_checks(wire, MODEL, CHECKS)
    assert [each for each in report.outcomes if each.result is not Result.PASSES] == []
    assert not report.has_failed


@pytest.mark.parametrize(("fault", "name"), FAULTS)
async def test_a_fault_is_found(fault: str, name: str) -> None:
    check = next(each for each in CHECKS if each.name == name)
    with StandIn(fault) as server:
        async with Wire(f"{server.url}/v1/") as wire:
            (outcome,) = (await run_checks(wire, MODEL, [check])).outcomes
    assert outcome.result is Result.FAILS
    assert outcome.reason.startswith("expected ")
    assert "; got " in outcome.reason or "; the connection failed" in outcome.reason


def test_every_check_has_a_fault_that_it_finds() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert set(names) == {name for _, name in FAULTS}


async def test_a_model_that_is_not_there() -> None:
    with StandIn() as server:
        async with Wire(server.url) as wire:
            report = await run_checks(wire, "local/other", CHECKS)
    assert (report.outcomes, report.has_failed) == ((), True)
    assert "HTTP 404: no such model" in report.error


# --- real models ---


def test_the_demo_model_in_a_server_of_its_own() -> None:
    process = doctor("--conformance", "local/demo", "--json")
    assert process.returncode == 0, process.stdout
    found = results(process)["local/demo"]
    assert [name for name, (result, _) in found.items() if result == "fails"] == []
    assert [name for name, (result, reason) in found.items() if result == "unsupported" and reason] == ["images"]
    assert found["stop"] == ("passes", None)
    assert process.stderr.count("\n") == 1


def test_both_backends_side_by_side() -> None:
    weather = Reply(calls=[Call("get_weather", {"city": "Paris"})])
    capable = FakeModel("spell", ("completion", "tools", "thinking", "vision"), reply=weather)
    with FakeOllama(capable, FakeModel("plain")) as daemon:
        variables = {"LLMSPELL_OLLAMA__ENABLED": "true", "LLMSPELL_OLLAMA__URL": daemon.url}
        patience = {f"LLMSPELL_OLLAMA__{name}_TIMEOUT_SECONDS": "30" for name in ("DETECTION", "CONNECT")}
        arguments = [f"--conformance={each}" for each in ("spell@ollama", "plain", str(demo_model_path()))]
        process = doctor(*arguments, variables=variables | patience)
    assert process.returncode == 0, process.stdout
    heading, *rows = process.stdout.splitlines()
    assert heading.split() == ["spell@ollama", "plain", "local/demo"]
    by_name = {row[:30].strip(): row[30:].split() for row in rows[: len(CHECKS)]}
    assert by_name["stream: [DONE]"] == ["passes", "passes", "passes"]
    assert by_name["logit_bias"] == ["unsupported", "unsupported", "passes"]
    assert by_name["tools: auto"] == ["passes", "unsupported", "passes"]
    assert by_name["grammar"] == ["unsupported", "unsupported", "passes"]
    assert "plain, reasoning, reasoning: usage: Ollama refuses 'reasoning_effort'" in process.stdout


# --- the command ---


def test_a_server_that_is_named() -> None:
    with StandIn() as server:
        process = doctor(f"--conformance={MODEL}", "--server", server.url.removeprefix("http://"))
        assert process.returncode == 0, process.stdout
        assert f"{MODEL}: {len(CHECKS)} of {len(CHECKS)} pass, 0 fail, 0 unsupported" in process.stdout
        variables = {"LLMSPELL_SERVER": f"{server.url}/v1"}
        document = json.loads(doctor(f"--conformance={MODEL}", "--json", variables=variables).stdout)
    assert document["server"] == server.url


def test_the_server_that_runs_here() -> None:
    with StandIn() as server:
        variables = {"LLMSPELL_SERVER__PORT": server.url.rpartition(":")[2]}
        process = doctor(f"--conformance={MODEL}", "--json", variables=variables)
    assert process.returncode == 0, process.stdout
    assert json.loads(process.stdout)["server"] == server.url


def test_a_fault_is_exit_code_1_and_says_what_was_expected() -> None:
    with StandIn("no [DONE]") as server:
        process = doctor(f"--conformance={MODEL}", "--server", server.url)
    assert process.returncode == 1
    failures = process.stdout.partition("What failed:\n")[2]
    assert failures.startswith("  stream: [DONE]")
    assert ": expected [DONE] at the end; got the end after 12 events\n" in failures


def test_a_server_that_is_not_there() -> None:
    process = doctor("--conformance=local/demo", "--server=http://127.0.0.1:1")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("llmspell: error: No server answers at http://127.0.0.1:1 (--server).")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--conformance=nothing.gguf",), "there is no file nothing.gguf."),
        (
            ("--conformance=a.gguf", "--server=http://127.0.0.1:1"),
            "--server names a server, which serves models",
        ),
        (("--conformance=local/demo", "--config=nothing.toml"), "--config: there is no file nothing.toml."),
    ],
)
def test_what_cannot_be_checked_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    process = doctor(*arguments)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith(f"llmspell: error: {message}")


def test_ctrl_c_ends_it() -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "server", "doctor", "--conformance", "local/demo"]
    environ = os.environ | {"LLMSPELL_OLLAMA__ENABLED": "false"}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("llmspell doctor: ")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert errors.endswith("interrupted; nothing is shown of what was checked.\n")


# --- what is shown ---


def test_the_matrix() -> None:
    reports = [
        ModelReport("a", (Outcome("n", Result.PASSES, "alone"), Outcome("stop", Result.FAILS, "expected x; got y"))),
        ModelReport("b", (Outcome("n", Result.UNSUPPORTED, "no n"), Outcome("stop", Result.PASSES))),
        ModelReport("c", error="is not there"),
    ]
    assert plain_matrix(reports) == [
        "      a            b            c",
        "n     passes       unsupported  no answer",
        "stop  fails        passes       no answer",
    ]
    assert list(reasons(reports)) == [
        "\nc: is not there",
        "\nWhat failed:",
        "  a, stop: expected x; got y",
        "\nUnsupported, and said so:",
        "  b, n: no n",
        "\nRemarks:",
        "  a, n: alone",
    ]
    assert summary(reports[1]) == "b: 1 of 2 pass, 0 fail, 1 unsupported"
    assert [report.has_failed for report in reports] == [True, False, True]
