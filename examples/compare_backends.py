"""One question to both backends, side by side: ``python examples/compare_backends.py [NAME@ollama NAME@llamacpp]``.

Without arguments it takes the first model of each. One question says little about speed: ``llmspell bench`` measures.
"""

import os
import sys

from openai import OpenAI

server = os.environ.get("LLMSPELL_SERVER", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{server}/v1", api_key="unused")
QUESTION = "What is the capital of France?"


def first_models() -> list[str]:
    """Return one model that can chat for each backend that has one."""
    found = {}
    for model in client.models.list():
        if "chat" in model.model_extra["capabilities"]:
            found.setdefault(model.model_extra["backend"], model.id)
    return [f"{name.partition('@')[0]}@{backend}" for backend, name in found.items()]


def ask(model: str) -> tuple[str, dict[str, float]]:
    """Return the answer of a model, and where its time went."""
    text, timings = "", {}
    for chunk in client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=64,
        stream=True,
        extra_body={"stream_options": {"include_timings": True}},
    ):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        timings = (chunk.model_extra or {}).get("timings") or timings
    return text, timings


models = sys.argv[1:] or first_models()
print(f"{'model':36} {'first token':>12} {'load':>9} {'tokens/s':>9}  answer")
for model in models:
    ask(model)  # loads it, so that the second answer shows what a warm model takes
    text, timings = ask(model)
    decode = timings["decode_ms"] / 1000
    speed = (timings["completion_tokens"] - 1) / decode if decode else 0
    first, load = timings["first_token_ms"], timings["load_ms"]
    print(f"{model:36} {first:9.0f} ms {load:6.0f} ms {speed:9.1f}  {' '.join(text.split())[:60]}")
