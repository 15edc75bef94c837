"""A model with random weights says what a thousand schemas demand, through the engine and every format of calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest
from gguf_shapes import LlamaShape, write_llama
from random_schemas import RandomSchemas

import server
from server.chat.formats import FORMATS
from server.core.errors import InvalidRequest, LlmspellError
from server.core.events import ChoiceFinished, Event, Failed, Finished, FinishReason, TextDelta, ToolCallDelta
from server.core.model_spec import parse_model_spec
from server.core.request import (
    ChatRequest,
    JsonSchemaFormat,
    Message,
    ReasoningOutput,
    Role,
    SamplingParameters,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from server.engine.engine import Delivery, Engine, EngineOptions
from server.engine.sequence import GenerationRequest
from server.grammar.compiler import GrammarCompiler
from server.grammar.schema import check_schema
from server.pool.answering import AnswerShaper

pytest.importorskip("llama_cpp")

from server.llama.model import ContextOptions, LlamaModel, LoadOptions
from server.llama.runner import LlamaRunner

Schema = Mapping[str, object]

NUM_SCHEMAS = 1_000
NUM_CALLS = 100
NUM_SEQUENCES = 16
MAX_TOKENS = 240
PROMPT = np.arange(40, 48, dtype=np.int32)
DEMO_MODEL = Path(server.__file__).parent / "assets" / "demo.gguf"
MESSAGES = (Message(Role.USER, "x"),)


@dataclass
class Heard:
    """What the events of one request say."""

    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    reason: FinishReason | None = None
    error: LlmspellError | None = None
    is_over: bool = False

    def hear(self, event: Event) -> None:
        match event:
            case TextDelta(text=text):
                self.text += text
            case ToolCallDelta(name=str(name), arguments=first):
                self.calls.append((name, first))
            case ToolCallDelta(arguments=more):
                name, arguments = self.calls[-1]
                self.calls[-1] = (name, arguments + more)
            case ChoiceFinished(reason=reason):
                self.reason = reason
            case Failed(error=error):
                self.error, self.is_over = error, True
            case Finished():
                self.is_over = True


class Bench:
    """A loaded model with its engine, stepped by hand."""

    def __init__(self, path: Path) -> None:
        self._model = LlamaModel.load(path, LoadOptions())
        self.vocabulary = self._model.vocabulary
        cells = NUM_SEQUENCES * 256
        self._runner = LlamaRunner(self._model, ContextOptions(NUM_SEQUENCES, cells, 256, 256, threads=1))
        self._heard: dict[int, Heard] = {}
        self._engine = Engine(self._runner, self.vocabulary, self._deliver, EngineOptions(queue_size=4 * NUM_SEQUENCES))
        control = self.vocabulary.control_ids
        self.compiler = GrammarCompiler(
            self.vocabulary.pieces, set(control.values()), self.vocabulary.end_tokens, self.vocabulary.tokenize_text
        )
        pieces = self.vocabulary.pieces
        likely = [token for token, piece in enumerate(pieces) if piece and piece.strip(b' "}],:') == b""]
        self._bias = tuple((token, 4.0) for token in [*likely, *self.vocabulary.end_tokens])

    def shaper(self, number: int) -> AnswerShaper:
        """Return what holds answers to one of the formats."""
        return AnswerShaper(
            FORMATS[number % len(FORMATS)],
            self.compiler,
            self.vocabulary.control_ids,
            lambda text: np.array(self.vocabulary.tokenize_text(text.encode()), dtype=np.int32),
            ReasoningOutput.SPLIT,
        )

    def ask(self, shaper: AnswerShaper, request: ChatRequest, seed: int) -> Heard:
        """Submit a request."""
        answering = shaper.shape(request, ["<think>", "</think>"])
        heard = Heard()
        generation = GenerationRequest(
            PROMPT,
            SamplingParameters(seed=seed, logit_bias=self._bias),
            MAX_TOKENS,
            new_parser=answering.new_parser,
            new_constraint=answering.new_constraint,
            markers=answering.markers,
        )
        self._heard[self._engine.submit(generation)] = heard
        return heard

    def run(self, heard: Sequence[Heard]) -> None:
        """Compute until some requests are over."""
        while not all(each.is_over for each in heard):
            self._engine.step(wait=False)

    def close(self) -> None:
        self._engine.close()
        self._runner.close()
        self._model.close()

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for generation_id, events in deliveries:
            for event in events:
                self._heard[generation_id].hear(event)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    path = tmp_path_factory.mktemp("random") / "model.gguf"
    write_llama(path, LlamaShape(layers=1, width=32, heads=2, kv_heads=1, hidden=32))
    made = Bench(path)
    yield made
    made.close()


def enforceable(wrap: Callable[[Schema], Schema], most: int) -> Iterator[tuple[int, Schema]]:
    """Yield schemas that can be enforced, and their seeds."""
    num_found, seed = 0, 0
    while num_found < most:
        seed += 1
        schema = wrap(RandomSchemas(seed).schema())
        try:
            check_schema(schema, strict=True, param="schema")
        except InvalidRequest:
            continue
        num_found += 1
        yield seed, schema


def as_argument(schema: Schema) -> Schema:
    """Return the schema of arguments of which one is described by a schema."""
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    return {"type": "object", "properties": {"it": inner}, "required": ["it"], "$defs": schema.get("$defs", {})}


def in_batches(asked: Iterator[tuple[Heard, Schema]], bench: Bench) -> Iterator[tuple[Heard, Schema]]:
    """Yield what was answered, computed together."""
    waiting: list[tuple[Heard, Schema]] = []
    for one in asked:
        waiting.append(one)
        if len(waiting) == 2 * NUM_SEQUENCES:
            bench.run([heard for heard, _ in waiting])
            yield from waiting
            waiting = []
    bench.run([heard for heard, _ in waiting])
    yield from waiting


def is_valid(text: str, schema: Schema) -> bool:
    validator = jsonschema_rs.validator_for(dict(schema), validate_formats=True, offline=True)
    return validator.is_valid(json.loads(text, parse_float=number))


def number(text: str) -> Decimal:
    """Read a number of any size; one whose exponent is beyond all bounds is as good as another."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("1e999")


def test_every_finished_answer_is_valid(bench: Bench) -> None:
    check_answers(bench, NUM_SCHEMAS)


def test_the_demo_model_keeps_to_schemas_as_well() -> None:
    bench = Bench(DEMO_MODEL)
    check_answers(bench, NUM_SCHEMAS // 20)
    bench.close()


def check_answers(bench: Bench, num_schemas: int) -> None:
    def ask() -> Iterator[tuple[Heard, Schema]]:
        for seed, schema in enforceable(dict, num_schemas):
            wanted = JsonSchemaFormat(schema, strict=True)
            request = ChatRequest(parse_model_spec("x"), MESSAGES, response_format=wanted)
            yield bench.ask(bench.shaper(seed), request, seed), schema

    num_finished = 0
    for heard, schema in in_batches(ask(), bench):
        assert heard.error is None, (schema, heard)
        if heard.reason is FinishReason.STOP:
            assert is_valid(heard.text, schema), (schema, heard.text)
            num_finished += 1
    assert num_finished > num_schemas * 0.4


@pytest.mark.parametrize("named", [True, False], ids=["named", "required"])
def test_a_forced_call_is_one_with_valid_arguments(bench: Bench, *, named: bool) -> None:
    def ask() -> Iterator[tuple[Heard, Schema]]:
        for seed, schema in enforceable(as_argument, NUM_CALLS):
            tool = Tool("do_it", None, schema)
            choice = ToolChoice(ToolChoiceMode.REQUIRED, tool.name if named else None)
            request = ChatRequest(parse_model_spec("x"), MESSAGES, tools=(tool,), tool_choice=choice)
            yield bench.ask(bench.shaper(seed), request, seed), tool.parameters

    num_finished = 0
    for heard, schema in in_batches(ask(), bench):
        assert heard.error is None, (schema, heard)
        if heard.reason is FinishReason.LENGTH:
            continue
        assert heard.reason is FinishReason.TOOL_CALLS, (schema, heard)
        for name, arguments in heard.calls:
            assert name == "do_it"
            assert is_valid(arguments, schema), (schema, heard)
        num_finished += 1
    assert num_finished > NUM_CALLS * 0.4
