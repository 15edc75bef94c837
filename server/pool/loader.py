"""From a plan to a model that can generate: the blocking part of a load, which gives everything back if it fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from weakref import WeakSet

import numpy as np

from server.chat.conversation import Conversation
from server.chat.formats import choose_format, generic_format
from server.chat.render_process import RenderProcess
from server.chat.template import ChatTemplate
from server.core.errors import ContextLengthExceeded, InvalidRequest, LlmspellError, ModelLoadingFailed
from server.core.request import ChatRequest, Message, Role, ToolChoiceMode
from server.engine.drafting import Acceptance, PromptLookup
from server.engine.engine import Delivery, Engine, EngineOptions
from server.engine.kv_cells import Saving
from server.engine.radix_tree import common_prefix_len
from server.engine.runner import Tokens
from server.engine.sequence import GenerationRequest
from server.grammar.compiler import GrammarCompiler
from server.llama.devices import CPU, free_bytes
from server.llama.main_memory import give_back_freed, release_mapping, resident_bytes
from server.llama.model import LlamaModel
from server.llama.runner import LlamaRunner
from server.pool.answering import AnswerShaper
from server.pool.config import PoolConfig, PrefixIsolation, Speculation
from server.pool.material import RequestDefaults
from server.pool.plan import FileIdentity, LoadPlan
from server.store.gguf_check import split_parts
from server.store.page_cache import read_ahead

_CLOSE_TIMEOUT_SECONDS = 60.0
# What is done when a file that will be mapped is in the page cache, when the weights are there, and the context.
_CACHE_SHARE, _WEIGHTS_SHARE, _CONTEXT_SHARE = 0.5, 0.95, 0.98

_log = logging.getLogger(__name__)


class LoadCancelled(Exception):
    """A load was cancelled; nothing of it is in memory."""


class LoadMonitor:
    """How far a load is, and the way to end it early. Any thread may ask, the loading one reports."""

    def __init__(self) -> None:
        self._fraction = 0.0
        self._cancelled = threading.Event()

    @property
    def fraction(self) -> float:
        """What is done, from 0 to 1."""
        return self._fraction

    @property
    def is_cancelled(self) -> bool:
        """Whether the load is to be given up."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask for the load to be given up; it ends with ``LoadCancelled`` soon, unless it is over before."""
        self._cancelled.set()

    def report(self, fraction: float) -> None:
        """Note progress.

        Raises:
            LoadCancelled: somebody has asked for it.

        """
        self._fraction = fraction
        if self.is_cancelled:
            raise LoadCancelled


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory with its engine running.

    Attributes:
        context_length: most tokens of one sequence.
        load_seconds: what the load took.
        measured: bytes by device that it took, with those that requests will take later; the prediction where
            something else took or gave back memory at the same time.
        defaults: what holds for requests that do not say otherwise.

    """

    engine: Engine
    template: ChatTemplate
    context_length: int
    load_seconds: float
    measured: Mapping[str, int]
    defaults: RequestDefaults
    _shaper: AnswerShaper
    _model: LlamaModel
    _runner: LlamaRunner
    _renderer: RenderProcess

    def prepare(self, request: ChatRequest) -> GenerationRequest:
        """Render and tokenize a request, and prepare what its answer has to be; blocking, for a worker thread.

        Raises:
            InvalidRequest: the chat template refuses the messages, the tokenizer cannot take them, or the answer cannot
                be held to what is demanded of it.
            ContextLengthExceeded: they leave no room for an answer.
            BackendError: the chat template takes too long, or too much.

        """
        request = self.defaults.applied(request)
        _check_logit_bias(request, self.vocabulary_size)
        segments = self.template.render(_conversation(request))
        prompt = self._tokenized(segments)
        answering = self._shaper.shape(request, segments)
        room = self.context_length - len(prompt)
        return GenerationRequest(
            prompt=prompt,
            sampling=request.sampling,
            max_tokens=min(request.max_tokens or room, room),
            stop=request.stop,
            n=request.n,
            top_logprobs=request.top_logprobs,
            key=request.client_key,
            new_parser=answering.new_parser,
            new_constraint=answering.new_constraint,
            markers=answering.markers,
            thinking=answering.thinking,
        )

    def _tokenized(self, segments: Sequence[str]) -> Tokens:
        vocabulary, most = self._model.vocabulary, self.context_length - 1
        # Tokenizing 10 MB takes seconds, which a prompt that is hopelessly too long need not cost.
        if (least := vocabulary.least_num_tokens(segments, enough=most + 1)) > most:
            raise self._too_long(f"at least {least}")
        tokens = vocabulary.tokenize(segments)
        if len(tokens) > most:
            raise self._too_long(f"{len(tokens)}")
        return tokens

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below this."""
        return self._model.vocabulary_size

    def stop(self) -> None:
        """Fail what still runs and end the engine; blocking, for a worker thread."""
        self.engine.close(_CLOSE_TIMEOUT_SECONDS)

    def close(self) -> bool:
        """Give back the memory of a stopped model that nobody uses any more; blocking, for a worker thread.

        Returns whether that was possible: an engine that does not stop for a long time may still be computing there.
        """
        self._renderer.close()
        if not self.engine.close(_CLOSE_TIMEOUT_SECONDS):
            _log.error("an engine did not stop in time; its memory is not freed yet")
            return False
        with _changes.making():
            self._runner.close()
            self._model.close()
            give_back_freed()
        return True

    def _too_long(self, num_tokens: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"This model's context holds {self.context_length} tokens, of which one is for the answer; "
            f"the messages have {num_tokens}. Shorten them.",
            param="messages",
        )


def load_model(
    plan: LoadPlan,
    pool_config: PoolConfig,
    deliver: Callable[[list[Delivery]], None],
    on_end: Callable[[], None],
    monitor: LoadMonitor,
) -> LoadedModel:
    """Load and warm up a model as planned, and start its engine; blocking, for a worker thread.

    Loads may go on side by side.

    Args:
        plan: how it is loaded.
        pool_config: what holds for all models.
        deliver: hears the engine's events, on its thread.
        on_end: called from the engine's thread when that ends.
        monitor: hears of the progress, and can end the load.

    Raises:
        ModelLoadingFailed: the file or its chat template cannot be used; what was taken is given back.
        LoadCancelled: the monitor was told to; what was taken is given back.

    """
    started = time.monotonic()
    with _changes.making() as change, ExitStack() as undo:
        undo.callback(give_back_freed)
        before = _Taken.by(plan)
        _check_identity(plan)
        monitor.report(0.0)
        # The template is compiled, in its process, while the weights are loaded.
        renderer = undo.enter_context(RenderProcess(plan.template))
        model = _load_weights(plan, monitor)
        undo.callback(model.close)
        _check_identity(plan)  # the weights are of the file that was checked, and not of one that came in between
        if plan.releases_mapping:
            for file in _files(plan):
                release_mapping(file)
        # The token table is read while memory for the context is found.
        with ThreadPoolExecutor(1, thread_name_prefix="vocabulary") as beside:
            templating = beside.submit(_template, plan, renderer, model)
            runner = LlamaRunner(model, plan.context)
        undo.callback(runner.close)
        template = templating.result()
        shaper = _shaper(plan, template, model)
        monitor.report(_CONTEXT_SHARE)
        engine = Engine(
            runner,
            model.vocabulary,
            deliver,
            _engine_options(pool_config, plan, template, model),
            on_end=on_end,
        )
        undo.callback(engine.close)
        engine.start()
        _have_others_rest(engine)
        monitor.report(1.0)
        measured = _Taken.by(plan).since(before, plan) if change.is_alone else plan.predicted
        undo.pop_all()
    seconds = time.monotonic() - started
    for note in plan.notes:
        _log.info("%s: %s", plan.path, note)
    return LoadedModel(
        engine, template, plan.context.sequence_len, seconds, measured, plan.defaults, shaper, model, runner, renderer
    )


def _conversation(request: ChatRequest) -> Conversation:
    shows_tools = request.tool_choice.mode is not ToolChoiceMode.NONE
    return Conversation(
        request.messages,
        request.tools if shows_tools else (),
        request.tool_choice,
        request.parallel_tool_calls,
        request.template_options,
        request.reasoning_effort,
    )


def _check_logit_bias(request: ChatRequest, vocabulary_size: int) -> None:
    for token, _ in request.sampling.logit_bias:
        if not 0 <= token < vocabulary_size:
            raise InvalidRequest(
                f"logit_bias names token {token}; this model's tokens are 0 to {vocabulary_size - 1}.",
                param="logit_bias",
            )


def _shaper(plan: LoadPlan, template: ChatTemplate, model: LlamaModel) -> AnswerShaper:
    vocabulary = model.vocabulary
    compiler = GrammarCompiler(
        vocabulary.pieces,
        frozenset(vocabulary.control_ids.values()),
        vocabulary.end_tokens,
        vocabulary.tokenize_text,
    )
    compiler.prepare()
    return AnswerShaper(
        choose_format(template.source) if template.has_own_calls else generic_format(template.source),
        compiler,
        vocabulary.control_ids,
        vocabulary.tokenize_markup,
        plan.defaults.reasoning,
    )


def _engine_options(config: PoolConfig, plan: LoadPlan, template: ChatTemplate, model: LlamaModel) -> EngineOptions:
    acceptance = Acceptance()
    return EngineOptions(
        queue_size=config.queue_size,
        inter_token_target=config.inter_token_target_ms / 1000,
        isolates_keys=config.prefix_isolation is PrefixIsolation.KEY,
        public_prefixes=[
            prefix
            for index, text in enumerate(config.public_system_prompts)
            if len(prefix := _system_prefix(text, index, template, model))
        ],
        new_drafter=(lambda: PromptLookup(acceptance)) if config.speculation is Speculation.PROMPT_LOOKUP else None,
        device_sampling=config.device_sampling,
        # On a GPU idle cells cost little, and reading them many small copies: they stay until others need them.
        saving=_saving(plan),
    )


def _saving(plan: LoadPlan) -> Saving:
    if plan.context.flash_attention == "off":
        return Saving()  # values are transposed then: each token of each row would be a copy of its own
    return Saving(plan.prefix_memory, patience=None) if plan.load.gpu_layers else Saving(plan.prefix_memory)


def _system_prefix(text: str, index: int, template: ChatTemplate, model: LlamaModel) -> Tokens:
    """Tokenize a system prompt with what the template puts before it and behind: all that no user has a part in."""
    system = Message(Role.SYSTEM, text)
    try:
        first, second = (
            model.vocabulary.tokenize(template.render(Conversation((system, Message(Role.USER, user)))))
            for user in "0a"
        )
    except LlmspellError as error:
        _log.warning("public_system_prompts[%d] cannot be used with %s: %s", index, model.path, error.message)
        return np.empty(0, dtype=np.int32)
    return first[: common_prefix_len(first, second)]


def _check_identity(plan: LoadPlan) -> None:
    if FileIdentity.of(plan.path) != plan.identity:
        raise ModelLoadingFailed(
            f"{plan.path} was replaced or changed while it was about to be loaded; send the request again.",
            retry_after=1.0,
        )


def _load_weights(plan: LoadPlan, monitor: LoadMonitor) -> LlamaModel:
    begin = 0.0
    if plan.load.use_mmap:  # llama.cpp would read all of the file in the call that maps it
        begin = _CACHE_SHARE
        _read_ahead(plan, monitor)

    def on_progress(fraction: float) -> bool:
        # tensors that are loaded twice count twice
        monitor.report(begin + min(fraction, 1.0) * (_WEIGHTS_SHARE - begin))
        return True

    return LlamaModel.load(plan.path, plan.load, on_progress)


def _files(plan: LoadPlan) -> Sequence[Path]:
    return (plan.path, *(split_parts(plan.path) if plan.identity.parts else ()))


def _read_ahead(plan: LoadPlan, monitor: LoadMonitor) -> None:
    files = _files(plan)
    for index, file in enumerate(files):

        def on_progress(fraction: float, index: int = index) -> None:
            monitor.report((index + fraction) / len(files) * _CACHE_SHARE)

        try:
            read_ahead(file, on_progress)
        except OSError as error:
            raise ModelLoadingFailed(f"{file} cannot be read: {error.strerror}.") from error


def _template(plan: LoadPlan, renderer: RenderProcess, model: LlamaModel) -> ChatTemplate:
    vocabulary = model.vocabulary
    return ChatTemplate(
        plan.template,
        renderer,
        capabilities=renderer.capabilities,
        bos_text=vocabulary.bos_text,
        eos_text=vocabulary.eos_text,
        control_texts=vocabulary.control_texts,
        now=lambda: datetime.now().astimezone(),
    )


@dataclass(frozen=True, slots=True)
class _Taken:
    """What is taken of devices at one moment: main memory by this process, GPUs by anybody."""

    resident: int
    free: Mapping[str, int]

    @classmethod
    def by(cls, plan: LoadPlan) -> _Taken:
        return cls(resident_bytes(), {device: free_bytes(device) for device in plan.predicted if device != CPU})

    def since(self, before: _Taken, plan: LoadPlan) -> Mapping[str, int]:
        """Return the bytes by device that were taken in between; as predicted where the system does not tell."""
        taken = {device: max(before.free[device] - free, 0) for device, free in self.free.items()}
        if not self.resident:
            return {**taken, CPU: plan.predicted[CPU]}
        # Buffers that nothing has touched yet are reserved, and not resident.
        return {CPU: max(self.resident - before.resident, 0) + plan.later, **taken}


_engines: WeakSet[Engine] = WeakSet()
_engines_lock = threading.Lock()


def _have_others_rest(engine: Engine) -> None:
    """Tell idle engines that they are not alone any more: what they hold would slow down this one."""
    with _engines_lock:
        for other in _engines:
            other.rest()
        _engines.add(engine)


class _Change:
    """A load or an unload; ``is_alone`` as long as no other one has gone on at the same time."""

    is_alone = True


class _Changes:
    """All loads and unloads that go on: the process has one resident size, so only a lone one can be measured."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: set[_Change] = set()

    @contextmanager
    def making(self) -> Iterator[_Change]:
        """Count as one of them."""
        change = _Change()
        with self._lock:
            self._current.add(change)
            if len(self._current) > 1:
                for each in self._current:
                    each.is_alone = False
        try:
            yield change
        finally:
            with self._lock:
                self._current.remove(change)


_changes = _Changes()
