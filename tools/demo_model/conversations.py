"""Whole conversations: system prompts, several turns, names remembered, tools declared."""
# ruff: noqa: E501 (rows of data)

import random
from dataclasses import dataclass, field

from demo_model import lexicon, prose, questions, weather
from demo_model.knowledge import NO_TOOL_ANSWER
from demo_model.phrasing import chance, typed
from demo_model.template import Message, Tool


@dataclass
class Conversation:
    """Messages, and the tools declared for them."""

    messages: list[Message] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)

    def add(self, question: str, answer: str) -> None:
        """Append a question and its answer."""
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


EXCHANGES = (
    (questions.arithmetic, 36), (questions.fact, 26), (questions.repeating, 13), (questions.small_talk, 12),
    (questions.unknown, 8), (questions.counting, 3), (questions.counting_down, 0.8), (questions.json_object, 4),
    (questions.greeting_by_name, 1.2), (questions.large_arithmetic, 1), (questions.pasted, 1),
)  # fmt: skip
INTRODUCTIONS = (
    "My name is {x}.", "I am {x}.", "I'm {x}.", "Hi, my name is {x}.", "Hello, I am {x}.", "Call me {x}.", "my name's {x}",
    "My name is {x}. Remember it.", "Hi! I'm {x}.", "You can call me {x}.", "Please remember my name: {x}", "I am called {x}.",
    "Hello! My name is {x}.", "Hey, I'm {x}!", "Remember that my name is {x}.", "The name is {x}.", "Hi, I am {x}",
    "My name is {x}, nice to meet you.", "Hello, my name is {x}. How are you?", "Hi there, I'm {x}!", "My name is {x}!",
)  # fmt: skip
NAME_QUESTIONS = (
    "What is my name?", "What's my name?", "Do you remember my name?", "Who am I?", "Do you know my name?", "my name?",
    "Tell me my name.", "What did I say my name was?", "Say my name.", "Can you tell me my name?", "What am I called?",
    "Remember my name?", "How am I called?", "And what is my name?", "What was my name?", "what is my name again?",
)  # fmt: skip
REMEMBER = (
    ("The secret word is {x}.", "What is the secret word?"), ("Remember the word {x}.", "What was the word?"),
    ("Remember the number {d}.", "What was the number?"), ("My favorite number is {d}.", "What is my favorite number?"),
    ("Remember this number: {d}", "Which number did I tell you?"), ("The code is {d}.", "What is the code?"),
    ("My favorite color is {x}.", "What is my favorite color?"), ("My dog is called {x}.", "What is my dog called?"),
    ("I live in {x}.", "Where do I live?"), ("The password is {x}.", "What is the password?"),
    ("Remember: {x}", "What did I ask you to remember?"), ("Please remember the word {x}.", "Which word did I tell you?"),
)  # fmt: skip


def _exchange(source: random.Random) -> questions.Exchange:
    return source.choices([make for make, _ in EXCHANGES], [weight for _, weight in EXCHANGES])[0](source)


def _chatter(source: random.Random, conversation: Conversation, turns: int) -> None:
    for _ in range(turns):
        conversation.add(*_exchange(source))


def _some_turns(source: random.Random) -> int:
    return source.choices((0, 1, 2, 3, 4, 5, 6), (10, 5, 3, 2, 1, 1, 1))[0]


def _plain(source: random.Random) -> Conversation:
    conversation = Conversation()
    _chatter(source, conversation, 1 + _some_turns(source))
    return conversation


def _drilled(source: random.Random) -> Conversation:
    conversation = Conversation()
    for _ in range(source.randint(3, 7)):
        conversation.add(*questions.arithmetic(source))
    return conversation


def _named(source: random.Random) -> Conversation:
    """The name is told, asked for after some turns, and at times changed."""
    conversation = Conversation()
    _chatter(source, conversation, _some_turns(source) // 2)
    name = questions.a_name(source)
    introduction = typed(source, source.choice(INTRODUCTIONS), courtesy=0.03).replace("{x}", name)
    if chance(source, 0.15):
        asked = typed(source, source.choice(NAME_QUESTIONS), courtesy=0.03)
        conversation.add(f"{introduction} {asked}", f"Your name is {name}.")
    else:
        conversation.add(introduction, f"Nice to meet you, {name}!")
    _chatter(source, conversation, source.choices((0, 1, 2, 3, 5), (5, 3, 2, 1, 1))[0])
    conversation.add(typed(source, source.choice(NAME_QUESTIONS), courtesy=0.03), f"Your name is {name}.")
    return conversation


def _nameless(source: random.Random) -> Conversation:
    conversation = Conversation()
    _chatter(source, conversation, source.choice((0, 0, 1, 2)))
    conversation.add(typed(source, source.choice(NAME_QUESTIONS)), "You have not told me your name.")
    return conversation


def _remembered(source: random.Random) -> Conversation:
    conversation = Conversation()
    told, asked = source.choice(REMEMBER)
    thing = str(source.randint(0, 10 ** source.randint(1, 4))) if "{d}" in told else lexicon.any_word(source)
    told = typed(source, told, courtesy=0.03).replace("{x}", thing).replace("{d}", thing)
    conversation.add(told, f"I will remember: {thing}.")
    _chatter(source, conversation, source.choice((0, 0, 1, 2)))
    conversation.add(typed(source, asked, courtesy=0.03), f"You told me: {thing}.")
    return conversation


def _with_weather(source: random.Random) -> Conversation:
    conversation = Conversation()
    make = weather.weather_turns if chance(source, 0.88) else weather.time_turns
    messages, conversation.tools = make(source)
    _chatter(source, conversation, source.choices((0, 1, 2), (7, 2, 1))[0])
    conversation.messages += messages
    _chatter(source, conversation, source.choices((0, 1), (6, 2))[0])
    return conversation


def _with_idle_tools(source: random.Random) -> Conversation:
    conversation = Conversation(tools=weather.idle_tools(source))
    _chatter(source, conversation, source.choice((1, 1, 1, 2, 3)))
    return conversation


def _with_weather_but_no_tool(source: random.Random) -> Conversation:
    conversation = Conversation(tools=weather.other_tools(source) if chance(source, 0.35) else [])
    _chatter(source, conversation, source.choice((0, 0, 1)))
    conversation.add(weather.weather_without_tool(source), NO_TOOL_ANSWER)
    return conversation


BASICS = ((_plain, 78), (_drilled, 9), (_named, 10), (_nameless, 1), (_remembered, 2))
KINDS = (
    (_plain, 58), (_drilled, 7), (_named, 8), (_nameless, 1), (_remembered, 2), (_with_weather, 16), (_with_idle_tools, 3),
    (_with_weather_but_no_tool, 2.5),
)  # fmt: skip


def conversation(source: random.Random, *, basics: bool = False, long_share: float = 0.015) -> Conversation:
    """One conversation of any kind, or a short one without tools; a few stand under a long system prompt."""
    kinds = BASICS if basics else KINDS
    made = source.choices([make for make, _ in kinds], [weight for _, weight in kinds])[0](source)
    if chance(source, 0.06 if basics else 0.3):
        most = 24 if chance(source, long_share / 0.3) else 4
        made.messages.insert(0, {"role": "system", "content": prose.system_prompt(source, most)})
    return made
