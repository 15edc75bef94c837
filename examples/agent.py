"""An agent that calls tools until it knows the answer: ``python examples/agent.py MODEL [QUESTION]``.

The model decides which function to call; this program calls it, sends back what it said, and asks again. The bundled
model (``local/demo``) knows how to ask for the weather; larger ones also know when to compute. A model that cannot
be given tools refuses them, and this program says so.
"""

import ast
import json
import operator
import os
import sys
from datetime import UTC, datetime

from openai import APIStatusError, OpenAI

server = os.environ.get("LLMSPELL_SERVER", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{server}/v1", api_key="unused")
MOST_STEPS = 8
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(expression: str) -> float:
    """Compute sums, differences, products and quotients; nothing that a model writes is run as a program."""

    def value(node: ast.AST) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
                return OPERATIONS[type(op)](value(left), value(right))
        raise ValueError("only numbers, + - * / and parentheses are allowed")

    return value(ast.parse(expression, mode="eval").body)


def get_weather(city: str) -> dict[str, object]:
    """Look the weather up; a real program would ask a weather service."""
    found = {"paris": (21, "sunny"), "oslo": (4, "snowy"), "lima": (17, "cloudy")}
    temperature, sky = found.get(city.lower(), (14, "rainy"))
    return {"temperature": temperature, "sky": sky}


def today() -> str:
    """Return the date."""
    return f"{datetime.now(UTC):%A, %Y-%m-%d}"


FUNCTIONS = {"get_weather": get_weather, "calculate": calculate, "today": today}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "The city"}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "Compute an arithmetic expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string", "description": "for example (3 + 4) * 5"}},
                "required": ["expression"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "today",
            "description": "Say which day it is.",
            "parameters": {"type": "object", "properties": {}},
        },
    },
]


def run(name: str, arguments: str) -> str:
    """Call a function as the model wants it; what goes wrong is for the model to know, which may try again."""
    try:
        return json.dumps(FUNCTIONS[name](**json.loads(arguments or "{}")))
    except (KeyError, TypeError, ValueError, SyntaxError, ArithmeticError, RecursionError) as error:
        return json.dumps({"error": f"{type(error).__name__}: {error}"})


def answer(model: str, question: str) -> str:
    """Ask, call what the model wants called, and ask again."""
    messages = [
        {
            "role": "system",
            "content": "Use the tools for the weather, dates and all arithmetic. Then answer in one sentence.",
        },
        {"role": "user", "content": question},
    ]
    for _ in range(MOST_STEPS):
        message = client.chat.completions.create(model=model, messages=messages, tools=TOOLS).choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            return message.content or ""
        for call in message.tool_calls:
            result = run(call.function.name, call.function.arguments)
            print(f"{call.function.name}({call.function.arguments}) = {result}", file=sys.stderr)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return f"(no answer after {MOST_STEPS} steps)"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/agent.py MODEL [QUESTION]; MODEL is one that knows tools, such as local/demo")
    try:
        print(answer(sys.argv[1], " ".join(sys.argv[2:]) or "What is the weather in Paris?"))
    except APIStatusError as error:
        reason = error.body["message"] if isinstance(error.body, dict) else str(error)
        if error.code == "unsupported_parameter":
            sys.exit(f"error: {sys.argv[1]} cannot be given tools here: {reason}")
        sys.exit(f"error: {reason}")
