"""A vocabulary of bytes and some longer tokens, and answers made up at random with it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.grammar.compiler import GrammarCompiler
from server.grammar.matcher import Allowed, GrammarMatcher

_WORDS = [b'{"', b'": ', b'", "', b'"}', b"name", b" the", b"true", b"false", b"null", b"10", b"a\xc3", "é".encode()]
TOKENS: Sequence[bytes] = [*(bytes([byte]) for byte in range(256)), *_WORDS, b"", b"", b"", b"", b"a"]
END, OTHER_END, CALL, UNUSED = range(256 + len(_WORDS), 260 + len(_WORDS))
SECOND_A = len(TOKENS) - 1
CONTROL = (END, OTHER_END, CALL, UNUSED)


def compiler(*, forces: bool = True) -> GrammarCompiler:
    return GrammarCompiler(TOKENS, CONTROL, [END, OTHER_END], tokenize if forces else None)


def tokenize(text: bytes) -> list[int]:
    """Return the longest tokens."""
    tokens: list[int] = []
    while text:
        token = max((each for each in range(SECOND_A) if TOKENS[each] and text.startswith(TOKENS[each])), key=_len_of)
        tokens.append(token)
        text = text[len(TOKENS[token]) :]
    return tokens


def _len_of(token: int) -> int:
    return len(TOKENS[token])


def text_of(tokens: Sequence[int]) -> bytes:
    return b"".join(TOKENS[token] for token in tokens)


def follow(matcher: GrammarMatcher, text: bytes) -> None:
    """Accept a text byte by byte."""
    for byte in text:
        assert matcher.allows(byte), (text, chr(byte))
        matcher.accept(byte)


def takes(matcher: GrammarMatcher, text: bytes) -> bool:
    """Whether an answer may be this text as a whole."""
    for byte in text:
        if not matcher.allows(byte):
            return False
        matcher.accept(byte)
    return matcher.allows(END)


@dataclass
class RandomModel:
    """Chooses tokens at random, the likely ones of JSON more often, as the engine would: first without the mask."""

    seed: int
    stops: float = 0.3
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._likely: list[int] = [*b'"}],:0123456789 abcdefghij-.', *range(256, 256 + len(_WORDS))]

    def answer(self, matcher: GrammarMatcher, *, most_tokens: int = 400) -> bytes | None:
        """Return what the model says, ``None`` if it does not come to an end."""
        said: list[int] = []
        while len(said) < most_tokens:
            if forced := matcher.forced():
                for token in forced:
                    matcher.accept(token)
                said += forced
                continue
            token = self._next(matcher, is_late=len(said) > most_tokens // 2)
            matcher.accept(token)
            if token in {END, OTHER_END}:
                return text_of(said)
            said.append(token)
        return None

    def _next(self, matcher: GrammarMatcher, *, is_late: bool) -> int:
        if is_late or self._random.random() < self.stops:
            endings: list[int] = [END, *b'"}]']
            ending = next((token for token in endings if matcher.allows(token)), None)
            if ending is not None:
                return ending
        token = (
            self._random.choice(self._likely) if self._random.random() < 0.95 else self._random.randrange(len(TOKENS))
        )
        if matcher.allows(token):
            return token
        return self.choose(matcher.allowed())

    def choose(self, allowed: Allowed) -> int:
        """Choose one of some tokens."""
        all_allowed = [int(each) for each in allowed.nonzero()[0]]
        likely = [each for each in all_allowed if each in self._likely]
        chosen: int = self._random.choice(likely if likely and self._random.random() < 0.9 else all_allowed)
        return chosen
