"""Writes the random-weight model that the benchmarks run: 272M parameters with a vocabulary of 151 936 tokens."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from gguf_shapes import EIGHT_BILLION, QUARTER_BILLION, write_llama


def main() -> None:
    """Write ``FILE``; with ``--8b``, an 8B shape at Q4_K instead."""
    arguments = sys.argv[1:]
    shape = EIGHT_BILLION if "--8b" in arguments else QUARTER_BILLION
    files = [argument for argument in arguments if argument != "--8b"]
    if len(files) != 1:
        sys.exit("usage: write_model.py [--8b] FILE.gguf")
    write_llama(Path(files[0]), shape)


if __name__ == "__main__":
    main()
