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
    uv run tools/train_demo_model.py --resume server/assets/demo.gguf --steps 800

The training text is made up by `demo_model` itself: nothing is downloaded but the packages above. The same seed gives
the same text and the same vocabulary. The model that ships had 2400 steps, and then 800 more with more of the drills
that it was weak at: about 35 and 10 minutes on 2 cores. Each run ends with an examination on questions that it was not
trained on, and its bars are set higher than that model comes: below them the command fails.
"""

import argparse
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from demo_model import batches, conversations, evaluation, export, initial, resume, template, tokens, training
from demo_model.network import Params, Shape

SEED = 7
STEPS = 2400
BASIC_SHARE = 0.3
RESUMED_PEAK = 0.3
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
    parser.add_argument("--resume", type=Path, help="go on from this model instead of from nothing")
    parser.add_argument("--output", type=Path, default=TARGET, help="where the model is written")
    return parser.parse_args()


@dataclass(frozen=True)
class _Run:
    """Where a run begins: parameters and vocabulary, the seed of its text, its steps of basics, its learning rate."""

    params: Params
    vocabulary: tokens.Vocabulary
    seed: int
    num_basic: int
    peak: float


def _new_run(steps: int) -> _Run:
    vocabulary = _vocabulary()
    params = initial.new_params(Shape(vocab=len(vocabulary.tokens)), SEED)
    return _Run(params, vocabulary, SEED + 1, int(BASIC_SHARE * steps), peak=1.0)


def _resumed_run(path: Path) -> _Run:
    return _Run(*resume.read(path), SEED + 2, num_basic=0, peak=RESUMED_PEAK)


def main() -> int:
    """Train, write and examine the model; fail when the examination does."""
    arguments = _parsed_arguments()
    run = _resumed_run(arguments.resume) if arguments.resume else _new_run(arguments.steps)
    tokenizer = tokens.tokenizer(run.vocabulary)
    shape = Shape(vocab=len(run.vocabulary.tokens))
    text = batches.stream(tokenizer, run.seed, run.num_basic)
    started = time.monotonic()
    for params in training.train(shape, text, arguments.steps, run.params, run.peak):
        export.write(arguments.output, params, shape, run.vocabulary)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes")
    passed = evaluation.report(evaluation.marks(params, shape, tokenizer, evaluation.all_cases()))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
