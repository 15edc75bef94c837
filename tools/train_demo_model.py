# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "gguf==0.19.0",
#   "jax==0.10.2",
#   "jinja2==3.1.6",
#   "numpy==2.4.6",
#   "tokenizers==0.23.3",
# ]
# ///
"""Train the small demonstration model that the server bundles.

    uv run tools/train_demo_model.py

The training text is made up by `demo_model` itself: nothing is downloaded but the packages above. The same seed gives
the same text and the same vocabulary. MINUTES_HERE
At the end the model is examined on questions that it was not trained on, and a bad result is a failure.
"""

import argparse
import random
import sys
import time
from pathlib import Path

from demo_model import batches, conversations, evaluation, export, template, tokens, training
from demo_model.network import Shape

SEED = 7
STEPS = 2800
BASIC_SHARE = 0.3
VOCABULARY_SIZE, SPACED_WORDS = 1536, 400
TARGET = Path(__file__).parent.parent / "server" / "assets" / "demo.gguf"


def _vocabulary() -> tokens.Vocabulary:
    source = random.Random(SEED)
    made = (conversations.conversation(source) for _ in range(12000))
    return tokens.learned_vocabulary(
        [template.rendered(each.messages, each.tools) for each in made], VOCABULARY_SIZE, SPACED_WORDS
    )


def _parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=TARGET, help="where the model is written")
    return parser.parse_args()


def main() -> int:
    """Train, write and examine the model; fail when the examination does."""
    arguments = _parsed_arguments()
    learned = _vocabulary()
    tokenizer = tokens.tokenizer(learned)
    shape = Shape(vocab=len(learned.tokens))
    started = time.monotonic()
    for params in training.train(
        shape, batches.stream(tokenizer, SEED + 1, int(BASIC_SHARE * arguments.steps)), arguments.steps, SEED
    ):
        export.write(arguments.output, params, shape, learned)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes")
    passed = evaluation.report(evaluation.marks(params, shape, tokenizer, evaluation.all_cases()))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
