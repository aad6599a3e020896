"""Batches on a device: KV cache, logits and the moving of rows stay there; embeddings go in and ids come out.

Nothing here is of one kind of device, so all of it also runs on "cpu", where it is tested.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from ...graphs import TensorSpec, contract
from ..providers import onnx_bytes
from ..providers.ort_session import create
from ..providers.placement import check_placement, placement
from ..providers.targets import Target
from .device_logits import failing
from .session import Session

SMALLEST_BUCKET = 256  #: tokens
IDS, ROWS = "ids", "rows"
GRAPH_ID, NO_GRAPH = "gpu_graph_id", "-1"  #: the run's option that names a CUDA graph, and its value for none


def bucket(tokens: int, largest: int) -> int:
    """The capacity for so many tokens, a power of two or `largest`: few different ones, to be used again."""
    capacity = SMALLEST_BUCKET
    while capacity < tokens:
        capacity *= 2
    return max(tokens, min(capacity, largest))


class Device:
    """The decoder's device: its memory, small graphs that work in it, and buffers that wait for the next batch.

    Args:
        decoder: the session that runs there.
        target: where that is.
        max_positions: the longest sequence of the model.
        copied: whether the decoder writes a copy of its KV buffers, not into them.
    """

    def __init__(self, decoder: Session, target: Target, max_positions: int, copied: bool = False) -> None:
        self.decoder, self.target, self._max_positions = decoder, target, max_positions
        self.copied = copied
        self.cache = decoder.spec.cache_pairs()
        self._argmax = self._small(onnx_bytes.argmax(decoder.spec.outputs[0], IDS))
        self._gather = self._small(onnx_bytes.gather(self.cache, ROWS))
        self._graphs = itertools.count(1)
        self._free: Buffers | None = None

    def put(self, array: np.ndarray) -> ort.OrtValue:
        """A copy of an array in the device's memory."""
        with failing():
            return ort.OrtValue.ortvalue_from_numpy(array, self.target.device, self.target.device_id)

    def bind(self, bind: Callable[..., None], spec: TensorSpec, value: ort.OrtValue, rows: int, first: int = 0) -> None:
        """Let `bind`, a binding's `bind_input` or `bind_output`, bind `rows` rows of a value from the `first` on."""
        kind, shape = np.dtype(spec.dtype), [rows, *value.shape()[1:]]
        start = value.data_ptr() + first * math.prod(shape[1:]) * kind.itemsize
        bind(spec.name, self.target.device, self.target.device_id, kind.type, shape, start)

    def argmax(self, logits: ort.OrtValue) -> np.ndarray:
        """The ids (batch,) of the largest logits (batch, 1, vocab); only they come to the host."""
        binding = self._argmax.io_binding()
        binding.bind_ortvalue_input(contract.LOGITS, logits)
        binding.bind_output(IDS, "cpu")
        with failing():
            self._argmax.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()[:, 0]

    def gather(
        self, rows: np.ndarray, before: Sequence[ort.OrtValue], after: Sequence[ort.OrtValue], first: int = 0
    ) -> None:
        """Fill the rows of each KV buffer `after` from the `first` on with the rows of `before` that `rows` (kept,)
        names."""
        binding = self._gather.io_binding()
        binding.bind_cpu_input(ROWS, rows.astype(np.int64))
        for (past, present), source, result in zip(self.cache, before, after):
            self.bind(binding.bind_input, past, source, source.shape()[0])
            self.bind(binding.bind_output, present, result, len(rows), first)
        with failing():
            self._gather.run_with_iobinding(binding)

    def capacity(self, tokens: int) -> int:
        """The capacity of buffers for so many tokens."""
        return bucket(tokens, self._max_positions)

    def buffers(self, rows: int, tokens: int) -> Buffers:
        """Buffers for `rows` rows of `tokens` tokens: those of an earlier batch if they have that size."""
        size = (rows, self.capacity(tokens))
        free, self._free = self._free, None
        return free if free is not None and free.size == size else Buffers(self, *size)

    def take_back(self, buffers: Buffers) -> None:
        """Hold the buffers of a batch that is gone for the next one like it, instead of those held before."""
        self._free = buffers

    def graph_id(self) -> int:
        """The number of a new CUDA graph."""
        return next(self._graphs)

    def _small(self, model: bytes) -> ort.InferenceSession:
        with failing():
            session = create(model, self.target)
            check_placement("a graph of one operator", placement(session), self.target)
        return session


@dataclass(frozen=True)
class Step:
    """A decoding step whose inputs and outputs never move, so that a CUDA graph can replay it."""

    embeds: ort.OrtValue
    sequence_lengths: ort.OrtValue
    logits: ort.OrtValue
    binding: ort.IOBinding
    options: ort.RunOptions


class Buffers:
    """KV buffers of `rows` rows for `capacity` tokens each, and the steps that were made for them."""

    def __init__(self, device: Device, rows: int, capacity: int) -> None:
        self.device, self.size = device, (rows, capacity)
        self.capacity = capacity
        # A second one once rows are moved, or at once if each run copies one to the other.
        self._sets = [self._zeros() for _ in range(1 + device.copied)]
        self._current = 0
        self._steps: dict[tuple[int, int], Step] = {}

    def bind(self, binding: ort.IOBinding, rows: int, first: int = 0) -> None:
        """Make `rows` rows of every buffer from the `first` on the past of its layer and, or of its copy, the
        present."""
        before = self._sets[self._current]
        after = self._sets[1 - self._current] if self.device.copied else before
        for (past, present), source, result in zip(self.device.cache, before, after):
            self.device.bind(binding.bind_input, past, source, rows, first)
            self.device.bind(binding.bind_output, present, result, rows, first)

    def advance(self, others: Iterable[int] = ()) -> None:
        """Take note that the decoder has run on the batch, and not on the `others` of the rows that hold tokens."""
        if self.device.copied:
            self._switch(others)

    def advance_rows(self, rows: range) -> None:
        """Take note that the decoder has run on some rows alone, which follow each other."""
        if self.device.copied:
            self.device.gather(np.array(rows), self._sets[1 - self._current], self._sets[self._current], rows.start)

    def keep(self, rows: np.ndarray, others: Iterable[int] = ()) -> None:
        """Let row i be what row `rows[i]` was; the `others` stay what they are."""
        if np.array_equal(rows, np.arange(len(rows))):
            return
        if len(self._sets) == 1:
            self._sets.append(self._zeros())
        self._switch(others)
        self.device.gather(rows, self._sets[1 - self._current], self._sets[self._current])

    def _switch(self, others: Iterable[int]) -> None:
        """Use the other set of buffers, with some rows as they are in this one."""
        before, self._current = self._current, 1 - self._current
        for row in others:
            self.device.gather(np.array([row]), self._sets[before], self._sets[self._current], row)

    def save(self, row: int) -> list[ort.OrtValue]:
        """A copy of a row of every buffer."""
        saved = self._zeros(rows=1)
        self.device.gather(np.array([row]), self._sets[self._current], saved)
        return saved

    def load(self, row: int, saved: Sequence[ort.OrtValue]) -> None:
        """Make a row what a row was when it was saved."""
        self.device.gather(np.zeros(1, np.int64), saved, self._sets[self._current], row)

    def copy_start(self, length: int, other: Buffers) -> None:
        """Copy the first `length` tokens of the first row into larger buffers `other`, through the host: it is rare."""
        for mine, theirs in zip(self._sets[self._current], other._sets[other._current]):
            with failing():
                copied = np.zeros_like(theirs.numpy())
                copied[0, :, :length] = mine.numpy()[0, :, :length]
                theirs.update_inplace(copied)

    def step(self, batch: int) -> Step:
        """The step for the first `batch` rows of the buffers in use."""
        key = batch, self._current
        if key not in self._steps:
            self._steps[key] = self._new_step(batch)
        return self._steps[key]

    def _new_step(self, batch: int) -> Step:
        device, binding, options = self.device, self.device.decoder.binding(), ort.RunOptions()
        options.add_run_config_entry(GRAPH_ID, str(device.graph_id()))
        specs = {spec.name: spec for spec in (*device.decoder.spec.inputs, *device.decoder.spec.outputs)}
        hidden, vocab = specs[contract.INPUTS_EMBEDS].shape[-1], specs[contract.LOGITS].shape[-1]
        inputs = {
            contract.INPUTS_EMBEDS: device.put(np.zeros((batch, 1, hidden), np.float32)),
            contract.SEQUENCE_LENGTHS: device.put(np.zeros(batch, np.int32)),
            contract.LOGITS_INDICES: device.put(np.zeros((batch, 1), np.int64)),
            # Read on the host when the graph is captured, so it must cover every step to come.
            contract.TOTAL_SEQUENCE_LENGTH: ort.OrtValue.ortvalue_from_numpy(np.array(self.capacity, np.int32)),
        }
        logits = device.put(np.zeros((batch, 1, vocab), np.float32))
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(contract.LOGITS, logits)
        self.bind(binding, batch)
        return Step(inputs[contract.INPUTS_EMBEDS], inputs[contract.SEQUENCE_LENGTHS], logits, binding, options)

    def _zeros(self, rows: int | None = None) -> list[ort.OrtValue]:
        # Zeros: the operator multiplies the unused part by a weight of 0, which would keep a NaN.
        all_rows, capacity = self.size
        rows = rows or all_rows
        buffers = [past for past, _ in self.device.cache]
        return [self.device.put(np.zeros(past.sized(batch=rows, capacity=capacity), past.dtype)) for past in buffers]
