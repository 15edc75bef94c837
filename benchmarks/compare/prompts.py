"""Prompts of wanted lengths, the same for all servers and from run to run, and different in each round."""

from __future__ import annotations

import random
from dataclasses import dataclass

from compare.load import Chat, Message

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
pain part past path plan play post pull push race rain rate read real rest rice rich ride ring rise risk road rock
role roof room rule safe sale salt sand save seat seed sell ship shop show side sign site size skin snow soft soil
sold song soon sort star stay step stop such sure take talk task team tell term test text than time tour town tree
trip true turn unit used user view vote wait walk wall warm wash wave week well west wide wife wild will wind wine
wish wood word work year zone
"""
WORDS = tuple(_WORD_LIST.split())


@dataclass(frozen=True)
class TokenScale:
    """How many words make a text of so many tokens: ``overhead`` is what the template and the message cost."""

    overhead: float
    per_word: float

    def num_words(self, num_tokens: int) -> int:
        """Return the number of words that brings a prompt of one message nearest to ``num_tokens``, at least 1."""
        return max(round((num_tokens - self.overhead) / self.per_word), 1)


class Prompts:
    """Texts by purpose: the same seed, round and purpose give the same text, any other gives another one."""

    def __init__(self, scale: TokenScale, seed: int, round_number: int, attempt: int = 0) -> None:
        """Make the texts of one round; a round that is repeated has others, by the number of the ``attempt``."""
        self._scale = scale
        self._prefix = f"{seed}/{round_number}/{attempt}"

    def text(self, purpose: str, num_tokens: int) -> str:
        """Return words for a prompt of about ``num_tokens``; ``purpose`` keeps the texts of a round apart."""
        numbers = random.Random(f"{self._prefix}/{purpose}")
        return " ".join(numbers.choices(WORDS, k=self._scale.num_words(num_tokens)))

    def ask(self, purpose: str, num_tokens: int) -> list[Message]:
        """Return a conversation of one question."""
        return [user(self.text(purpose, num_tokens))]


def user(text: str) -> Message:
    """Return a message of the user."""
    return {"role": "user", "content": text}


def system(text: str) -> Message:
    """Return a message that comes before the user's."""
    return {"role": "system", "content": text}


def assistant(text: str) -> Message:
    """Return what the model said earlier."""
    return {"role": "assistant", "content": text}


async def measure_scale(chat: Chat) -> TokenScale:
    """Ask a server how long prompts of two sizes are; raises ``BadAnswer`` if it does not say."""
    few, many = 20, 220
    text = random.Random("scale").choices(WORDS, k=many)
    short = await chat([user(" ".join(text[:few]))], 1, {})
    long = await chat([user(" ".join(text))], 1, {})
    return scale_from((few, short.prompt_len), (many, long.prompt_len))


def scale_from(short: tuple[int, int], long: tuple[int, int]) -> TokenScale:
    """Return the line through two pairs of words and tokens; one token a word where a server does not count."""
    if long[1] <= short[1]:
        return TokenScale(0.0, 1.0)
    per_word = (long[1] - short[1]) / (long[0] - short[0])
    return TokenScale(short[1] - short[0] * per_word, per_word)
