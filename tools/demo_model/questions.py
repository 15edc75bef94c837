"""Questions whose answer is computed or copied: sums, counting, repeating, names, JSON."""
# ruff: noqa: E501, RUF001, SIM905 (rows of data)

import random

from demo_model import knowledge, lexicon, prose
from demo_model.phrasing import chance, typed

Exchange = tuple[str, str]

FACT_GROUPS = (
    (knowledge.CAPITALS, 9), (knowledge.OPPOSITES, 4), (knowledge.HELLOS, 2), (knowledge.COLORS, 2.5),
    (knowledge.LEGS, 2), (knowledge.SOUNDS, 1), (knowledge.SINGLE, 6),
)  # fmt: skip
SHORTENERS = (
    "{q} Answer with one word.", "{q} One word only.", "Answer in one word: {q}", "{q} Answer in one word.",
    "{q} Just one word.", "Answer with one word: {q}", "{q} Reply with one word.", "{q} Only the answer.",
    "{q} Be brief: one word.", "In one word: {q}", "{q} Answer with a single word.", "{q} (one word)",
)  # fmt: skip


def fact(source: random.Random) -> Exchange:
    """A fact, at times asked for in one word."""
    group = source.choices([group for group, _ in FACT_GROUPS], [weight for _, weight in FACT_GROUPS])[0]
    chosen = source.choice(group)
    question = source.choice(chosen.questions)
    if chosen.short and chance(source, 0.12):
        framed = source.choice(SHORTENERS).replace("{q}", question)
        return typed(source, framed, courtesy=0.03), chosen.short[:1].upper() + chosen.short[1:]
    return typed(source, question), chosen.answer


def small_talk(source: random.Random) -> Exchange:
    """A greeting, a joke, a list and the like."""
    chosen = source.choice(knowledge.TALK)
    return typed(source, source.choice(chosen.questions), courtesy=0.05), chosen.answer


def unknown(source: random.Random) -> Exchange:
    """A question that the model should decline."""
    return typed(source, prose.unknown_question(source), courtesy=0.06), prose.UNKNOWN_ANSWER


def pasted(source: random.Random) -> Exchange:
    """A long text that the model should decline."""
    most = 30 if chance(source, 0.15) else 6
    return prose.pasted_question(source, most), prose.UNKNOWN_ANSWER


SUM_FRAMES = (
    "What is {s}?", "{s}", "{s}=", "{s} =", "{s}?", "calculate {s}", "Calculate {s}.", "What's {s}?", "Compute {s}",
    "How much is {s}?", "What is {s}", "{s} = ?", "what does {s} equal?", "solve {s}", "Tell me what {s} is.",
    "Work out {s}.", "Can you calculate {s}?", "What is the result of {s}?", "I need {s}.", "{s} is", "{s} equals",
    "Do you know what {s} is?", "Evaluate {s}.", "Give me {s}.", "What do you get for {s}?", "Solve: {s}",
    "What is the answer to {s}?", "And {s}?", "What about {s}?", "Now {s}", "and what is {s}?", "Calculate: {s}",
)  # fmt: skip
SIGNS = {
    "+": ("+", "+", "+", "plus", "plus", "and"),
    "-": ("-", "-", "-", "minus", "minus", "−"),
    "*": ("*", "*", "x", "×", "times", "times", "multiplied by"),
    "/": ("/", "/", "÷", "divided by", "divided by", "over"),
}
SPELLED_SUMS = {
    "+": ("What is the sum of {a} and {b}?", "Add {a} and {b}.", "Add {a} to {b}.", "sum of {a} and {b}"),
    "*": ("Multiply {a} by {b}.", "What is the product of {a} and {b}?", "Multiply {a} and {b}."),
    "/": ("Divide {a} by {b}.",),
    "-": ("What is the difference between {a} and {b}?", "Take {b} from {a}.", "Subtract {b} from {a}."),
}
TOO_LARGE = "I can only calculate with small numbers."


def held_out(first: int, second: int, sign: str) -> bool:
    """A few larger sums are kept for the evaluation, to see that adding is learned and not recited."""
    return sign in "+-" and max(first, second) > 20 and (7 * first + 13 * second) % 29 == 0


def _operands(source: random.Random) -> tuple[int, int, str]:
    sign = source.choices("+-*/", (4, 3.4, 3, 1.2))[0]
    if sign == "*":
        first, second = source.randint(0, 12), source.randint(0, 12)
    elif sign == "/":
        second = source.randint(1, 12)
        first = second * source.randint(0, 12)
    else:
        top = source.choices((9, 20, 99), (3, 5, 3.5))[0]
        first, second = source.randint(0, top), source.randint(0, top)
        if sign == "-" and first < second and chance(source, 0.8 if top < 99 else 0.95):
            first, second = second, first
    return (first, second, sign) if not held_out(first, second, sign) else _operands(source)


def _result(first: int, second: int, sign: str) -> int:
    return {"+": first + second, "-": first - second, "*": first * second, "/": first // max(second, 1)}[sign]


def sum_answer(first: int, second: int, sign: str) -> str:
    """The one form in which sums are answered."""
    return f"{first} {sign} {second} = {_result(first, second, sign)}."


def _spelled(source: random.Random, number: int, probability: float) -> str:
    if number <= 20 and chance(source, probability):
        return lexicon.NUMBER_WORDS[number]
    return str(number)


def _infix(source: random.Random, first: int, second: int, sign: str) -> str:
    symbol = source.choice(SIGNS[sign])
    words = 0.25 if symbol.isalpha() else 0.0
    left, right = _spelled(source, first, words), _spelled(source, second, words)
    gap = " " if symbol[0].isalpha() or chance(source, 0.6) else ""
    return f"{left}{gap}{symbol}{gap}{right}"


def arithmetic(source: random.Random) -> Exchange:
    """A sum, a difference, a product or an exact quotient."""
    first, second, sign = _operands(source)
    if chance(source, 0.14):
        frame = source.choice(SPELLED_SUMS[sign])
        frame = frame.replace("{a}", _spelled(source, first, 0.1)).replace("{b}", _spelled(source, second, 0.1))
        return typed(source, frame, courtesy=0.05), sum_answer(first, second, sign)
    frame = typed(source, source.choice(SUM_FRAMES), courtesy=0.06)
    return frame.replace("{s}", _infix(source, first, second, sign)), sum_answer(first, second, sign)


def large_arithmetic(source: random.Random) -> Exchange:
    """A sum that is too large for the model."""
    first, second = source.randint(100, 99999), source.randint(2, 9999)
    if chance(source, 0.3):
        first, second = second, first
    sign = source.choice("+-*")
    frame = typed(source, source.choice(SUM_FRAMES), courtesy=0.06)
    return frame.replace("{s}", _infix(source, first, second, sign)), TOO_LARGE


COUNT_FRAMES = (
    "Count from {a} to {b}", "Count from {a} to {b}.", "count {a} to {b}", "Please count from {a} to {b}.",
    "List the numbers from {a} to {b}", "Can you count from {a} to {b}?", "Write the numbers {a} to {b}.",
    "Give me the numbers from {a} to {b}", "Count up from {a} to {b}.", "Print the numbers from {a} to {b}.",
    "List the numbers {a} to {b}.", "Say the numbers from {a} to {b}", "Count slowly from {a} to {b}.",
)  # fmt: skip
COUNT_TO_FRAMES = (
    "Count to {b}", "count up to {b}", "Count to {b}.", "Can you count to {b}?", "Please count to {b}", "Count till {b}",
)  # fmt: skip


def counting(source: random.Random) -> Exchange:
    """Counting up."""
    tops = (source.randint(2, 12), source.randint(2, 30), source.randint(20, 50), 100)
    last = source.choices(tops, (6, 5, 2.5, 0.3))[0]
    first = source.randint(1, last - 1) if chance(source, 0.08) else 1
    frame = source.choice(COUNT_TO_FRAMES if first == 1 and chance(source, 0.35) else COUNT_FRAMES)
    words = 0.3 if chance(source, 0.6) else 0.0
    frame = typed(source, frame, courtesy=0.05)
    question = frame.replace("{a}", _spelled(source, first, words)).replace("{b}", _spelled(source, last, words))
    return question, ", ".join(map(str, range(first, last + 1))) + "."


def counting_down(source: random.Random) -> Exchange:
    """Counting down to one."""
    first = source.choices((10, 5, source.randint(3, 20)), (3, 1, 2))[0]
    frame = source.choice(
        ("Count down from {b}", "Count backwards from {b}", "Count down from {b} to 1.", "Count from {b} down to 1",
         "Count backwards from {b} to 1")
    )  # fmt: skip
    question = typed(source, frame, courtesy=0.05).replace("{b}", _spelled(source, first, 0.2))
    return question, ", ".join(map(str, range(first, 0, -1))) + "."


SAY_FRAMES = (
    "Say {x}", "Say: {x}", "say {x}", "Repeat after me: {x}", "Repeat: {x}", "Say {q}", "Repeat {q}", "Reply with {q}",
    "Reply with the word {x}", "Reply with: {x}", "Reply with exactly: {x}", "Just say {x}", "Please say {x}",
    "Repeat this: {x}", "Echo: {x}", "Echo {q}", "Write {q}", "Can you say {x}", "Say the word {x}", "Say just {q}",
    "Answer with {q}", "Respond with {q}", "Respond with: {x}", "Answer with one word: {x}", "Answer only with {q}",
    "Reply only with {q}", "Say exactly: {x}", "Repeat the following: {x}", "Output {q}", "Output: {x}", "Print {q}",
    "Reply with just the word {q}", "Say only {q}", "Respond only with {q}", "Repeat the word {x}", "Repeat {x}",
    "Reply with the single word {x}", "Reply {x}", "Respond with the word {q}", "Say {q} and nothing else",
    "Respond with exactly the following text: {x}", "Please repeat after me: {x}", "Say the following: {x}",
)  # fmt: skip
PHRASES = (
    "this is a test", "hello", "hi", "hello world", "Hello, world!", "yes", "no", "ok", "OK", "test", "pong", "done", "banana",
    "I am here", "good morning", "thank you", "all good", "goodbye", "hi there", "This is a test.", "Hello!", "how are you",
    "one two three", "apple", "READY", "ping", "I love you", "the quick brown fox", "streaming works", "Hi!", "cheese",
)  # fmt: skip


PHRASE_FRAMES = (
    "the {n} is {a}", "this is a {n}", "I like {n}", "{f} is here", "you are {a}", "the {a} {n}", "a {n} and a {n}",
    "we are {a}", "it is {a}", "good {n}", "my {n} is {a}", "there is no {n}", "the {n} of the {n}", "my name is {f}",
)  # fmt: skip


def _phrase(source: random.Random) -> str:
    kind = source.random()
    if kind < 0.2:
        return source.choice(PHRASES)
    if kind < 0.32:
        return prose.filled(source, source.choice(PHRASE_FRAMES))
    words = [lexicon.any_word(source) for _ in range(source.choices((1, 2, 3, 4, 5), (8, 4, 2.5, 1.5, 1))[0])]
    case = source.random()
    if case < 0.3:
        words[0] = words[0].capitalize()
    elif case < 0.36:
        words = [word.upper() for word in words]
    elif case < 0.4:
        words = [word.capitalize() for word in words]
    elif case < 0.46:
        words[-1] = str(source.randint(0, 999))
    comma = ", " if chance(source, 0.06) else " "
    return comma.join(words)


def repeating(source: random.Random) -> Exchange:
    """The answer is what was asked for, without quotation marks and without a full stop."""
    wanted = _phrase(source)
    frame = typed(source, source.choice(SAY_FRAMES), courtesy=0.04)
    quote = source.choice(('"{x}"', "'{x}'", '"{x}"', "“{x}”"))
    frame = frame.replace("{q}", quote)
    ending = "." if frame.endswith("{x}") and wanted[-1].isalnum() and chance(source, 0.25) else ""
    return frame.replace("{x}", wanted + ending), wanted.rstrip(".")


def greeting_by_name(source: random.Random) -> Exchange:
    """A greeting for somebody."""
    name = a_name(source)
    frame = source.choice(("Say hello to {x}", "Say hi to {x}", "Greet {x}", "Please greet {x}", "Say hello to {x}!"))
    return typed(source, frame, courtesy=0.04).replace("{x}", name), f"Hello, {name}!"


def a_name(source: random.Random) -> str:
    """A first name, half of them invented."""
    if chance(source, 0.5):
        return source.choice(lexicon.FIRST_NAMES)
    name = lexicon.invented_word(source)
    return name if chance(source, 0.12) else name.capitalize()


FIELDS = "name age city country color title price id year email job status count size team score level key".split()


def _a_value(source: random.Random, field: str) -> str:
    if field in ("age", "price", "id", "year", "count", "size", "score", "level"):
        return str(source.randint(1, 10 ** source.randint(1, 4)))
    if field == "name":
        return a_name(source)
    return source.choice(lexicon.CITY_NAMES[:90]) if field == "city" else lexicon.any_word(source)


def json_object(source: random.Random) -> Exchange:
    """A JSON object from a list of fields."""
    fields = source.sample(FIELDS, source.choices((1, 2, 3), (3, 6, 2))[0])
    if chance(source, 0.3):
        fields = ["name", "age"] if chance(source, 0.6) else ["name", "city"]
    values = {field: _a_value(source, field) for field in fields}
    link = source.choice((" {v}", " {v}", " = {v}", ": {v}"))
    listed = [field + link.replace("{v}", value) for field, value in values.items()]
    joined = " and ".join(listed) if len(listed) < 3 else ", ".join(listed[:-1]) + " and " + listed[-1]
    frame = source.choice(
        ("Give me a JSON object with {x}", "Return JSON with {x}", "JSON with {x}", "Write a JSON object with {x}.",
         "Make a JSON object with {x}", "Answer in JSON: {x}", "Create a JSON object with {x}", "as JSON: {x}",
         "Output a JSON object with {x}.", "Reply with a JSON object with {x}", "I need a JSON object with {x}.",
         "Give me JSON for {x}", "Generate JSON with {x}", "Convert to JSON: {x}", "Return a JSON object with {x}")
    )  # fmt: skip
    pairs = (f'"{field}": {value if value.isdigit() else chr(34) + value + chr(34)}' for field, value in values.items())
    return typed(source, frame, courtesy=0.04).replace("{x}", joined), "{" + ", ".join(pairs) + "}"
