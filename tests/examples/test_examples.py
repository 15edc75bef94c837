"""Every file of ``examples/`` as its documentation says to run it, on a real server with both backends."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from conftest import EXAMPLES, ROOT, Run
from fakes.ollama import FakeOllama

PARIS = "What is the capital of France?"
NO_SERVER = "http://127.0.0.1:1"


def test_stream(run: Run) -> None:
    done = run("stream.py", PARIS)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[^\n]*Paris[^\n]*\n\([0-9]+ tokens\)\n", done.stdout)


def test_chat_finds_the_backend(run: Run) -> None:
    done = run("chat.py", "local/demo", typed=f"{PARIS}\nTell me a story.\n")
    assert done.returncode == 0, done.stderr
    assert "capital of France is Paris" in done.stdout
    assert "Once upon a time" in done.stdout
    assert done.stdout.count("(llamacpp)\n") == 2


def test_chat_finds_what_only_the_daemon_has(run: Run) -> None:
    assert "(ollama)\n" in run("chat.py", "local/agent", typed="Hello\n").stdout


def test_chat_with_a_model_that_is_not_there(run: Run) -> None:
    done = run("chat.py", "local/nothing", typed="Hello\n")
    assert done.returncode == 1
    assert done.stderr.startswith("error: The model 'local/nothing' does not exist here.")


def test_chat_ollama(run: Run, daemon: FakeOllama) -> None:
    done = run("chat_ollama.py", "demo", "Where", "am", "I?")
    assert (done.stdout, done.returncode) == ("Paris, says the daemon.\n", 0)
    body = [each.body for each in daemon.requests if each.path == "/api/chat"][-1]
    assert body["messages"][-1]["content"] == "Where am I?"
    assert body["keep_alive"] == "10m"


def test_chat_ollama_without_the_model(run: Run) -> None:
    done = run("chat_ollama.py")
    assert done.returncode == 1
    assert done.stderr.startswith("error: The model 'local/llama3.1:8b@ollama' does not exist here.")


def test_chat_llamacpp(run: Run) -> None:
    done = run("chat_llamacpp.py")
    assert done.returncode == 0, done.stderr
    text, _, figures = done.stdout.partition("\n\n")
    assert text.startswith("Once upon a time")
    for name in ("first token", "load", "prompt", "speed"):
        assert re.search(rf"^{name} +[0-9.]+ ", figures, re.MULTILINE), figures
    assert not re.search(r"^speed +0\.0 ", figures, re.MULTILINE)


def test_compare_backends(run: Run) -> None:
    done = run("compare_backends.py")
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} >= {"local/demo@llamacpp"}
    assert any("@ollama" in line and "told" not in line for line in lines)
    done = run("compare_backends.py", "demo@ollama", "demo@llamacpp")
    _, theirs, ours = done.stdout.splitlines()
    assert "Paris, says the daemon." in theirs
    assert "The capital of France is Paris." in ours


def test_agent(run: Run) -> None:
    done = run("agent.py", "local/agent", "How many seconds does a week have?")
    assert done.returncode == 0, done.stderr
    assert "604800" in done.stdout
    assert f"{datetime.now(UTC):%Y-%m-}" in done.stdout
    assert "only numbers" in done.stdout  # what it wanted computed as a program was not
    assert 'calculate({"expression":"7 * 24 * 60 * 60"}) = 604800' in done.stderr.replace('": "', '":"')


def test_agent_with_the_bundled_model(run: Run) -> None:
    done = run("agent.py", "local/demo@llamacpp")
    assert done.returncode == 0, done.stderr
    assert 'get_weather({"city": "Paris"}) = {"temperature": 21, "sky": "sunny"}' in done.stderr
    assert "Paris" in done.stdout
    assert "sunny" in done.stdout


def test_agent_where_tools_are_refused(run: Run) -> None:
    done = run("agent.py", "local/demo@ollama")
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("error: local/demo@ollama cannot be given tools here: ")


def test_manage(run: Run) -> None:
    done = run("manage.py", "local/demo@llamacpp")
    assert done.returncode == 0, done.stderr
    assert re.match(r"llmspell \S+ at http://127", done.stdout)
    assert "on disk: demo (llamacpp, " in done.stdout
    assert re.search(r"^loaded: local/demo\S*, [0-9.]+ MB$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("unloaded: cold\n")


def test_manage_pulls_what_is_missing(run: Run) -> None:
    done = run("manage.py", "hf.co/owner/spell-GGUF:F16")
    assert done.returncode == 0, done.stderr
    assert "100.0%" in done.stderr
    assert "hf.co/owner/spell-GGUF:F16: llama, 2048 tokens of context" in done.stdout
    assert done.stdout.endswith("unloaded: cold\n")
    done = run("chat.py", "hf.co/owner/spell-GGUF:F16", typed=f"{PARIS}\n")
    assert "Paris" in done.stdout


def test_manage_pulls_nothing_that_nobody_has(run: Run) -> None:
    done = run("manage.py", "hf.co/owner/nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


def test_manage_without_a_server(run: Run) -> None:
    done = run("manage.py", url=NO_SERVER)
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith(f"error: No server answers at {NO_SERVER} ")


def test_curl(run: Run) -> None:
    done = run("curl.sh", "local/demo@llamacpp")
    assert done.returncode == 0, done.stderr + done.stdout
    sections = dict(re.findall(r"^== ([^\n]*)\n(.*?)(?=^== |\Z)", done.stdout, re.MULTILINE | re.DOTALL))
    assert "local/demo" in {each["id"] for each in json.loads(sections["models"])["data"]}
    assert "Paris" in json.loads(sections["one answer"])["choices"][0]["message"]["content"]
    stream = sections["a stream, and where its time went"]
    assert '"first_token_ms"' in stream
    assert stream.rstrip().endswith("data: [DONE]")
    assert json.loads(sections["backends, devices, models in memory, pulls"])["object"] == "status"
    assert '"name":"demo"' in sections["models on disk"].replace('": "', '":"')
    assert json.loads(sections["all about one of them"])["architecture"]
    assert '"state":"warm"' in sections["out of memory, and back in"].replace('": "', '":"')


def test_curl_that_fails_ends_there(run: Run) -> None:
    done = run("curl.sh", url=NO_SERVER)
    assert done.returncode != 0
    assert "== one answer" not in done.stdout


def test_the_configuration(server: str) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": PARIS}]}
    answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-llmspell-backend"] == "llamacpp"


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_every_example_is_listed_and_tested(path: Path) -> None:
    if path.name not in {"README.md", "__pycache__"}:
        assert f"[`{path.name}`]({path.name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
        tests = [Path(__file__), Path(__file__).with_name("conftest.py")]
        assert any(f'"{path.name}"' in each.read_text(encoding="utf-8") for each in tests)


def test_links_of_the_list() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (EXAMPLES / target).exists(), target
    assert str(ROOT) not in text
