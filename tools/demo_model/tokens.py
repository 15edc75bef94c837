"""The tokenizer: byte-level BPE whose words read the same after a space and at the start of a line."""

import json
import re
from collections import Counter
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL = (END_OF_TEXT, TURN_START, TURN_END)
MARKS = ("<tool_call>", "</tool_call>")
SPACE = "Ġ"
WHOLE_WORD = re.compile(SPACE + "[A-Za-z]{2,}")

# llama.cpp's "qwen2" pre-tokenizer: each digit is a token of its own.
QWEN2 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# For learning the merges, words stand without the space before them.
WORDS_ALONE = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their numbers, and merges in the order of their rank."""

    tokens: list[str]
    merges: list[tuple[str, str]]


def _pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _learned(texts: list[str], size: int) -> Vocabulary:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = _pre_tokenizer(WORDS_ALONE)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, min_frequency=20)
    )
    ids = trained.get_vocab()
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    return Vocabulary(sorted(ids, key=ids.__getitem__), merges)


def _spaced_words(texts: list[str], learned: Vocabulary, count: int) -> list[str]:
    """The most frequent whole words that follow a space: each gets a last merge with that space.

    Other words keep the space as a token of its own, so that a name is spelled alike wherever it
    stands: copying it is then a plain repetition of tokens.
    """
    known = set(learned.tokens)
    found: Counter[str] = Counter()
    splitter = _pre_tokenizer(QWEN2)
    for text in texts:
        found.update(piece for piece, _ in splitter.pre_tokenize_str(text) if WHOLE_WORD.fullmatch(piece))
    return [piece for piece, _ in found.most_common(4 * count) if piece[1:] in known][:count]


def learned_vocabulary(rendered: list[str], size: int, spaced: int) -> Vocabulary:
    """A vocabulary for these texts."""
    marks = re.compile("|".join(map(re.escape, (*CONTROL, *MARKS))))
    texts = [piece for text in rendered for piece in marks.split(text) if piece]
    learned = _learned(texts, size - spaced - len(CONTROL) - len(MARKS))
    spaced_words = _spaced_words(texts, learned, spaced)
    merges = [*learned.merges, *((SPACE, piece[1:]) for piece in spaced_words)]
    return Vocabulary([*learned.tokens, *spaced_words, *CONTROL, *MARKS], merges)


def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer that llama.cpp builds from the same vocabulary."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    made = Tokenizer(models.BPE(ids, vocabulary.merges))
    made.pre_tokenizer = _pre_tokenizer(QWEN2)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    made.add_tokens([AddedToken(token, normalized=False) for token in MARKS])
    return made
