"""Completion in shells, by the scripts that the program writes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program import PATIENCE, Program
from store.made_stores import put

ASK = """
eval "$(llmspell --show-completion)"
COMP_LINE="$1" COMP_POINT=${#1} COMPREPLY=()
_llmspell_completion
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def installed(program: Program, tmp_path: Path) -> Program:
    """A machine on whose PATH the program is, whose user's shell is bash."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    script = binaries / "llmspell"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m server "$@"\n')
    script.chmod(0o755)
    program.variables |= {"PATH": f"{binaries}:{program.environment['PATH']}", "SHELL": "/bin/bash"}
    put(program.models / "mine-Q4_K_M.gguf")
    put(program.models / "mine-Q8_0.gguf")
    return program


def completed(program: Program, line: str) -> list[str]:
    result = subprocess.run(
        ["bash", "-c", ASK, "bash", line],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env=program.environment,
        cwd=program.home,
    )
    assert result.stderr == ""
    return result.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("llmspell mod", ["model"]),
        ("llmspell model un", ["unload"]),
        ("llmspell model list --back", ["--backend"]),
        ("llmspell model list --backend ", ["ollama", "llamacpp"]),
        ("llmspell model show mi", ["mine:Q4_K_M", "mine:Q8_0"]),
        ("llmspell model show mine:Q4", ["Q4_K_M"]),  # bash has broken the word at the colon
        ("llmspell model rm local/mine:", ["Q4_K_M", "Q8_0"]),
        ("llmspell model pull llamacpp/phi3", ["llamacpp/phi3:3.8b"]),
        ("llmspell model show nothing", []),
    ],
)
def test_bash(line: str, words: list[str], installed: Program) -> None:
    assert completed(installed, line) == words


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_whatever_fails_is_not_said(installed: Program) -> None:
    installed.variables["LLMSPELL_NONSENSE"] = "1"
    assert completed(installed, "llmspell model show mi") == []


@pytest.mark.parametrize(
    ("shell", "file"),
    [
        ("bash", ".local/share/bash-completion/completions/llmspell"),
        ("zsh", ".zfunc/_llmspell"),
        ("fish", ".config/fish/completions/llmspell.fish"),
    ],
)
def test_a_script_is_put_where_the_shell_looks_for_it(shell: str, file: str, program: Program) -> None:
    program.variables["SHELL"] = f"/usr/bin/{shell}"
    script = program.run("--show-completion")
    assert (script.code, script.errors) == (0, "")
    installed = program.run("--install-completion")
    assert (installed.code, installed.output) == (0, f"{program.home / file}\n")
    assert (program.home / file).read_text() == script.output
    assert sorted(path.name for path in program.home.rglob("*") if path.is_file()) == [Path(file).name]


def test_another_shell_is_refused(program: Program) -> None:
    for shell in ("/bin/csh", ""):
        program.variables["SHELL"] = shell
        result = program.run("--show-completion")
        assert (result.code, result.output) == (1, "")
        assert "bash, zsh, fish" in result.errors


def test_a_script_that_cannot_be_written_is_told(program: Program) -> None:
    program.variables["SHELL"] = "/bin/zsh"
    (program.home / ".zfunc").write_text("not a folder")
    result = program.run("--install-completion")
    assert (result.code, result.output) == (1, "")
    assert ".zfunc" in result.errors
    assert "Traceback" not in result.errors
