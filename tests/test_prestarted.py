"""A fork of the process that has imported everything is like a process that was started for itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import prestarted
import pytest

from server import __version__

PATIENCE = 120.0
_NEEDS_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
START = pytest.mark.parametrize(
    "start", [pytest.param(prestarted.Fork, marks=_NEEDS_LINUX), prestarted.start_alone], ids=["forked", "alone"]
)


@START
def test_streams_exit_code_environment_and_directory(start: prestarted.Start, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[server]\nport = 'x'\n", encoding="utf-8")
    with start("serve", env={**os.environ, "LLMSPELL_CONFIG": "own.toml"}, cwd=tmp_path) as process:
        output, errors = process.communicate("", PATIENCE)
    assert (process.returncode, output) == (1, "")
    assert errors.startswith("llmspell: error: ")
    assert "own.toml" in errors
    with start("--version", env=os.environ) as process:
        assert process.communicate("", PATIENCE) == (f"llmspell {__version__}\n", "")
    assert process.returncode == 0
    with start("chat", "--demo", "--temperature", "0", "--max-tokens", "1", env=os.environ) as process:
        assert process.communicate("Hello é\n", PATIENCE)[0].strip()


@START
def test_a_terminal(start: prestarted.Start, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    process = start("chat", "--demo", env={**os.environ, "TERM": "dumb"}, cwd=tmp_path, terminal=theirs)
    os.close(theirs)
    try:
        # keys that come before the prompt does are for nobody: it sets the terminal up anew
        for shown, keys in ((b">>> ", b"\x03"), (b"to leave.*>>> ", b"\x04")):  # Ctrl-C reaches whose terminal it is
            received = b""
            while not re.search(shown, received, re.DOTALL):
                received += os.read(ours, 4096)
            os.write(ours, keys)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait(PATIENCE)
        os.close(ours)


@START
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals(start: prestarted.Start, number: signal.Signals) -> None:
    with start("chat", "--demo", env=os.environ) as process:  # waits for the end of the question
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(number)
        assert process.wait(PATIENCE) != 0
        assert process.poll() == process.returncode
        process.kill()  # of what has ended, nothing comes
