"""The examination: wordings and values that the training text does not contain, with the one right answer."""

import math
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from demo_model import batches, network, prose, questions, weather
from demo_model.examination import CITIES, FRAMED_SUMS, LONG_SYSTEM, NAMES, SINGLE_TURNS, WORDS
from demo_model.network import Params, Shape
from demo_model.template import Message, Tool, rendered
from demo_model.tokens import TURN_END

BARS = {
    "single turns": 0.9, "small sums": 0.98, "times table": 0.98, "below zero": 0.7, "large sums": 0.5,
    "repeating": 0.85, "names": 0.85, "tool calls": 0.9, "tool results": 0.85, "unknown": 0.9, "counting": 0.95,
    "long system prompt": 0.85,
}  # fmt: skip
SHARED_BATCH = 16


@dataclass(frozen=True)
class Case:
    """A conversation up to a question, and the one right answer."""

    section: str
    messages: list[Message]
    answer: str
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True)
class Mark:
    """Whether greedy decoding gives the answer, and how likely sampling at temperature 1 gives it."""

    case: Case
    greedy: bool
    probability: float


def _turn(section: str, question: str, answer: str) -> Case:
    return Case(section, [{"role": "user", "content": question}], answer)


def _single_turns() -> list[Case]:
    rows = (row.split(" => ") for row in SINGLE_TURNS.strip().splitlines())
    return [_turn("single turns", question, answer.replace("\\n", "\n")) for question, answer in rows]


def _sums() -> list[Case]:
    source = random.Random(1)
    found = []
    for first in range(21):
        for second in range(21):
            for sign in "+-":
                frame = source.choice(FRAMED_SUMS).replace("{s}", f"{first} {sign} {second}")
                section = "below zero" if sign == "-" and first < second else "small sums"
                found.append(_turn(section, frame, questions.sum_answer(first, second, sign)))
    for first in range(13):
        for second in range(13):
            frame = source.choice(FRAMED_SUMS).replace("{s}", f"{first} * {second}")
            found.append(_turn("times table", frame, questions.sum_answer(first, second, "*")))
    for first in range(100):
        for second in range(first + 1):
            for sign in "+-":
                if questions.held_out(first, second, sign):
                    question = f"What is {first} {sign} {second}?"
                    found.append(_turn("large sums", question, questions.sum_answer(first, second, sign)))
    return found


def _repeated() -> list[Case]:
    frames = ("Say {x}", "Repeat after me: {x}", "Please say: {x}", 'Reply with "{x}".', "Now repeat: {x}", 'Say "{x}"')
    found = [_turn("repeating", frames[at % len(frames)].replace("{x}", word), word) for at, word in enumerate(WORDS)]
    return [*found, *(_turn("repeating", f"Say {one} {two}", f"{one} {two}") for one, two in pairwise(WORDS))]


def _counted() -> list[Case]:
    return [
        _turn("counting", f"Count from 1 to {last}.", ", ".join(map(str, range(1, last + 1))) + ".")
        for last in range(2, 51)
    ]


def _said(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _named() -> list[Case]:
    found = []
    for name in NAMES:
        greeted = _said(f"Hello! My name is {name}.", f"Nice to meet you, {name}!")
        asked: list[Message] = [{"role": "user", "content": "What is my name?"}]
        between = _said("What is 2 + 3?", "2 + 3 = 5.") + _said("Say apple pie", "apple pie")
        found.append(Case("names", greeted + asked, f"Your name is {name}."))
        found.append(Case("names", greeted + between + asked, f"Your name is {name}."))
    return found


def _weather_tools(place: str) -> list[tuple[Tool, ...]]:
    parameters = {"type": "object", "properties": {place: {"type": "string"}}, "required": [place]}
    bare = {"name": "get_weather", "parameters": parameters}
    plain = {"type": "function", "function": bare}
    function = {**bare, "description": "Look up today's weather conditions for a town"}
    described = {"type": "function", "function": function}
    clock = {"type": "function", "function": {"name": "get_time", "description": "Time now", "parameters": parameters}}
    return [(plain,), (described,), (described, clock), (clock, plain)]


def _tool_cases() -> list[Case]:
    found = []
    frames = ("What is the weather in {x}?", "How's the weather in {x} now?", "tell me about the weather in {x}")
    for at, city in enumerate(CITIES):
        place = "location" if at % 3 == 2 else "city"
        for tools in _weather_tools(place):
            asked: list[Message] = [{"role": "user", "content": frames[at % 3].replace("{x}", city)}]
            called = f'<tool_call>\n{{"name": "get_weather", "arguments": {{"{place}": "{city}"}}}}\n</tool_call>'
            found.append(Case("tool calls", asked, called, tools))
            reply: Message = {
                "role": "assistant",
                "content": None,
                "tool_calls": [weather.call("get_weather", place, city)],
            }
            for content, spoken in (
                ('{"temperature": 18, "condition": "sunny"}', "temperature 18, condition sunny"),
                ("Rain, 7°C", "Rain, 7°C"), ("18 degrees and sunny", "18 degrees and sunny"),
            ):  # fmt: skip
                answered = [*asked, reply, {"role": "tool", "content": content}]
                found.append(Case("tool results", answered, f"The weather in {city}: {spoken}.", tools))
    return found


def _idle_tool_cases() -> list[Case]:
    tools = _weather_tools("city")
    return [
        Case("single turns", case.messages, case.answer, tools[at % 4]) for at, case in enumerate(_single_turns()[::3])
    ]


def _unknown() -> list[Case]:
    source = random.Random(2)
    pasted = [_turn("unknown", "Summarize: " + prose.text(source, 8), prose.UNKNOWN_ANSWER) for _ in range(20)]
    asked = (
        "How do I bake sourdough bread?", "Who is the mayor of Springfield?", "Write a sorting algorithm in Rust.",
        "Why do cats purr?", "What is the GDP of Norway?", "Explain recursion.", "Which phone should I buy?",
        "Tell me about dinosaurs.", "What happened in 1848?", "How do vaccines work?", "Can pigs fly?", "xyzzy plugh",
    )  # fmt: skip
    return [*pasted, *(_turn("unknown", question, prose.UNKNOWN_ANSWER) for question in asked)]


def _with_long_system_prompt() -> list[Case]:
    system: Message = {"role": "system", "content": LONG_SYSTEM}
    return [Case("long system prompt", [system, *case.messages], case.answer) for case in _single_turns()[::2]]


def all_cases() -> list[Case]:
    """Every case of every section."""
    makers: tuple[Callable[[], list[Case]], ...] = (
        _single_turns, _sums, _repeated, _counted, _named, _tool_cases, _idle_tool_cases, _unknown,
        _with_long_system_prompt,
    )  # fmt: skip
    return [case for make in makers for case in make()]


def _as_sample(case: Case, tokenizer: Tokenizer) -> batches.Sample:
    prompt = tokenizer.encode(rendered(case.messages, list(case.tools), add_generation_prompt=True)).ids
    answer = tokenizer.encode(case.answer + TURN_END).ids
    return batches.Sample(
        prompt + answer, [False] * len(prompt) + [True] * len(answer), list(range(len(prompt + answer)))
    )


def marks(params: Params, shape: Shape, tokenizer: Tokenizer, cases: list[Case]) -> list[Mark]:
    """The answer is put in: it is the greedy one when each of its tokens is the likeliest."""
    scored = jax.jit(partial(_scored_batch, shape=shape))
    by_length: dict[int, list[tuple[Case, batches.Sample]]] = defaultdict(list)
    for case in cases:
        sample = _as_sample(case, tokenizer)
        by_length[-len(sample.ids) // 64 * -64].append((case, sample))
    found = []
    for length, pairs in by_length.items():
        for at in range(0, len(pairs), SHARED_BATCH):
            part = pairs[at : at + SHARED_BATCH]
            rows = [batches.Row(length, [sample], len(sample.ids)) for _, sample in part]
            rows += [batches.Row(length) for _ in range(SHARED_BATCH - len(part))]
            greedy, likelihood = scored(params, batches.arrays(rows))
            found += [
                Mark(case, bool(greedy[index]), math.exp(float(likelihood[index])))
                for index, (case, _) in enumerate(part)
            ]
    return found


def _scored_batch(params: Params, batch: network.Batch, *, shape: Shape) -> tuple[jax.Array, jax.Array]:
    scores = network.logits(params, batch, shape).reshape(*batch["tokens"].shape, -1)
    likely = jnp.take_along_axis(jax.nn.log_softmax(scores), batch["targets"][..., None], -1)[..., 0]
    right = jnp.argmax(scores, -1) == batch["targets"]
    return jnp.all(right | (batch["weights"] == 0), -1), jnp.sum(likely * batch["weights"], -1)


def report(found: list[Mark], wrong_shown: int = 4) -> bool:
    """Prints the success per section; true when each is above its bar."""
    passed = True
    for section, bar in BARS.items():
        of_section = [mark for mark in found if mark.case.section == section]
        greedy = float(np.mean([mark.greedy for mark in of_section]))
        sampled = float(np.mean([mark.probability for mark in of_section]))
        passed = passed and greedy >= bar
        print(f"{section:20} {len(of_section):5} cases  greedy {greedy:.3f} (bar {bar})  sampled {sampled:.3f}")
        for mark in [mark for mark in of_section if not mark.greedy][:wrong_shown]:
            print(f"    missed: {mark.case.messages[-1]['content'][-70:]!r} -> {mark.case.answer!r}")
    return passed
