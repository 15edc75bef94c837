"""Made-up prose: policies, pasted texts, code and questions that no small model can answer."""
# ruff: noqa: SIM905 (rows of data)

import random
from collections.abc import Callable

from demo_model.lexicon import ADJECTIVES, FIRST_NAMES, GLUE, NOUNS, VERBS, any_word, invented_word
from demo_model.phrasing import chance

PERSONAS = (
    "You are a helpful assistant.",
    "You are a pirate.",
    "You are a helpful, honest and concise assistant.",
    "Be brief.",
    "Answer in one sentence.",
    "You are an expert in {n}.",
    "You are a {a} {n} assistant.",
    "You are {f}, a friendly assistant for {n} and {n}.",
    "Always answer politely.",
    "You are ChatGPT.",
    "Respond in English.",
    "Today is {f}'s birthday.",
    "You speak like a {n}.",
    "You are a test assistant.",
    "You are a coding agent. Use the tools when they help.",
    "Knowledge cutoff: 2024-06. Current date: 2025-01-15.",
    "You have access to tools. Use them if needed.",
    "You are a bot.",
    "Talk like a pirate.",
    "You are a weather bot.",
)
POLICY = (
    "You must {v} the {n} before you {v} the {n}.",
    "Never {v} a {a} {n}.",
    "If the {n} is {a}, {v} the {n} first.",
    "Always {v} {n}s in a {a} way.",
    "The owner is called {f}.",
    "- {v} every {n}",
    "Do not {v} the {n} of a {n}.",
    "The {n} policy: {a} {n}s are never {a}.",
    "When asked about the {n}, {v} it.",
    "# {n} rules",
    "{w} {w} {w} {w}.",
    "The {a} {n} must not {v} the {a} {n} in {w}.",
    "{d}. {v} the {n} and {v} the {n}.",
    "Use at most {d} {n}s.",
)
SENTENCES = (
    "The {a} {n} was not as {a} as the {n} in the {n}.",
    "{f} wanted to {v} a {n}, but the {n} was too {a}.",
    "In {d}, the {n} of {w} became {a}.",
    "A {n} is a {a} {n} that can {v} every {n}.",
    "However, {n}s and {n}s {v} the {a} {n}.",
    "It is {a} to {v} the {n} without a {n}.",
    "{w} {g} {w} {g} {n} {w}.",
    '"{w} {w}!" said {f}.',
    "def {w}({w}): return {w} + {d}",
    "for {w} in {w}: print({w})",
    "{w} = {w}({d}, {d})",
    "See https://www.{w}.com/{w} for the {n}.",
    '{"{w}": {d}, "{w}": "{n}"}',
    "{d}, {d}, {d}, {d}",
    "Many {a} {n}s {v} in {w} because of the {n}.",
    "<{w}>{n}</{w}>",
    "| {w} | {d} | {n} |",
)
UNKNOWN = (
    "What do you think about {n}?",
    "Explain {n} to me.",
    "Explain how a {n} works.",
    "Why is the {n} so {a}?",
    "How do I {v} a {n}?",
    "Who invented the {n}?",
    "Write a Python function that can {v} a {n}.",
    "Summarize the {n} of {w}.",
    "What is the meaning of {w}?",
    "Can you {v} my {n}?",
    "How old is {w}?",
    "What is the best {n} in {w}?",
    "Give me five ideas for a {a} {n}.",
    "Translate this to {w}: {g} {n} {v}",
    "What is the difference between {n} and {n}?",
    "When was the {n} of {w} built?",
    "How much does a {n} cost?",
    "Who is {f} {w}?",
    "Tell me about {n}.",
    "Tell me about the {a} {n} of {w}.",
    "What is {w}?",
    "What is a {n}?",
    "What is {n}?",
    "Is {n} {a}?",
    "Should I {v} my {n}?",
    "Where can I {v} a {a} {n}?",
    "Do you like {n}?",
    "Write an email about a {n}.",
    "Write an essay about {n}.",
    "Fix this code: {w} = {w}({d})",
    "I need help with my {n}.",
    "My {n} is {a}. What should I do?",
    "Describe a {a} {n}.",
    "Which {n} is the most {a}?",
    "How many {n}s are in {w}?",
    "What happened in {d}?",
    "Are {n}s {a}?",
    "What is the capital of {w}?",
    "What is the population of {w}?",
    "Who is the king of {w}?",
    "Who wrote {w}?",
    "What color is the {n} of {w}?",
    "{w}",
    "{w} {w}",
    "{w} {w} {w} {g} {w}",
    "{n}",
    "{v} {n}",
    "{g} {n} {g} {n}",
    "I like {n}.",
    "The {n} is {a}.",
    "How does {n} {v} {n}?",
    "What does {w} mean?",
    "What is the {n} of the {n}?",
    "Why do {n}s {v}?",
    "Recommend a {a} {n}.",
    "Classify this: {w} {n}",
    "asdf {w}",
    "What is the square root of {d}?",
    "Solve {w} + {d} = {d}",
    "What will happen in {d}?",
    "Make a plan to {v} {n}s.",
    "Plan a trip to {w}.",
    "What is the {a} {n} in the world?",
    "Who won the {n}?",
    "What is the price of {n}?",
    "Generate a {a} {n}.",
    "Create a {n} for {f}.",
    "Rewrite: {g} {n} {g} {a}",
    "Is it {a} to {v} a {n}?",
    "Why?",
    "What is the meaning of life?",
    "How do magnets work?",
    "Explain quantum mechanics.",
    "What is love?",
    "{d}",
    "Where is {w}?",
    "Where do {n}s live?",
    "How tall is {w}?",
    "What year is it?",
    "What day is it today?",
    "...",
    "?",
    "How do you make {n}?",
    "Find the {n} in this text: {w} {n} {w}",
    "Continue: {g} {n} {g}",
    "{w} {d} {w}",
    "{f} {w}",
    "What are the benefits of {n}?",
    "Give me the history of {n}.",
    "Can I {v} {n} with {n}?",
    "What is your favorite {n}?",
)
PASTES = (
    "Summarize this text: {t}",
    "{t}",
    "{t}\n\nWhat do you think about it?",
    "Fix the errors in this:\n{t}",
    "Here is a {n}:\n\n{t}\n\nExplain it.",
    "Translate to {w}:\n{t}",
    "{t}\nSummarize the text above.",
    "What is this?\n```\n{t}\n```",
    "Review my {n}: {t}",
    "Read this and answer. {t} Why is the {n} {a}?",
)
ANSWERED = set("hello hi hey bye goodbye thanks morning night good say story joke".split())
UNKNOWN_ANSWER = "I am only a small demonstration model, so I do not know that."


def filled(source: random.Random, template: str) -> str:
    """A template whose slots are drawn."""
    fillers: dict[str, Callable[[], str]] = {
        "{n}": lambda: source.choice(NOUNS) if chance(source, 0.8) else invented_word(source),
        "{v}": lambda: source.choice(VERBS), "{a}": lambda: source.choice(ADJECTIVES),
        "{f}": lambda: source.choice(FIRST_NAMES), "{g}": lambda: source.choice(GLUE),
        "{w}": lambda: any_word(source), "{d}": lambda: str(source.randint(0, 10 ** source.randint(1, 5))),
    }  # fmt: skip
    for slot, filler in fillers.items():
        while slot in template:
            template = template.replace(slot, filler(), 1)
    return template[:1].upper() + template[1:] if chance(source, 0.7) else template


def text(source: random.Random, sentences: int) -> str:
    """Sentences that say nothing."""
    gap = source.choice((" ", " ", "\n", "\n\n"))
    return gap.join(filled(source, source.choice(SENTENCES)) for _ in range(sentences))


def system_prompt(source: random.Random, most: int) -> str:
    """A persona, at times followed by made-up policies."""
    opening = filled(source, source.choice(PERSONAS))
    count = 0 if chance(source, 0.6) else source.randint(1, most)
    gap = source.choice((" ", " ", "\n"))
    return gap.join([opening, *(filled(source, source.choice(POLICY)) for _ in range(count))])


def unknown_question(source: random.Random) -> str:
    """Words that have an answer of their own are drawn again, as two answers to one question blur both."""
    question = filled(source, source.choice(UNKNOWN))
    while question.lower().split()[0] in ANSWERED or question.lower() in ANSWERED:
        question = filled(source, source.choice(UNKNOWN))
    return question


def pasted_question(source: random.Random, most: int) -> str:
    """A question around a long text."""
    frame = source.choice(PASTES)
    return filled(source, frame).replace("{t}", text(source, source.randint(2, most)))
