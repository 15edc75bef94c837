from __future__ import annotations

import json
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from compare.servers import (
    CannotStart,
    Resources,
    ServerSpec,
    example_server,
    fill,
    llama_server,
    llmspell,
    running,
)

RESOURCES = Resources(Path("/models/a.gguf"), threads=2, num_slots=16, num_cells=4096, context_len=1024)


def filled(template: str) -> str:
    return fill(template, RESOURCES, 8123, Path("/tmp/run"))


def test_other_braces_stay() -> None:
    assert filled('{"port": {port}, "x": {}}') == '{"port": 8123, "x": {}}'


def test_our_configuration_has_the_resources_and_the_settings() -> None:
    spec = llmspell("ours", "python", Path("/checkout"), {"inter_token_target_ms": "50"})
    config = tomllib.loads(filled(spec.files["config.toml"]))
    assert config["llamacpp"] == {"max_sequences": 16, "threads": 2, "inter_token_target_ms": 50}
    assert config["models"]["local/compared"]["kv_cells"] == 4096
    assert spec.directory == Path("/checkout")


def test_llama_server_gets_the_same() -> None:
    command = shlex.split(filled(llama_server("theirs", "/bin/llama-server", "--no-warmup").command))
    assert command[command.index("-np") + 1] == "16"
    assert command[command.index("-c") + 1] == "4096"
    assert command[-1] == "--no-warmup"


def test_the_example_server_reads_json() -> None:
    spec = example_server("example", "python", Path("/examples/server.py"))
    config = json.loads(filled(spec.files["config.json"]))
    assert config["server"]["port"] == 8123
    assert config["model"]["n_seq_max"] == 16


def test_a_server_that_ends_at_once_is_told_with_what_it_wrote() -> None:
    command = f"{shlex.quote(sys.executable)} -c \"raise SystemExit('no such model')\""
    with pytest.raises(CannotStart, match="no such model"), running(ServerSpec("broken", command), RESOURCES):
        raise AssertionError
