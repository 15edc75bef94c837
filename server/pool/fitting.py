"""Choosing context and GPU layers that fit: a pure function of a model's header, the configuration and the devices.

What the configuration leaves open is chosen as the first of these that fits:

1. the whole model on the GPUs with its full context: what it was trained for, at most 8192 tokens, and KV cells for as
   many such sequences as it may have, but at most 32768;
2. the same with fewer KV cells, down to those of one full sequence;
3. the same with a shorter context, down to 4096 tokens;
4. as many layers on the GPUs as fit, with that shortest context;
5. no GPU: the full context, fewer KV cells, then a shorter context, down to 512 tokens;
6. as many layers on the GPUs as fit, with a context below 4096 tokens.

If none fits, the smallest of 5 is the choice, so that somebody can be told what is lacking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from server.store.context_shape import CELLS_STEP
from server.store.footprint import ContextShape, Footprint, predict_footprint
from server.store.gguf_header import GgufHeader
from server.store.layer_shapes import num_layers

CPU = "CPU"
_LONGEST_CONTEXT = 8192
_LEAST_GPU_CONTEXT = 4096
_LEAST_CONTEXT = 512
_MOST_CELLS = 32768
_MARGIN_SHARE, _MARGIN_LEAST = 32, 16 << 20
_PREFIX_SHARE, _MOST_PREFIX_MEMORY = 16, 1 << 30
_PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES: with several GPUs, batches of inputs wait for the next one
_ALIGNMENT_SHARE = 50  # a mapping also holds the gaps between tensors


@dataclass(frozen=True, slots=True)
class Wish:
    """What the configuration says about a model; ``None`` is what may be chosen.

    Attributes:
        context_length: tokens of one sequence.
        kv_cells: tokens of all sequences together.
        gpu_layers: layers on the GPUs, the output matrix counted as one; negative for all.
        use_mmap: whether the file is mapped.
        shares: of the layers, by GPU.
        prefix_memory: bytes of main memory for prompts of finished requests.
        usual_context: tokens of one sequence that the model's packer wants; less is chosen where that does not fit.

    """

    context_length: int | None = None
    kv_cells: int | None = None
    gpu_layers: int | None = None
    use_mmap: bool | None = None
    shares: tuple[float, ...] = ()
    prefix_memory: int | None = 0
    usual_context: int | None = None


class Candidate(NamedTuple):
    """A context and a place for the layers; ``cells`` are as llama.cpp rounds them."""

    gpu_layers: int
    sequence_len: int
    cells: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen.

    Attributes:
        candidate: context and layers.
        use_mmap: whether the file is mapped.
        releases_mapping: whether its pages are given back after the load.
        shares: of the layers on the GPUs, by GPU; empty where there is nothing to divide.
        predicted: bytes to set aside, by device.
        later: bytes of main memory among them that requests will take, and not the load.
        fits: whether that is within the limits.
        prefix_memory: bytes of main memory among these, for prompts of finished requests.

    """

    candidate: Candidate
    use_mmap: bool
    releases_mapping: bool
    shares: tuple[float, ...]
    predicted: Mapping[str, int]
    later: int
    fits: bool
    prefix_memory: int = 0


@dataclass(frozen=True)
class Fitting:
    """The choice for one model.

    Attributes:
        header: of the file, or of the first part of a split one.
        parts: headers of the other parts.
        shape: the context without what is chosen here.
        wish: what is settled already.
        gpus: names of the GPUs.
        limits: bytes that the model may take, by device; none on a device that is missing.
        can_release: whether the pages of a mapped file can be given back.

    """

    header: GgufHeader
    parts: Sequence[GgufHeader]
    shape: ContextShape
    wish: Wish
    gpus: Sequence[str]
    limits: Mapping[str, int]
    can_release: bool = False

    def choose(self) -> Choice:
        """Return the best candidate that fits, or the smallest one."""
        for candidate in self.candidates():
            predicted = self.predict(candidate)
            if self._fits(predicted):
                return self._chosen(candidate, predicted, fits=True)
        smallest = self._smallest
        return self._chosen(smallest, self.predict(smallest), fits=False)

    def candidates(self) -> Iterator[Candidate]:
        """List what may be chosen, the best first."""
        wished = 0 if not self.gpus else self.wish.gpu_layers
        if wished is not None:
            layers = self.all_layers if wished < 0 else min(wished, self.all_layers)
            yield from self._contexts(layers, _LEAST_CONTEXT)
            return
        yield from self._contexts(self.all_layers, _LEAST_GPU_CONTEXT)
        *_, shortest = self._contexts(self.all_layers, _LEAST_GPU_CONTEXT)
        yield from self._partly(shortest)
        yield from self._contexts(0, _LEAST_CONTEXT)
        for candidate in self._contexts(0, _LEAST_CONTEXT):
            if candidate.sequence_len < shortest.sequence_len:
                yield from self._partly(candidate)

    def predict(self, candidate: Candidate) -> Mapping[str, int]:
        """Return the bytes to set aside for a candidate, by device."""
        footprint = self._footprint(candidate)
        total_cpu = footprint.total_cpu + (self.wish.prefix_memory or 0)
        if not candidate.gpu_layers:
            return {CPU: total_cpu}
        if len(self._used) == 1:
            return {CPU: total_cpu, self.gpus[self._used[0]]: footprint.total_gpu}
        return {CPU: total_cpu, **self._divided(candidate, footprint)}

    @cached_property
    def all_layers(self) -> int:
        """The number of layers, the output matrix counted as one."""
        return num_layers(self.header) + 1

    @cached_property
    def full_context(self) -> int:
        """Tokens of one sequence where memory does not matter."""
        if self.wish.context_length is not None:
            return self.wish.context_length
        usual = self.wish.usual_context or _LONGEST_CONTEXT
        return min(self.header.context_length or usual, self.header.position_limit or usual, usual)

    @cached_property
    def full_cells(self) -> int:
        """Tokens of all sequences together where memory does not matter."""
        sequences = max(self.shape.num_sequences, 1)
        usual = min(self.full_context * sequences, max(self.full_context, _MOST_CELLS))
        return _rounded(max(self.wish.kv_cells or usual, self.full_context))

    def _contexts(self, gpu_layers: int, least: int) -> Iterator[Candidate]:
        """List contexts, the largest first: the full one, with fewer cells, then shorter ones of one sequence."""
        context, cells = self.full_context, self.full_cells
        yield Candidate(gpu_layers, context, cells)
        while self.wish.kv_cells is None and cells > _rounded(context):
            cells = max(_rounded(cells // 2), _rounded(context))
            yield Candidate(gpu_layers, context, cells)
        while self.wish.context_length is None and context > least:
            context = max(context // 2, least)
            cells = max(_rounded(self.wish.kv_cells or context), _rounded(context))
            yield Candidate(gpu_layers, context, cells)

    def _partly(self, context: Candidate) -> Iterator[Candidate]:
        """Yield a context with as many layers on the GPUs as fit there, if any."""
        least, most = 0, self.all_layers
        while least < most:  # more layers never take less
            middle = (least + most + 1) // 2
            predicted = self.predict(context._replace(gpu_layers=middle))
            if all(num <= self.limits.get(gpu, 0) for gpu, num in predicted.items() if gpu != CPU):
                least = middle
            else:
                most = middle - 1
        if least:
            yield context._replace(gpu_layers=least)

    @property
    def _smallest(self) -> Candidate:
        wished = self.wish.gpu_layers if self.gpus else 0
        if wished is None:
            *_, smallest = self._contexts(0, _LEAST_CONTEXT)
        else:
            *_, smallest = self.candidates()
        return smallest

    def _chosen(self, candidate: Candidate, predicted: Mapping[str, int], *, fits: bool) -> Choice:
        footprint = self._footprint(candidate)
        prefix_memory = self.wish.prefix_memory
        if prefix_memory is None:
            prefix_memory = self._spare(predicted, footprint) if fits else 0
            predicted = {**predicted, CPU: predicted[CPU] + prefix_memory}
        return Choice(
            candidate,
            self._maps if not candidate.gpu_layers else self._maps_with_gpu,
            self._releases and not candidate.gpu_layers,
            self._shares if candidate.gpu_layers and len(self.gpus) > 1 else (),
            predicted,
            footprint.compute_cpu + footprint.output + prefix_memory,
            fits,
            prefix_memory,
        )

    def _spare(self, predicted: Mapping[str, int], footprint: Footprint) -> int:
        """Return the bytes of main memory for prompts of finished requests where nobody has said how many.

        A power of two: it decides the bytes of a load, and those are remembered.
        """
        limit = self.limits.get(CPU, 0)
        most = min(footprint.kv_cpu + footprint.kv_gpu, limit // _PREFIX_SHARE, _MOST_PREFIX_MEMORY)
        spare = 1 << most.bit_length() >> 1
        return spare if predicted[CPU] + spare <= limit else 0

    def _fits(self, predicted: Mapping[str, int]) -> bool:
        return all(num <= self.limits.get(device, 0) for device, num in predicted.items())

    def _footprint(self, candidate: Candidate) -> Footprint:
        shape = replace(
            self.shape,
            num_cells=candidate.cells,
            num_gpu_layers=candidate.gpu_layers,
            # what is released after the load leaves as much as a file that was read
            use_mmap=self._maps_with_gpu if candidate.gpu_layers else self._maps and not self._releases,
        )
        return predict_footprint(self.header, shape, self.parts)

    @property
    def _maps_with_gpu(self) -> bool:
        return self.wish.use_mmap is not False

    @cached_property
    def _maps(self) -> bool:
        """Whether a model without a GPU is mapped."""
        if self.wish.use_mmap is not None:
            return self.wish.use_mmap
        return self.can_release or not self._is_rearranged

    @property
    def _releases(self) -> bool:
        return self._maps and self.can_release and self._is_rearranged

    @cached_property
    def _is_rearranged(self) -> bool:
        """Whether a mapped file without a GPU would take memory twice.

        What the processor has rearranged is in memory of its own, and the pages of the file stay beside it.
        """
        shape = replace(self.shape, num_gpu_layers=0, num_cells=CELLS_STEP)
        mapped, read = (
            predict_footprint(self.header, replace(shape, use_mmap=use_mmap), self.parts) for use_mmap in (True, False)
        )
        return mapped.total_cpu > read.total_cpu + read.weights_cpu // _ALIGNMENT_SHARE

    @cached_property
    def _shares(self) -> tuple[float, ...]:
        """The part of the layers that each GPU takes: as configured, else by what the model may take there.

        Two decimals, because they decide the bytes, and those are remembered.
        """
        wished = (*self.wish.shares, *(0.0 for _ in self.gpus))[: len(self.gpus)]
        if not any(wished):
            wished = tuple(float(max(self.limits.get(gpu, 0), 0)) for gpu in self.gpus)
        if not any(wished):
            wished = tuple(1.0 for _ in self.gpus)
        return tuple(round(share / sum(wished), 2) for share in wished)

    @cached_property
    def _used(self) -> Sequence[int]:
        """The GPUs that take a share."""
        return [index for index, share in enumerate(self._shares) if share]

    def _divided(self, candidate: Candidate, footprint: Footprint) -> Mapping[str, int]:
        """Return the bytes on each of several GPUs: its layers, and a compute buffer of its own."""
        layers = candidate.gpu_layers
        compute = footprint.compute_gpu
        if layers == self.all_layers:  # then they work at several batches at a time
            compute += (_PIPELINE_COPIES - 1) * footprint.compute_cpu
        total, taken, begin = sum(self._shares), 0.0, 0
        predicted = {}
        for index in self._used:
            taken += self._shares[index]
            end = layers if index == self._used[-1] else sum(at / layers < taken / total for at in range(layers))
            held = self._held(candidate, layers - begin) - self._held(candidate, layers - end)
            begin = end
            num = held + compute
            predicted[self.gpus[index]] = num + max(num // _MARGIN_SHARE, _MARGIN_LEAST)
        return predicted

    def _held(self, candidate: Candidate, layers: int) -> int:
        """Return the bytes of weights and KV cache of the last layers."""
        footprint = self._footprint(candidate._replace(gpu_layers=layers))
        return footprint.weights_gpu + footprint.kv_gpu


def _rounded(cells: int) -> int:
    return -(-cells // CELLS_STEP) * CELLS_STEP
