"""Run the stand-in for Ollama by ``python tests/fakes``."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("fakes.ollama", run_name="__main__", alter_sys=True)
