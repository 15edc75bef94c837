"""Time to the first token of a short prompt over HTTP, beside what llama.cpp alone needs for the same prompt.

A real server and a bare context in this process hold the same model; they take turns with prompts of the same length,
so the difference of the medians is what everything around the model costs: HTTP, template, tokenizer, scheduling,
sampling.
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import datetime
from pathlib import Path

from server_process import chat_body, running_server, stream

from server.chat.conversation import Conversation
from server.chat.render_process import RenderProcess
from server.chat.template import CHATML, ChatTemplate
from server.core.batch import Chunk
from server.core.request import Message, Role
from server.llama.model import ContextOptions, LlamaModel, LoadOptions
from server.llama.runner import LlamaRunner


def first_token_seconds(port: int, model: str, text: str) -> float:
    """Return the time from before connecting until the first chunk with text."""
    started = time.perf_counter()
    for arrived, data in stream(port, chat_body(model, text, 2, temperature=0, ignore_eos=True)):
        if b'"delta":{"content":"' in data:
            return arrived - started
    raise SystemExit("no text arrived")


def bare_seconds(runner: LlamaRunner, tokens: list[int]) -> float:
    """Return the time that llama.cpp needs for the logits of the prompt."""
    runner.clear(0)
    started = time.perf_counter()
    runner.decode([Chunk(0, 0, tokens, num_rows=1)])
    return time.perf_counter() - started


def main() -> None:
    """Measure the given model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file with ChatML tokens")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    model = LlamaModel.load(arguments.model, LoadOptions(gpu_layers=-1, use_mmap=True, use_mlock=False), lambda _: True)
    runner = LlamaRunner(model, ContextOptions(1, 512, 512, 512))
    source = model.chat_template or CHATML
    renderer = RenderProcess(source)
    template = ChatTemplate(source, renderer, bos_text="", eos_text="", control_texts=(), now=datetime.now)
    served, bare, num_tokens = [], [], 0
    with renderer, running_server("--model", str(arguments.model)) as server:
        for number in range(arguments.rounds):
            text = f"{number} is the number of this question; please say something about it."
            tokens = model.vocabulary.tokenize(template.render(Conversation((Message(Role.USER, text),)))).tolist()
            num_tokens = len(tokens)
            bare.append(bare_seconds(runner, tokens))
            served.append(first_token_seconds(server.port, f"local/{arguments.model.stem}", text))
    ours = statistics.median(served) - statistics.median(bare)
    print("| prompt tokens | first token over HTTP, median | llama_decode alone, median | ours |")
    print("| --- | --- | --- | --- |")
    print(
        f"| {num_tokens} | {statistics.median(served) * 1e3:.1f} ms | {statistics.median(bare) * 1e3:.1f} ms | "
        f"{ours * 1e3:.1f} ms ({ours / statistics.median(served):.1%}) |"
    )


if __name__ == "__main__":
    main()
