"""Writes the random-weight models that the benchmarks run.

Without a flag, 272M parameters with a vocabulary of 151 936 tokens; ``--7b`` and ``--8b`` are the shapes of Mistral 7B
and Llama 3.1 8B at Q4_K_M. ``--reciting`` is the first shape with an output matrix of its own, by which all answers
are one list of words: for what a model gains that repeats its prompt.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from gguf_shapes import EIGHT_BILLION, QUARTER_BILLION, SEVEN_BILLION, write_llama, write_reciting

RECITING = "--reciting"
SHAPES = {"--7b": SEVEN_BILLION, "--8b": EIGHT_BILLION}


def main() -> None:
    """Write ``FILE``."""
    flags = [argument for argument in sys.argv[1:] if argument.startswith("--")]
    files = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if len(files) != 1 or len(flags) > 1 or not {*flags} <= {*SHAPES, RECITING}:
        sys.exit(f"usage: write_model.py [{'|'.join([*SHAPES, RECITING])}] FILE.gguf")
    if flags == [RECITING]:
        write_reciting(Path(files[0]), QUARTER_BILLION)
    else:
        write_llama(Path(files[0]), SHAPES[flags[0]] if flags else QUARTER_BILLION)


if __name__ == "__main__":
    main()
