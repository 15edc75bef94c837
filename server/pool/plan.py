"""From a configured model to what will be loaded: a decision that costs reading the header, and no memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Self

from server.chat.rendering import check_syntax
from server.chat.template import CHATML
from server.core.errors import ModelLoadingFailed
from server.llama.devices import Device, devices, native_version, system_info
from server.llama.main_memory import can_release_mappings
from server.llama.model import ContextOptions, LoadOptions
from server.pool.config import AutoInt, KvCacheType, KvLayout, ModelConfig, PoolConfig, Switch
from server.pool.fitting import CPU, Choice, Fitting, Wish
from server.pool.ledger import parse_memory_size
from server.pool.material import Material, RequestDefaults
from server.store.context_shape import ContextShape, FlashAttention, repacked_formats
from server.store.gguf import read_gguf_header
from server.store.gguf_check import check_gguf, split_parts
from server.store.gguf_header import GgufHeader
from server.store.layer_shapes import layer_shapes
from server.store.ollama_template import TemplateSource
from server.store.regular_file import open_regular

_MOST_TEMPLATE_BYTES = 1 << 20
_CACHED_HEADERS = 64
_CACHE_BLOCK = 32
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Tells a file from another one that takes its place; of a split model also the other ``parts``."""

    size: int
    mtime_ns: int
    inode: int
    parts: tuple[FileIdentity, ...] = ()

    @classmethod
    def of(cls, path: Path) -> Self:
        """Look at a file, and at the other parts of a split model that are beside it.

        Raises:
            ModelLoadingFailed: the file is not there.

        """
        return cls(*_identity(path), tuple(cls(*_identity(part)) for part in split_parts(path) if part.exists()))


@dataclass(frozen=True, slots=True)
class Machine:
    """What models are loaded on: devices, main memory first, and llama.cpp's words about the processor."""

    devices: tuple[Device, ...]
    system_info: str
    can_release_mappings: bool = False

    @classmethod
    def this(cls) -> Self:
        """Look at the machine that this process runs on."""
        return cls(devices(), system_info(), can_release_mappings())

    @property
    def gpus(self) -> Sequence[str]:
        """The names of the GPUs."""
        return [device.name for device in self.devices if device.is_gpu]


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How a model will be loaded.

    Attributes:
        path: the file, or the first part of a split one.
        identity: of the file that the plan was made for.
        load: where the weights go.
        context: how the KV cache is laid out.
        predicted: bytes by device to set aside, margins included.
        fingerprint: stands for everything that decides the bytes.
        choice: what was chosen and why, for the log.
        releases_mapping: whether the pages of the mapped file are given back after the load.
        later: bytes of main memory among ``predicted`` that requests will take, and not the load.
        prefix_memory: bytes of main memory among these, for prompts of finished requests.
        template: the chat template: the one that replaces the file's own, the file's own, or one that most models
            understand.
        defaults: what holds for requests that do not say otherwise.
        notes: what an operator should know about the model, one sentence each.

    """

    path: Path
    identity: FileIdentity
    load: LoadOptions
    context: ContextOptions
    predicted: Mapping[str, int]
    fingerprint: str
    choice: str
    later: int = 0
    releases_mapping: bool = False
    prefix_memory: int = 0
    template: str = CHATML
    defaults: RequestDefaults = field(default_factory=RequestDefaults)
    notes: tuple[str, ...] = ()


def make_plan(
    config: ModelConfig,
    pool_config: PoolConfig,
    machine: Machine,
    limits: Mapping[str, int],
    material: Material | None = None,
) -> LoadPlan:
    """Decide how a model is loaded; blocking, for a worker thread.

    Args:
        config: the model.
        pool_config: what holds for all models.
        machine: where it is loaded.
        limits: bytes by device that the model may take at most. Where nothing fits, the smallest choice is returned.
        material: what the model is made of; by default the configured file.

    Raises:
        ModelLoadingFailed: the file, its chat template or what the configuration asks for cannot be used.

    """
    material = material or Material(Path(config.path))
    path = material.path
    identity = FileIdentity.of(path)
    header, *parts = _headers(path, identity)
    chosen, notes = _template(config, material, header)
    template = chosen or header.chat_template or CHATML
    # Only to know before anything else is unloaded for it; compiling, which runs parts of it, is for its own process.
    try:
        check_syntax(template)
    except ValueError as error:
        raise ModelLoadingFailed(f"{path}: the chat template is not valid Jinja: {error}.") from error
    for problem in _problems(config, machine, header):
        raise ModelLoadingFailed(f"{path}: {problem}.")
    can_release = machine.can_release_mappings and not config.mlock
    fitting = Fitting(
        header,
        parts,
        _shape(config, pool_config, machine),
        _wish(config, pool_config, material),
        machine.gpus,
        limits,
        can_release,
    )
    choice = fitting.choose()
    load = LoadOptions(choice.candidate.gpu_layers, choice.use_mmap, config.mlock, choice.shares)
    num_sequences, num_cells = fitting.shape.num_sequences, choice.candidate.cells
    is_unified = config.kv_layout is not KvLayout.SEPARATE
    context = ContextOptions(
        num_sequences=num_sequences,
        num_cells=num_cells,
        sequence_len=choice.candidate.sequence_len if is_unified else num_cells // num_sequences,
        batch_size=fitting.shape.batch_size,
        threads=config.threads or pool_config.threads,
        kv_cache_type=config.kv_cache_type.value,
        flash_attention=config.flash_attention.value,
        is_unified=is_unified,
        device_sampling=pool_config.device_sampling,
    )
    return LoadPlan(
        path,
        identity,
        load,
        context,
        choice.predicted,
        _fingerprint(path, identity, load, context, machine, choice.prefix_memory),
        _explained(fitting, choice, config.kv_cache_type),
        choice.later,
        choice.releases_mapping,
        choice.prefix_memory,
        template,
        replace(material.defaults, reasoning=config.reasoning),
        notes,
    )


def _template(config: ModelConfig, material: Material, header: GgufHeader) -> tuple[str | None, tuple[str, ...]]:
    """Return the chat template that replaces the file's, if any, and what an operator should know about the model."""
    if config.chat_template:
        return _template_file(config.chat_template), material.notes
    choice = material.choose_template(header.chat_template)
    if choice.source is TemplateSource.NONE and choice.note is not None:
        raise ModelLoadingFailed(f"{material.path}: {choice.note}.")
    return choice.jinja, material.notes if choice.note is None else (*material.notes, choice.note)


def _template_file(path: str) -> str:
    with open_regular(Path(path)) as file:
        source = file.read(_MOST_TEMPLATE_BYTES + 1)
    if len(source) > _MOST_TEMPLATE_BYTES:
        raise ModelLoadingFailed(f"The chat template {path} is longer than {_MOST_TEMPLATE_BYTES} bytes.")
    try:
        return source.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelLoadingFailed(f"The chat template {path} cannot be read: {error}.") from error


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelLoadingFailed(f"{path} cannot be read: {reason}") from error
    return status.st_size, status.st_mtime_ns, status.st_ino


@lru_cache(_CACHED_HEADERS)
def _headers(path: Path, _identity: FileIdentity) -> tuple[GgufHeader, ...]:
    """Read and check a model's headers, once for each state of its files."""
    header = check_gguf(path)
    return header, *(read_gguf_header(part) for part in split_parts(path) if header.split_count > 1)


def _shape(config: ModelConfig, pool_config: PoolConfig, machine: Machine) -> ContextShape:
    num_sequences = config.max_sequences or pool_config.max_sequences
    return ContextShape(
        num_cells=0,
        num_sequences=num_sequences,
        batch_size=max(pool_config.batch_size, num_sequences),
        kv_cache_type=config.kv_cache_type.value,
        flash_attention=FlashAttention(config.flash_attention.value),
        repacked=repacked_formats(machine.system_info),
    )


def _wish(config: ModelConfig, pool_config: PoolConfig, material: Material) -> Wish:
    prefix_memory = parse_memory_size(pool_config.prefix_memory, "llamacpp.prefix_memory")
    return Wish(
        context_length=_number(config.context_length) or None,
        kv_cells=_number(config.kv_cells) or None,
        gpu_layers=_number(config.n_gpu_layers),
        use_mmap=None if config.mmap is Switch.AUTO else config.mmap is Switch.ON,
        shares=config.tensor_split or tuple(float(index == config.main_gpu) for index in range(config.main_gpu + 1)),
        prefix_memory=None if prefix_memory == "auto" else prefix_memory,
        usual_context=material.context_length,
    )


def _number(value: AutoInt) -> int | None:
    return None if value == "auto" else value


def _problems(config: ModelConfig, machine: Machine, header: GgufHeader) -> Iterator[str]:
    """Find settings that llama.cpp would refuse when the weights are in memory already."""
    wished, known = _number(config.context_length) or 0, header.position_limit
    if known is not None and wished > known:
        yield f"it knows {known} positions; its context_length cannot be {wished}"
    if config.kv_cache_type is not KvCacheType.F16:
        if config.flash_attention is Switch.OFF or header.architecture == "grok":
            yield f"kv_cache_type {config.kv_cache_type} needs flash_attention, which is off"
        widths = {width for layer in layer_shapes(header) for width in (layer.head_keys, layer.head_values)}
        if odd := sorted(width for width in widths if width % _CACHE_BLOCK):
            yield (
                f"kv_cache_type {config.kv_cache_type} stores blocks of {_CACHE_BLOCK} values, "
                f"but its attention heads have {odd[0]}; use f16"
            )
    num_gpus = len(machine.gpus)
    if num_gpus and len(config.tensor_split) > num_gpus:
        yield f"tensor_split has {len(config.tensor_split)} shares, but there are {num_gpus} GPUs"
    if num_gpus and config.main_gpu >= num_gpus:
        yield f"main_gpu is {config.main_gpu}, but the GPUs are 0 to {num_gpus - 1}"
    if config.tensor_split and config.main_gpu >= 0:
        yield "tensor_split and main_gpu contradict each other; leave one of them out"


def _fingerprint(
    path: Path,
    identity: FileIdentity,
    load: LoadOptions,
    context: ContextOptions,
    machine: Machine,
    prefix_memory: int,
) -> str:
    """Hash what decides the bytes."""
    named = [(device.name, device.description) for device in machine.devices]
    system = (native_version(), named, machine.system_info, machine.can_release_mappings)
    decisive = (os.fspath(path.resolve()), identity, load, context, prefix_memory, system)
    return sha256(repr(decisive).encode("utf-8", "surrogateescape")).hexdigest()


def _explained(fitting: Fitting, choice: Choice, cache_type: KvCacheType) -> str:
    """Tell what was chosen, and why: for people who wonder why it is not more."""
    candidate = choice.candidate
    figures = ", ".join(
        f"{device} {_gib(num)} of {_gib(fitting.limits.get(device, 0))}" for device, num in choice.predicted.items()
    )
    way = "read" if not choice.use_mmap else "mapped and released" if choice.releases_mapping else "mapped"
    reasons = [*_reasons(fitting, choice)]
    return (
        f"{_place(fitting, choice)}, {candidate.sequence_len} tokens of context, {candidate.cells} KV cells "
        f"({cache_type}), {way}; predicted {figures}{': ' if reasons else ''}{', '.join(reasons)}"
    )


def _place(fitting: Fitting, choice: Choice) -> str:
    layers, total = choice.candidate.gpu_layers, fitting.all_layers
    if not layers:
        return f"all {total} layers on the CPU"
    gpus = " and ".join(device for device in choice.predicted if device != CPU)
    return f"all {total} layers on {gpus}" if layers == total else f"{layers} of {total} layers on {gpus}"


def _reasons(fitting: Fitting, choice: Choice) -> Iterator[str]:
    candidate = choice.candidate
    if not choice.fits:
        yield "nothing smaller is possible, and this does not fit"
        return
    if fitting.gpus and fitting.wish.gpu_layers is None and candidate.gpu_layers < fitting.all_layers:
        yield "more layers do not fit on the GPU" if candidate.gpu_layers else "no layer fits on the GPU"
    if candidate.sequence_len < fitting.full_context:
        yield f"{fitting.full_context} tokens of context do not fit"
    elif candidate.cells < fitting.full_cells:
        yield f"{fitting.full_cells} KV cells do not fit"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
