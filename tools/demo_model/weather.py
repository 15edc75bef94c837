"""Conversations with tools: declarations of every shape, calls, results and the sentence about them."""
# ruff: noqa: E501, SIM905 (rows of data)

import json
import random
from typing import Any

from demo_model import lexicon, prose
from demo_model.phrasing import chance, typed
from demo_model.template import Message, Tool

WEATHER_NAMES = ("get_weather",) * 7 + (
    "get_current_weather", "get_current_weather", "weather", "fetch_weather", "current_weather",
)  # fmt: skip
PLACE_NAMES = ("city",) * 6 + ("location", "location", "location", "place")
TIME_NAMES = ("get_time", "get_time", "get_current_time", "current_time", "time_in")
DESCRIPTIONS = (
    "Get the weather", "Get the current weather in a given location", "Get the weather of a city.", "Weather lookup",
    "Returns the weather for a city", "Get current temperature for a given location.", "Look up the weather.",
    "Retrieves the current {a} weather report for the {n}.", "Use this when the user asks about the {n}.",
    "Fetch the weather", "Determine weather in my location", "Current weather in a city", "The weather in a city",
)  # fmt: skip
PLACE_DESCRIPTIONS = (
    "The city", "City name", "The city and state, e.g. San Francisco, CA", "Name of the city", "e.g. Paris", "A city",
    "City and country e.g. Bogotá, Colombia", "The {a} {n} of the {n}", "The city to look up", "the {n}", "The location",
)  # fmt: skip
WEATHER_QUESTIONS = (
    "What is the weather in {x}?", "What's the weather in {x}?", "How's the weather in {x} today?", "weather in {x}",
    "How is the weather in {x}?", "What's the weather like in {x}?", "What is the weather like in {x} today?",
    "Weather {x}", "Tell me the weather in {x}.", "Is it raining in {x}?", "What is the temperature in {x}?",
    "How warm is it in {x}?", "Will it rain in {x} today?", "Can you check the weather in {x}?", "Is it cold in {x}?",
    "Get the weather for {x}.", "Give me the weather in {x}", "What is the current weather in {x}?", "{x} weather",
    "How hot is it in {x} right now?", "weather for {x}?", "Look up the weather in {x}.", "Check the weather in {x}",
    "I am in {x}. What is the weather?", "Do I need an umbrella in {x}?", "What is the forecast for {x}?",
    "What's the weather in {x} right now?", "Is it sunny in {x}?", "What will the weather be like in {x} tomorrow?",
    "Use the tool to get the weather in {x}.", "Please call get_weather for {x}.", "What's the temperature in {x} now?",
    "What is the weather in {x} today?", "Could you tell me what the weather is like in {x}?", "Show me the weather in {x}",
)  # fmt: skip
FOLLOW_UPS = ("And in {x}?", "What about {x}?", "And {x}?", "How about {x}?", "And what about {x}?", "and in {x}")
PAIR_QUESTIONS = (
    "What is the weather in {x} and {y}?", "What's the weather in {x} and in {y}?", "weather in {x} and {y}",
    "How is the weather in {x} and {y}?", "Compare the weather in {x} and {y}.", "Tell me the weather in {x} and {y}.",
    "What's the weather like in {x} and {y} today?", "Get the weather for {x} and {y}.", "Is it raining in {x} and {y}?",
)  # fmt: skip
TIME_QUESTIONS = (
    "What time is it in {x}?", "What's the time in {x}?", "time in {x}", "Tell me the time in {x}.",
    "What is the current time in {x}?", "What is the local time in {x}?", "How late is it in {x}?",
)  # fmt: skip
NO_PLACE_QUESTIONS = (
    "What is the weather?", "How's the weather?", "What's the weather like today?", "Is it raining?", "weather",
    "Will it rain today?", "Is it sunny?", "What is the weather like?",
)  # fmt: skip
SKIES = (
    "sunny cloudy rainy clear windy foggy snowy stormy warm cold hazy overcast partly_cloudy light_rain fair".split()
)


def _a_city(source: random.Random) -> str:
    if chance(source, 0.45):
        city = source.choice(lexicon.CITY_NAMES)
    else:
        count = 2 if chance(source, 0.15) else 1
        city = " ".join(lexicon.invented_word(source).capitalize() for _ in range(count))
    return city.lower() if chance(source, 0.15) else city


def _described(source: random.Random, texts: tuple[str, ...]) -> dict[str, str]:
    if chance(source, 0.2):
        return {}
    if chance(source, 0.08):
        return {"description": prose.text(source, 1)}
    return {"description": prose.filled(source, source.choice(texts))}


def _extra_property(source: random.Random) -> tuple[str, dict[str, Any]]:
    if chance(source, 0.6):
        units = source.choice((["celsius", "fahrenheit"], ["C", "F"], ["metric", "imperial"]))
        return source.choice(("unit", "units")), {"type": "string", "enum": units}
    name = source.choice(("days", "date", "country", "detailed", "lang", lexicon.invented_word(source)))
    return name, {
        "type": source.choice(("string", "integer", "boolean")),
        **_described(source, ("The {n}", "the {a} {n}")),
    }


def _schema(source: random.Random, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if chance(source, 0.75):
        parameters["required"] = required
    if chance(source, 0.3):
        parameters["additionalProperties"] = False
    return parameters


def _declared(source: random.Random, name: str, texts: tuple[str, ...], parameters: dict[str, Any]) -> Tool:
    function: dict[str, Any] = {"name": name, **_described(source, texts), "parameters": parameters}
    if chance(source, 0.2):
        function["strict"] = True
    return {"type": "function", "function": function}


def _place_tool(source: random.Random, name: str, place: str, texts: tuple[str, ...]) -> Tool:
    pairs = [(place, {"type": "string", **_described(source, PLACE_DESCRIPTIONS)})]
    if chance(source, 0.3):
        pairs.insert(0 if chance(source, 0.25) else 1, _extra_property(source))
    required = [key for key, _ in pairs] if chance(source, 0.1) else [place]
    return _declared(source, name, texts, _schema(source, dict(pairs), required))


def _other_tool(source: random.Random) -> Tool:
    word = source.choice(lexicon.NOUNS) if chance(source, 0.7) else lexicon.invented_word(source)
    name = source.choice((f"get_{word}", f"{source.choice(lexicon.VERBS)}_{word}", "search", "add", "send_email", word))
    keys = source.choice((["query"], ["a", "b"], ["to", "body"], [word], [lexicon.invented_word(source)], []))
    kind = source.choice(("string", "number", "integer"))
    properties = {key: {"type": kind, **_described(source, ("The {n}", "the {a} {n}"))} for key in keys}
    texts = ("{v} the {n}", "Use this to {v} a {n}.", "Get the {n} of a {n}", "Search the web", "Add two numbers")
    return _declared(source, name, texts, _schema(source, properties, keys))


def other_tools(source: random.Random) -> list[Tool]:
    """Tools that have nothing to do with the weather, mostly none."""
    tools = [_other_tool(source) for _ in range(source.choices((0, 1, 2), (6, 2.5, 1))[0])]
    if chance(source, 0.15):
        tools.append(_time_tool(source, source.choice(TIME_NAMES), source.choice(PLACE_NAMES)))
    return tools


def _time_tool(source: random.Random, name: str, place: str) -> Tool:
    return _place_tool(
        source, name, place, ("Get the time", "The current time in a city", "Get the {a} time", "The time")
    )


def call(name: str, place: str, city: str) -> Message:
    """A tool call as it stands in an assistant message."""
    return {"function": {"name": name, "arguments": {place: city}}}


def _measured(source: random.Random) -> dict[str, Any]:
    """A result as a JSON object, some with the city in it."""
    sky = source.choice(SKIES) if chance(source, 0.7) else " ".join(lexicon.any_word(source) for _ in range(2))
    fields: dict[str, Any] = {
        source.choice(("temperature", "temp", "temperature_c", "temp_c", "degrees")): source.choice(
            (source.randint(-20, 45), round(source.uniform(-20, 45), 1), f"{source.randint(-9, 40)}°C")
        ),
        source.choice(("condition", "conditions", "sky", "weather", "description", "forecast")): sky,
    }
    if chance(source, 0.3):
        fields[source.choice(("humidity", "wind", "wind_kph", "rain"))] = source.randint(0, 100)
    if chance(source, 0.2):
        fields["unit"] = source.choice(("celsius", "C", "fahrenheit"))
    names = source.sample(list(fields), len(fields))
    return {name: fields[name] for name in names[: 1 if chance(source, 0.1) else None]}


def _spoken(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def _reported(source: random.Random) -> str:
    degrees = source.randint(-20, 45)
    sky = source.choice(SKIES).replace("_", " ")
    shapes = (
        f"{degrees} degrees and {sky}", f"{sky.capitalize()}, {degrees}°C", f"{sky}", f"{degrees}°C", f"{degrees} C, {sky}",
        f"{sky} with {degrees} degrees", f"It is {sky} and {degrees} degrees", f"{sky}, {degrees} degrees", f"{degrees}",
        f"{sky.capitalize()} {degrees}°F", f"{sky} and {source.choice(SKIES)}", f"It is {sky} today", f"{degrees}C {sky}",
        " ".join(lexicon.any_word(source) for _ in range(source.randint(1, 6))), f"Temperature: {degrees}, sky: {sky}",
    )  # fmt: skip
    return source.choice(shapes)


def _tool_result(source: random.Random, city: str) -> tuple[str, str]:
    """What the tool says, and how the assistant says it."""
    if chance(source, 0.5):
        said = _reported(source)
        return said + ("." if chance(source, 0.15) and said[-1].isalnum() else ""), said
    fields = _measured(source)
    content = json.dumps(fields, ensure_ascii=False)
    if chance(source, 0.2):
        key = source.choice(("city", "location"))
        content = json.dumps({key: city, **fields}, ensure_ascii=False)
    elif chance(source, 0.1):
        content = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return content, _spoken(fields)


def _called(source: random.Random, question: str, tool: str, place: str, cities: list[str], what: str) -> list[Message]:
    """A question, its calls, mostly their results, and the sentence about them."""
    calls = [call(tool, place, city) for city in cities]
    messages: list[Message] = [
        {"role": "user", "content": question}, {"role": "assistant", "content": "", "tool_calls": calls},
    ]  # fmt: skip
    sentences = []
    for city in cities:
        content, said = _tool_result(source, city) if what == "weather" else _a_time(source)
        messages.append({"role": "tool", "content": content})
        sentences.append(f"The {what} in {city}: {said}.")
    return [*messages, {"role": "assistant", "content": " ".join(sentences)}]


def _a_time(source: random.Random) -> tuple[str, str]:
    said = f"{source.randint(0, 23)}:{source.randint(0, 59):02d}"
    return (said, said) if chance(source, 0.6) else (json.dumps({"time": said}), f"time {said}")


def _asked(source: random.Random, frames: tuple[str, ...], city: str) -> str:
    return typed(source, source.choice(frames), courtesy=0.08).replace("{x}", city)


def weather_turns(source: random.Random) -> tuple[list[Message], list[Tool]]:
    """A weather question or two with the tool at hand."""
    name, place = source.choice(WEATHER_NAMES), source.choice(PLACE_NAMES)
    tools = [_place_tool(source, name, place, DESCRIPTIONS), *other_tools(source)]
    if chance(source, 0.12):
        first, second = _a_city(source), _a_city(source)
        question = _asked(source, PAIR_QUESTIONS, first).replace("{y}", second)
        return _called(source, question, name, place, [first, second], "weather"), _mixed(source, tools)
    city = _a_city(source)
    messages = _called(source, _asked(source, WEATHER_QUESTIONS, city), name, place, [city], "weather")
    if chance(source, 0.12):
        other = _a_city(source)
        messages += _called(source, _asked(source, FOLLOW_UPS, other), name, place, [other], "weather")
    return messages, _mixed(source, tools)


def time_turns(source: random.Random) -> tuple[list[Message], list[Tool]]:
    """A question for the time with the tool at hand."""
    name, place, city = source.choice(TIME_NAMES), source.choice((*PLACE_NAMES, "timezone")), _a_city(source)
    tools = [_time_tool(source, name, place)]
    if chance(source, 0.5):
        tools.append(_place_tool(source, "get_weather", place, DESCRIPTIONS))
    return _called(source, _asked(source, TIME_QUESTIONS, city), name, place, [city], "time"), _mixed(source, tools)


def _mixed(source: random.Random, tools: list[Tool]) -> list[Tool]:
    return source.sample(tools, len(tools))


def idle_tools(source: random.Random) -> list[Tool]:
    """Tools for a conversation that needs none."""
    weather = _place_tool(source, source.choice(WEATHER_NAMES), source.choice(PLACE_NAMES), DESCRIPTIONS)
    return _mixed(source, [weather, *other_tools(source)])


def weather_without_tool(source: random.Random) -> str:
    """A weather question."""
    if chance(source, 0.3):
        return typed(source, source.choice(NO_PLACE_QUESTIONS))
    return _asked(source, WEATHER_QUESTIONS, _a_city(source))
