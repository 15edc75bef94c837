"""What is wrong at the start is said at once, in one line, and is no crash."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import prestarted
import pytest
from conftest import Start
from gguf import GGUFWriter
from gguf_shapes import write_embedding, write_llama
from serving import PATIENCE, Server, chat_body, environment, serve_command

Make = Callable[[Path], object]


def truncated(share: float) -> Make:
    def make(path: Path) -> None:
        write_llama(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return make


def damaged(path: Path) -> None:
    """A header whose counts are absurd."""
    write_llama(path)
    data = bytearray(path.read_bytes())
    data[8:24] = b"\xff" * 7 + b"\x00" + b"\xff" * 7 + b"\x00"
    path.write_bytes(data)


def scrambled(path: Path) -> None:
    """A key inside of the header that is not what it was."""
    write_llama(path)
    path.write_bytes(path.read_bytes().replace(b"llama.embedding_length", b"llama.embedding_lengtX"))


def of_unknown_architecture(path: Path) -> None:
    writer = GGUFWriter(path, "nonesuch")
    writer.add_context_length(64)
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def projector(path: Path) -> None:
    """The image part of a multimodal model, which people take for the model."""
    writer = GGUFWriter(path, "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def refusal(*arguments: str, home: Path) -> str:
    """The one line that a server says which cannot start, besides the log line that it starts."""
    result = prestarted.run("serve", "--port", "0", *arguments, timeout=PATIENCE, env=environment(home), cwd=home)
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    said = [line for line in result.stderr.splitlines(keepends=True) if " INFO " not in line]
    assert len(said) == 1, result.stderr
    assert said[0].startswith("llmspell: error: ")
    return said[0]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (truncated(0.9), "truncated"),
        (truncated(0.01), "truncated"),
        (damaged, "model.gguf"),
        (scrambled, "embedding_length"),
        (of_unknown_architecture, "nonesuch"),
        (projector, "model.gguf"),
        (lambda path: path.write_text("Once upon a time" * 1000), "not a GGUF file"),
        (lambda path: path.write_bytes(b""), "model.gguf"),
        (lambda path: path.write_bytes(b"GGUF"), "truncated"),
        (Path.mkdir, "model.gguf"),
        (lambda path: path, "there is no file"),
        (lambda path: path.symlink_to("nowhere"), "there is no file"),
        (write_embedding, "does not generate text"),
    ],
    ids=[
        "end missing", "header only", "absurd counts", "key missing", "unknown architecture", "projector", "text",
        "empty", "magic only", "directory", "missing", "dangling link", "embedding model",
    ],
)  # fmt: skip
def test_a_file_that_is_no_model(make: Make, reason: str, tmp_path: Path) -> None:
    make(tmp_path / "model.gguf")
    said = refusal("--model", "model.gguf", home=tmp_path)
    assert reason in said


def test_one_bad_model_of_two(tmp_path: Path, tiny_model: Path) -> None:
    write_embedding(tmp_path / "bad.gguf")
    said = refusal("--model", str(tiny_model), "--model", "bad.gguf", home=tmp_path)
    assert "bad.gguf" in said


def test_a_model_that_vanishes_or_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[models."local/gone"]\npath = "gone.gguf"\npreload = true\n', encoding="utf-8"
    )
    said = refusal("--config", "config.toml", home=tmp_path)
    assert "gone.gguf" in said


def test_a_budget_that_holds_no_model(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "config.toml").write_text('[llamacpp]\nmemory_budget = "1MiB"\n', encoding="utf-8")
    said = refusal("--config", "config.toml", "--model", str(tiny_model), home=tmp_path)
    assert "does not fit into memory" in said


def test_a_template_that_is_not_jinja(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "broken.jinja").write_text("{% if %}", encoding="utf-8")
    config = f'[models."local/tiny"]\npath = "{tiny_model}"\nchat_template = "broken.jinja"\npreload = true\n'
    (tmp_path / "config.toml").write_text(config, encoding="utf-8")
    said = refusal("--config", "config.toml", home=tmp_path)
    assert "template" in said


def test_files_with_odd_names(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    names = {
        "größe 1: ünïcode@home.gguf": "local/gr-e 1- -n-code-home",
        "Qwen3-0.6B.Q4_K_M.gguf": "local/Qwen3-0.6B.Q4_K_M",
        "-dash.GGUF": "local/dash",
        "no suffix": "local/no suffix",
        "a'b\"c.gguf": "local/a-b-c",
    }
    arguments = []
    for name in names:
        shutil.copy(tiny_model, tmp_path / name)
        arguments += [f"--model={tmp_path / name}"]
    server = start(*arguments)
    listed = {model["id"] for model in httpx.get(f"{server.base_url}/models").json()["data"]}
    assert listed == {*names.values()}
    for model in listed:
        assert server.ask(model=model, max_tokens=1).status_code == 200
        assert httpx.get(f"{server.base_url}/models/{model}").json()["id"] == model


def test_an_alias_stands_for_a_model(start: Start) -> None:
    server = start("--demo", config='[aliases]\n"gpt-4o-mini" = "local/demo"\n')
    answer = server.ask(model="gpt-4o-mini", max_tokens=1).json()
    assert answer["model"] == "gpt-4o-mini"
    assert httpx.get(f"{server.base_url}/models/gpt-4o-mini").json()["id"] == "local/demo"


def test_two_servers_at_once(demo: Server, start: Start) -> None:
    other = start("--demo")
    assert other.port != demo.port
    for server in (demo, other):
        assert server.ask(max_tokens=1).status_code == 200


def test_a_port_that_is_taken(demo: Server, tmp_path: Path) -> None:
    said = refusal("--demo", f"--port={demo.port}", home=tmp_path)
    assert re.fullmatch(r"llmspell: error: cannot listen on .* the port is in use.*\n", said)
    assert demo.ask(max_tokens=1).status_code == 200


def test_a_restart_on_the_same_port(start: Start) -> None:
    """Also right after a stop in the middle of streams, whose connections linger in the kernel."""
    first = start("--demo")
    with httpx.stream("POST", first.url + "/v1/chat/completions", json=chat_body(stream=True)) as response:
        assert first.stop() == 0
        assert "[DONE]" in response.read().decode()
    second = start("--demo", f"--port={first.port}")
    assert second.port == first.port
    assert second.ask(max_tokens=1).status_code == 200


def test_the_human_log_names_the_url_the_models_and_the_configuration(tmp_path: Path) -> None:
    with subprocess.Popen(
        serve_command("--demo"), stderr=subprocess.PIPE, env=environment(tmp_path), cwd=tmp_path, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "http://" in line:
                break
        process.terminate()
        rest = process.stderr.read()
    assert re.search(
        r"INFO .* serves local/demo at http://127\.0\.0\.1:\d+/v1 "
        r"\(configuration: LLMSPELL_OLLAMA__ENABLED, LLMSPELL_STORE__DISCOVER, command line\)",
        lines[-1],
    )
    assert len(lines) == 1
    assert "Traceback" not in rest
