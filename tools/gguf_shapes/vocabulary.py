"""Vocabularies that llama.cpp tokenizes text with: byte-level BPE of any size, and a small WordPiece one."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product

from gguf import GGUFWriter, TokenType

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, TURN_START, TURN_END)

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
SPACE = "Ġ"


@dataclass(frozen=True)
class Vocabulary:
    """Byte-level BPE: the 256 bytes, merged pieces, then the ChatML specials at the end."""

    tokens: list[str]
    merges: list[str]

    @property
    def end_of_text(self) -> int:
        """The padding token."""
        return len(self.tokens) - 3

    @property
    def turn_end(self) -> int:
        """The end-of-sequence token."""
        return len(self.tokens) - 1


def byte_alphabet() -> list[str]:
    """One printable character for each byte, in the order GPT-2 gives them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in set(printable))
    return [*map(chr, printable), *(chr(256 + index) for index, _ in enumerate(others))]


def _pairs() -> list[str]:
    """Two letters, common ones first."""
    order = {letter: rank for rank, letter in enumerate(LETTERS)}
    return sorted(map("".join, product(LETTERS, repeat=2)), key=lambda pair: order[pair[0]] + order[pair[1]])


def _merges() -> Iterator[tuple[str, str]]:
    """All merges, those of frequent letters first: pairs, a space with a letter or a pair, then pairs of pairs."""
    pairs = _pairs()
    yield from ((pair[0], pair[1]) for pair in pairs)
    yield from ((SPACE, piece) for piece in [*LETTERS, *pairs])
    for total in range(2 * len(pairs) - 1):
        for first in range(max(0, total - len(pairs) + 1), min(total + 1, len(pairs))):
            yield pairs[first], pairs[total - first]


def byte_pair_vocabulary(size: int) -> Vocabulary:
    """Make a vocabulary of ``size`` tokens, from 259 (bytes and specials only) to 458,000."""
    alphabet = byte_alphabet()
    merges = list(islice(_merges(), size - len(alphabet) - len(SPECIALS)))
    tokens = [*alphabet, *(first + second for first, second in merges), *SPECIALS]
    if len(tokens) != size:
        raise ValueError(f"a vocabulary of {size} tokens cannot be made; the nearest size is {len(tokens)}")
    return Vocabulary(tokens, [f"{first} {second}" for first, second in merges])


def add_byte_pairs(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """Write the vocabulary and a ChatML template into the header."""
    normal = len(vocabulary.tokens) - len(SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([TokenType.NORMAL] * normal + [TokenType.CONTROL] * len(SPECIALS))
    writer.add_token_merges(vocabulary.merges or [f"{SPACE} {SPACE}"])
    writer.add_eos_token_id(vocabulary.turn_end)
    writer.add_pad_token_id(vocabulary.end_of_text)
    writer.add_add_bos_token(value=False)
    writer.add_chat_template(CHATML)


def add_word_pieces(writer: GGUFWriter) -> int:
    """Write BERT's kind of vocabulary, letters and pairs of letters; return its size."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*"0123456789", *".,!?'-", *LETTERS, *_pairs()]
    tokens = [*specials, *("▁" + piece for piece in pieces), *pieces]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    types = [TokenType.CONTROL] * len(specials) + [TokenType.NORMAL] * (len(tokens) - len(specials))
    writer.add_token_types(types)
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    writer.add_mask_token_id(4)
    return len(tokens)
