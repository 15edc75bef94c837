"""The texts that models are measured with: of a wanted length, each of them another one, and by seed the same again."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Common words of four letters: one token each in vocabularies that were made from English text, and four or five in
# those that know no words, so that the length of a text hardly depends on which words it has.
_WORD_LIST = """
able area away baby back ball band bank base bear beat bell best bill bird blue boat body bone book boss both bowl
call calm card care case cell chat city club coal coat code cold come cook cool cost crew crop dark data date dawn
days dead deal dear debt deep desk dish door down draw drop duty each earn east easy edge exam face fact fair fall
farm fast feel file film find fire firm fish five flat flow food foot form four free full fund gain game gate gift
girl give goal gold good half hall hand hard head hear heat help hill hold home hope hour idea iron jobs join just
keep kind king lake land last late lead left life line list live long look lose loss love luck mail main make many
mark mass meal mean meet mile milk mind mine moon more most move name near need news next nice nine note open page
"""
_WORDS = tuple(_WORD_LIST.split())
# Something to say much about, for models that cannot be kept from ending their answers.
_TASK = "Write a long story in which all these words occur."


@dataclass(frozen=True, slots=True)
class TokenScale:
    """How many words make a prompt of so many tokens: ``overhead`` is what the chat template and the task add."""

    overhead: float
    per_word: float

    @classmethod
    def through(cls, short: tuple[int, int], long: tuple[int, int]) -> TokenScale:
        """Return the line through two pairs of words and tokens; one token a word where the tokens make no sense."""
        if long[1] <= short[1]:
            return cls(0.0, 1.0)
        per_word = (long[1] - short[1]) / (long[0] - short[0])
        return cls(short[1] - short[0] * per_word, per_word)

    def num_words(self, num_tokens: int) -> int:
        """Return the number of words, at least 1, that brings a prompt nearest to ``num_tokens``."""
        return max(round((num_tokens - self.overhead) / self.per_word), 1)


def text(seed: int, purpose: str, num_words: int) -> str:
    """Return words and what to do with them; another ``seed`` or ``purpose`` gives others from the first word on."""
    numbers = random.Random(f"{seed}/{purpose}")
    return f"{' '.join(numbers.choices(_WORDS, k=num_words))}\n\n{_TASK}"
