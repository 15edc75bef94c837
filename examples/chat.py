"""A conversation with whatever serves a model: ``python examples/chat.py [MODEL]``, then one question a line.

``local/NAME`` is Ollama if the daemon has the model, else llama.cpp in the server; each answer says who gave it.
"""

import os
import sys

from openai import APIStatusError, OpenAI

server = os.environ.get("LLMSPELL_SERVER", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{server}/v1", api_key="unused")
model = sys.argv[1] if len(sys.argv) > 1 else "local/demo"
messages = []

for line in sys.stdin:
    messages.append({"role": "user", "content": line.strip()})
    answer = ""
    try:
        create = client.chat.completions.with_streaming_response.create
        with create(model=model, messages=messages, stream=True) as response:
            for chunk in response.parse():
                text = chunk.choices[0].delta.content if chunk.choices else None
                print(text or "", end="", flush=True)
                answer += text or ""
            print(f"\n({response.headers['x-llmspell-backend']})")
    except APIStatusError as error:  # no such model, say: the message tells what to do
        sys.exit(f"error: {error.body['message'] if isinstance(error.body, dict) else error}")
    messages.append({"role": "assistant", "content": answer})
