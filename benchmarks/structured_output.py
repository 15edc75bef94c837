"""What structured output costs: generation under a nested schema, the use of a schema, and taking answers apart.

    benchmarks/structured_output.py /tmp/quarter.gguf [--rounds 5] [--only speed|schemas|parsing]

*speed*: a real server serves 8 streams of the given model, by turns free and under a schema that never ends. What a
schema leaves no choice about is not sampled and computed together with what follows, so that a step can have more than
one token; events tell steps, of which there is one for each stream. Random weights know nothing of JSON: almost every
token of its structure is refused and drawn again, which is the worst case.

*schemas*: first tokens of requests that are free, that bring a schema never seen before, and that bring it again, by
turns, one at a time, of a model with tiny weights and a vocabulary of 151 936 tokens. Models with tiny weights compute
a prompt in no time, so that the difference is what the schema costs. The server's CPU time tells the same where others
use the machine.

*parsing*: CPU time of the engine's and the format's part of an answer that comes in pieces of four characters, without
the model, for every format.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import orjson
from server_process import ServerProcess, chat_body, running_server, stream

from server.chat.answer_format import AnswerFormat, AnswerPlan, ReasoningStart
from server.chat.formats import FORMATS
from server.core.request import Tool
from server.engine.answer import ParsedAnswer
from server.grammar.compiler import GrammarCompiler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from gguf_shapes import TINY, write_llama

NUM_STREAMS = 8
NUM_SCHEMAS = 20
MODEL = "local/measured"
PIECE_LEN = 4
MOST_CALL_BYTES = 20_000
VOCABULARY_SIZE = 151_936
PROSE = (
    "The quick brown fox, which nobody saw, jumps over 12 lazy dogs; it's 3 < 4 (or \u201cso they say\u201d).\n" * 20
)
_numbers = count(1)

Schema = Mapping[str, object]


def trips(*, least: int = 0, name: str = "trips") -> Schema:
    """Return a nested schema; of ``least`` items if it is not to end."""
    place = object_of({"name": {"type": "string", "maxLength": 24}, "latitude": {"type": "number", "maximum": 90}})
    days = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 366}, "minItems": 1, "maxItems": 5}
    classes = {"enum": ["first", "second", "night train"]}
    trip = object_of({"from": place, "to": place, "days": days, "class": classes, "is_paid": {"type": "boolean"}})
    return object_of({name: {"type": "array", "items": trip, "minItems": least}})


def object_of(properties: Schema) -> dict[str, object]:
    """Return the schema of an object that has these properties and no others."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def under(schema: Schema) -> dict[str, object]:
    """Return the part of a request that demands an answer under a schema."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


@contextmanager
def serving(path: Path, threads: int) -> Iterator[ServerProcess]:
    """Run a server for one model; two threads that wait for each other suffer most where others use the machine."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        config.write_text(
            f"[llamacpp]\nthreads = {threads}\n[models.{json.dumps(MODEL)}]\npath = {json.dumps(str(path))}\n"
        )
        with running_server("--config", str(config)) as server:
            yield server


# Speed.


@dataclass(frozen=True, slots=True)
class Stream:
    """What was read of a stream: the times of the first and the last event, their number, and that of the tokens."""

    first: float
    last: float
    num_events: int
    num_tokens: int


def read(port: int, body: dict[str, object]) -> Stream:
    """Read a stream to its end."""
    arrivals, received = [], []
    for arrived, data in stream(port, body | {"stream_options": {"include_usage": True}}):
        if b"data: {" in data:
            arrivals.append(arrived)
        received.append(data)
    events = [orjson.loads(line[6:]) for line in b"".join(received).split(b"\n") if line.startswith(b"data: {")]
    if not events or "error" in events[-1] or not events[-1].get("usage"):
        sys.exit(f"a stream broke off: {b''.join(received)[-300:]!r}")
    said = sum(bool(choice["delta"].get("content")) for event in events for choice in event["choices"])
    return Stream(arrivals[0], arrivals[-1], said, events[-1]["usage"]["completion_tokens"])


def speeds(port: int, num_tokens: int, extra: Mapping[str, object]) -> tuple[float, float]:
    """Serve one round of streams and return tokens and events per second of all together."""
    bodies = [
        chat_body(MODEL, f"Question {next(_numbers)}", num_tokens, ignore_eos=True, **extra) for _ in range(NUM_STREAMS)
    ]
    with ThreadPoolExecutor(NUM_STREAMS) as clients:
        streams = [*clients.map(read, [port] * NUM_STREAMS, bodies)]
    seconds = max(each.last for each in streams) - min(each.first for each in streams)
    return sum(each.num_tokens for each in streams) / seconds, sum(each.num_events for each in streams) / seconds


def measure_speed(path: Path, num_rounds: int, num_tokens: int, threads: int) -> None:
    """Print the table of speeds."""
    endless = under(trips(least=1000))
    with serving(path, threads) as server:
        for warm_up in ({}, endless):
            speeds(server.port, 8, warm_up)
        rounds = []
        for turn in range(num_rounds):
            order: Sequence[Mapping[str, object]] = ({}, endless) if turn % 2 else (endless, {})
            pair = [speeds(server.port, num_tokens, extra) for extra in order]
            rounds.append((pair[0], pair[1]) if turn % 2 else (pair[1], pair[0]))
    print("| 8 streams | free | under a schema | ratio, median (range) |\n| --- | --- | --- | --- |")
    for column, name in enumerate(("tokens/s", "events/s")):
        free, bound = ([each[side][column] for each in rounds] for side in (0, 1))
        ratios = [ours / theirs for theirs, ours in zip(free, bound, strict=True)]
        print(f"| {name} | {statistics.median(free):.1f} | {statistics.median(bound):.1f} | {spread(ratios, '.3f')} |")


# Schemas.


def first_token(server: ServerProcess, extra: Mapping[str, object]) -> tuple[float, float]:
    """Return the milliseconds from sending a request to its first token, and of CPU time that all of it took."""
    body = chat_body(MODEL, f"Question {next(_numbers)}", 1, ignore_eos=True, **extra)
    sent, used = time.perf_counter(), sum(server.process.cpu_times()[:2])
    seconds = read(server.port, body).first - sent
    return seconds * 1e3, (sum(server.process.cpu_times()[:2]) - used) * 1e3


def measure_schemas() -> None:
    """Print the table of what schemas cost at their uses."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wide.gguf"
        write_llama(path, replace(TINY, vocabulary=VOCABULARY_SIZE))
        with serving(path, threads=1) as server:
            for extra in ({}, under(trips())):
                first_token(server, extra)
            rounds = []
            for _ in range(NUM_SCHEMAS):
                schema = under(trips(name=f"trips_{next(_numbers)}"))
                rounds.append([first_token(server, extra) for extra in ({}, schema, schema)])
    print("| schema | first token, ms, median (range) | beyond a free one, ms | CPU, ms, mean |")
    print("| --- | --- | --- | --- |")
    for place, name in enumerate(("none", "first use", "later use")):
        times = [each[place][0] for each in rounds]
        added = [each[place][0] - each[0][0] for each in rounds]
        used = statistics.fmean(each[place][1] for each in rounds)
        print(f"| {name} | {spread(times, '.1f')} | {spread(added, '.2f')} | {used:.1f} |")


# Parsing.


class Pieces:
    """``Vocabulary`` of the pieces of one text, each of which is a token."""

    end_tokens = ()

    def __init__(self, text: str) -> None:
        """Cut a text into pieces."""
        self._pieces = [text[begin : begin + PIECE_LEN].encode() for begin in range(0, len(text), PIECE_LEN)]

    def __len__(self) -> int:
        return len(self._pieces)

    def piece(self, token: int) -> bytes:
        """Bytes of a piece."""
        return self._pieces[token]

    def is_end(self, _token: int) -> bool:
        """No piece ends a turn."""
        return False


def microseconds_per_piece(answer_format: AnswerFormat, plan: AnswerPlan, text: str, num_rounds: int) -> list[float]:
    """Return the CPU time of taking a text apart, for each piece of it, in some rounds."""
    pieces = Pieces(text)
    costs = []
    for _ in range(num_rounds):
        answer = ParsedAnswer(0, pieces, (), answer_format.parser(plan), {}, None)
        before = time.process_time()
        for token in range(len(pieces)):
            answer.push(token, None)
        answer.finish()
        costs.append((time.process_time() - before) / len(pieces) * 1e6)
    return costs


def made_up_call(answer_format: AnswerFormat, plan: AnswerPlan) -> str:
    """Make up an answer of bytes that the format's grammar allows, at random."""
    grammar = answer_format.grammar(plan, lambda _: None)
    if grammar is None:
        sys.exit(f"{answer_format.name} forces no calls")
    end = 256
    compiled = GrammarCompiler([*(bytes([byte]) for byte in range(end)), b""], [end], [end], None).compile(grammar)
    for seed in count():
        numbers, constraint, said = random.Random(seed), compiled.start(), bytearray()
        while not constraint.is_complete and len(said) < MOST_CALL_BYTES:
            token = int(numbers.choice(constraint.allowed().nonzero()[0]))
            if token == end:
                return said.decode()
            constraint.accept(token)
            said.append(token)
        if constraint.is_complete:
            return said.decode()
    raise AssertionError  # there are always more seeds


def measure_parsing(num_rounds: int) -> None:
    """Print the table of formats."""
    tool = Tool("book_trips", None, trips(least=8))
    plan = AnswerPlan(tools=(tool,), must_call=True, is_parallel=False)
    print("| format | thinking and text, µs a token | a call, µs a token |\n| --- | --- | --- |")
    for answer_format in FORMATS:
        thinks = replace(plan, reasoning=ReasoningStart.OPEN if answer_format.thinking_end else ReasoningStart.NEVER)
        said = PROSE + (answer_format.thinking_end or "") + PROSE
        call = made_up_call(answer_format, plan)
        costs = [microseconds_per_piece(answer_format, thinks, said, num_rounds)]
        costs.append(microseconds_per_piece(answer_format, plan, call, num_rounds))
        print(f"| {answer_format.name} | {' | '.join(spread(each, '.1f') for each in costs)} |")


def spread(values: Sequence[float], form: str) -> str:
    """Write the median and the range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file with a large vocabulary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each stream")
    parser.add_argument("--threads", type=int, default=0, help="of the model; 1 where others use the machine")
    parser.add_argument("--only", choices=("speed", "schemas", "parsing"))
    arguments = parser.parse_args()
    if arguments.only in {None, "parsing"}:
        measure_parsing(arguments.rounds)
    if arguments.only in {None, "schemas"}:
        measure_schemas()
    if arguments.only in {None, "speed"}:
        measure_speed(arguments.model, arguments.rounds, arguments.tokens, arguments.threads)


if __name__ == "__main__":
    main()
