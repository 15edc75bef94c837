"""Talk to a running server with OpenAI's client: ``python examples/stream.py "Tell me a story."``."""

import os
import sys

from openai import OpenAI

server = os.environ.get("LLMSPELL_SERVER", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{server}/v1", api_key="unused")
question = " ".join(sys.argv[1:]) or "What is the capital of France?"
with client.chat.completions.stream(
    model="local/demo", messages=[{"role": "user", "content": question}], stream_options={"include_usage": True}
) as stream:
    for event in stream:
        if event.type == "content.delta":
            print(event.delta, end="", flush=True)
    usage = stream.get_final_completion().usage
print(f"\n({usage.completion_tokens} tokens)" if usage else "")
