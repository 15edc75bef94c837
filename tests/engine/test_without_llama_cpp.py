from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
sys.modules["llama_cpp"] = None  # importing it fails now
from scripted import Harness, ScriptedRunner, reciting
print(Harness(ScriptedRunner(reciting({"hi": "yo."}))).answer("hi").text())
for name in sorted(sys.modules):
    assert not name.startswith(("server.llama", "asyncio")), name
"""


def test_the_engine_serves_without_llama_cpp_and_asyncio() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert (result.stdout, result.stderr) == ("yo.\n", "")
