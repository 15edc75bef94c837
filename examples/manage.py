"""What the server has, and getting more of it: ``python examples/manage.py [SPEC]``, which is pulled if it is missing.

The client of this project manages; for inference take the ``openai`` package, as the other examples do. The server is
the one that LLMSPELL_SERVER names, else the one on port 8000; it must be on this machine.
"""

import sys

from server.client import LocalLLM
from server.core.errors import LlmspellError, ModelNotFound
from server.core.pulling import PullNotice, PullProgress


def show_server(llm: LocalLLM) -> None:
    """Print what runs, and what is in memory."""
    status = llm.status()
    print(f"llmspell {status.version} at {llm.url}")
    for backend in status.backends:
        print(f"  {backend.name}: {'up' if backend.is_up else backend.reason}")
    for model in status.models:
        print(f"  in memory: {model.id} ({model.state}, {(model.memory_bytes or 0) / 1e6:.1f} MB)")


def pull(llm: LocalLLM, spec: str) -> None:
    """Download a model; Ctrl-C leaves something that the next call goes on with."""
    for event in llm.pull(spec):
        match event:
            case PullProgress(total_bytes=0):
                print(f"\r{event.activity}", end="", file=sys.stderr)
            case PullProgress():
                speed = event.bytes_per_second / 1e6
                print(f"\r{event.activity} {event.fraction:6.1%} at {speed:.1f} MB/s", end="", file=sys.stderr)
            case PullNotice():
                print(f"\n{event.message}", file=sys.stderr)
    print(file=sys.stderr)


def main(spec: str) -> None:
    """Make sure that a model is there and in memory, and say so."""
    with LocalLLM() as llm:
        show_server(llm)
        for installed in llm.list():
            print(f"  on disk: {installed.model} ({installed.backend}, {installed.size_bytes / 1e6:.1f} MB)")
        try:
            details = llm.show(spec)
        except ModelNotFound:
            pull(llm, spec)
            details = llm.show(spec)
        print(f"{spec}: {details.architecture}, {details.installed.context_length} tokens of context")
        loaded = llm.load(spec)
        print(f"loaded: {loaded.id}, {(loaded.memory_bytes or 0) / 1e6:.1f} MB")
        print(f"unloaded: {llm.unload(spec).state}")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "local/demo")
    except LlmspellError as error:
        sys.exit(f"error: {error.message}")
