"""One question to llama.cpp in the server, and what it took: ``python examples/chat_llamacpp.py [NAME [QUESTION]]``.

The first token is timed here, at the client. What the server says of it (``include_timings``) tells where time went.
"""

import os
import sys
import time

from openai import APIStatusError, OpenAI

server = os.environ.get("LLMSPELL_SERVER", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{server}/v1", api_key="unused")
name = sys.argv[1] if len(sys.argv) > 1 else "demo"
question = " ".join(sys.argv[2:]) or "Tell me a story."

asked = time.perf_counter()
first_token, timings = None, {}
try:
    stream = client.chat.completions.create(
        model=f"local/{name}@llamacpp",
        messages=[{"role": "user", "content": question}],
        stream=True,
        extra_body={"stream_options": {"include_timings": True}},  # an extension: OpenAI's package does not know it
    )
    for chunk in stream:
        if text := chunk.choices[0].delta.content if chunk.choices else None:
            first_token = first_token or time.perf_counter() - asked
            print(text, end="", flush=True)
        timings = (chunk.model_extra or {}).get("timings") or timings
except APIStatusError as error:
    sys.exit(f"error: {error.body['message'] if isinstance(error.body, dict) else error}")

decode, tokens = timings["decode_ms"] / 1000, timings["completion_tokens"]
print(f"\n\nfirst token  {1000 * (first_token or 0):.0f} ms, as seen from here")
print(f"             {timings['first_token_ms']:.0f} ms in the server, the load included")
print(f"load         {timings['load_ms'] / 1000:.2f} s (0 if the model was in memory)")
print(f"prompt       {timings['prompt_tokens']} tokens, {timings['cached_tokens']} of them known from before")
print(f"speed        {(tokens - 1) / decode if decode else 0:.1f} tokens/s, {tokens} tokens")
