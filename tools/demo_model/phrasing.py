"""How people type: one wording becomes many, with other case, punctuation, spacing and courtesy."""

import random

OPENERS = (
    "Please, ",
    "please ",
    "Hi! ",
    "Hello, ",
    "Hey, ",
    "Can you tell me: ",
    "Tell me, ",
    "Quick question: ",
    "OK, ",
    "So, ",
    "Question: ",
    "Now: ",
    "Hi, ",
    "Hello! ",
    "I want to know: ",
    "Q: ",
)
CLOSERS = (" please", ", please", " Please.", " Thanks!", " Thank you.", " thanks")


def chance(source: random.Random, probability: float) -> bool:
    """True with this probability."""
    return source.random() < probability


def _recased(source: random.Random, text: str) -> str:
    kind = source.random()
    if kind < 0.25:
        return text.lower()
    if kind < 0.35:
        return text[:1].lower() + text[1:]
    if kind < 0.39 and "{" not in text:
        return text.upper()
    return text


def _repunctuated(source: random.Random, text: str) -> str:
    kind = source.random()
    if text[-1] not in "?.!" or kind > 0.4:
        return text
    if kind < 0.32:
        return text[:-1]
    return text[:-1] + source.choice(("??", "!", ".", " ?", "?!", "..."))


def _respaced(source: random.Random, text: str) -> str:
    kind = source.random()
    if kind < 0.03:
        return text + source.choice((" ", "\n", "  ", "\n\n"))
    if kind < 0.06:
        return source.choice((" ", "\n", "  ")) + text
    if kind < 0.08:
        return text.replace(" ", "  ", 1)
    return text


def typed(source: random.Random, text: str, courtesy: float = 0.12) -> str:
    """Placeholders such as {x} stay as they are, so that what must be copied can be put in afterwards."""
    text = _repunctuated(source, text)
    if chance(source, courtesy):
        text = text + source.choice(CLOSERS)
    if chance(source, courtesy):
        text = source.choice(OPENERS) + text
    return _respaced(source, _recased(source, text))
