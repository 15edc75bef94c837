"""From a configured GGUF file to a model that can generate: the blocking part of a load."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from server.chat.template import CHATML, ChatTemplate
from server.core.errors import ContextLengthExceeded, ModelLoadingFailed
from server.core.request import Message
from server.engine.engine import Delivery, Engine
from server.engine.runner import Tokens
from server.llama.model import ContextOptions, LlamaModel
from server.llama.runner import LlamaRunner
from server.pool.config import ModelConfig, PoolConfig
from server.store.gguf_check import check_gguf

_LONGEST_DEFAULT_CONTEXT = 8192
_MOST_DEFAULT_CELLS = 32768
_CELLS_PADDING = 256
_CLOSE_TIMEOUT_SECONDS = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory with its engine running.

    Attributes:
        context_length: most tokens of one sequence.
        load_seconds: what the load took.

    """

    engine: Engine
    template: ChatTemplate
    context_length: int
    load_seconds: float
    _model: LlamaModel
    _runner: LlamaRunner

    def prompt_tokens(self, messages: tuple[Message, ...]) -> Tokens:
        """Render and tokenize a conversation; blocking, for a worker thread.

        Raises:
            InvalidRequest: the chat template refuses the messages, or the tokenizer cannot take them.
            ContextLengthExceeded: they leave no room for an answer.

        """
        vocabulary, most = self._model.vocabulary, self.context_length - 1
        segments = self.template.render(messages)
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
        return self._model.vocabulary.size

    def stop(self) -> None:
        """Fail what still runs and end the engine; blocking, for a worker thread."""
        self.engine.close(_CLOSE_TIMEOUT_SECONDS)

    def close(self) -> None:
        """Free the memory of a stopped model that nobody uses any more; blocking, for a worker thread."""
        if not self.engine.close(_CLOSE_TIMEOUT_SECONDS):
            _log.error("an engine did not stop in time; its memory is not freed")  # it may still be computing there
            return
        self._runner.close()
        self._model.close()

    def _too_long(self, num_tokens: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"This model's context holds {self.context_length} tokens, of which one is for the answer; "
            f"the messages have {num_tokens}. Shorten them.",
            param="messages",
        )


def load_model(
    config: ModelConfig,
    pool_config: PoolConfig,
    deliver: Callable[[list[Delivery]], None],
    on_end: Callable[[], None],
) -> LoadedModel:
    """Check, load and warm up a model, and start its engine; blocking, for a worker thread.

    Args:
        config: the model.
        pool_config: what holds for all models.
        deliver: hears the engine's events, on its thread.
        on_end: called from the engine's thread when that ends.

    Raises:
        ModelLoadingFailed: the file or its chat template cannot be used.

    """
    started = time.monotonic()
    path = Path(config.path)
    header = check_gguf(path)
    model = LlamaModel.load(path, n_gpu_layers=config.n_gpu_layers)
    try:
        template = _template(config, model)
        options = context_options(config, pool_config, model.trained_context_length, header.position_limit)
        runner = LlamaRunner(model, options)
    except BaseException:
        model.close()
        raise
    try:
        engine = Engine(
            runner,
            model.vocabulary,
            deliver,
            queue_size=pool_config.queue_size,
            inter_token_target=pool_config.inter_token_target_ms / 1000,
            on_end=on_end,
        )
        engine.start()
    except BaseException:
        runner.close()
        model.close()
        raise
    return LoadedModel(engine, template, options.sequence_len, time.monotonic() - started, model, runner)


def context_options(
    config: ModelConfig, pool_config: PoolConfig, trained_context_length: int, position_limit: int | None = None
) -> ContextOptions:
    """Resolve the zeros of the configuration, which mean "choose for me".

    Raises:
        ModelLoadingFailed: the context is to be longer than ``position_limit``, the positions that the model knows.

    """
    num_sequences = config.max_sequences or pool_config.max_sequences
    sequence_len = config.context_length or min(trained_context_length, _LONGEST_DEFAULT_CONTEXT)
    if position_limit is not None and sequence_len > position_limit:
        raise ModelLoadingFailed(
            f"{config.path} knows {position_limit} positions; its context_length cannot be {sequence_len}."
        )
    default_cells = min(sequence_len * num_sequences, max(sequence_len, _MOST_DEFAULT_CELLS))
    num_cells = max(config.kv_cells or default_cells, sequence_len)
    return ContextOptions(
        num_sequences=num_sequences,
        # llama.cpp rounds up as well; cells beyond what it is asked for would stay unused
        num_cells=-(-num_cells // _CELLS_PADDING) * _CELLS_PADDING,
        sequence_len=sequence_len,
        batch_size=max(pool_config.batch_size, num_sequences),
        threads=pool_config.threads,
        kv_cache_type=config.kv_cache_type.value,
    )


def _template(config: ModelConfig, model: LlamaModel) -> ChatTemplate:
    vocabulary = model.vocabulary
    source = _template_file(config.chat_template) if config.chat_template else model.chat_template or CHATML
    return ChatTemplate(
        source,
        bos_text=vocabulary.bos_text,
        eos_text=vocabulary.eos_text,
        control_texts=vocabulary.control_texts,
        now=lambda: datetime.now().astimezone(),
    )


def _template_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadingFailed(f"The chat template {path} cannot be read: {error}.") from error
