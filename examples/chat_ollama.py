"""One question to the Ollama daemon, and never to llama.cpp: ``python examples/chat_ollama.py [NAME [QUESTION]]``."""

import os
import sys

from openai import APIStatusError, OpenAI

server = os.environ.get("LLMSPELL_SERVER", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{server}/v1", api_key="unused")
name = sys.argv[1] if len(sys.argv) > 1 else "llama3.1:8b"
question = " ".join(sys.argv[2:]) or "What is the capital of France?"

try:
    # The backend after the @ is forced; "ollama/NAME" means the same.
    answer = client.chat.completions.create(
        model=f"local/{name}@ollama",
        messages=[{"role": "user", "content": question}],
        extra_body={"keep_alive": "10m"},  # how long the daemon keeps the model in memory; passed on to it
    )
except APIStatusError as error:  # no such model, no daemon: the message says what to do
    sys.exit(f"error: {error.body['message'] if isinstance(error.body, dict) else error}")

print(answer.choices[0].message.content)
