"""The KV cache: one buffer a layer and part, read and written in place by the decoder graph."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime as ort

from ...graphs import GenerationError, GraphSpec, contract


class Cache:
    """Keys and values of up to `rows` rows with room for `capacity` tokens each; at first `batch` of them are in use.

    The graph works on the first rows of each buffer, so rows come and go without a copy of the others.
    """

    def __init__(self, spec: GraphSpec, batch: int, rows: int, capacity: int) -> None:
        self._spec, self.capacity = spec, capacity
        self.lengths = np.zeros(batch, np.int32)
        # Which call wrote each token: rows hold the same where they have the same numbers.
        self._written = np.zeros((rows, capacity), np.int64)
        self._calls = 0
        # Zeros: the operator multiplies the unused part by a weight of 0, which would keep a NaN.
        self._buffers = {
            (past.name, present.name): np.zeros(past.sized(batch=rows, capacity=capacity), past.dtype)
            for past, present in spec.cache_pairs()
        }

    @staticmethod
    def nbytes(spec: GraphSpec, rows: int, capacity: int) -> int:
        """The bytes that a cache will take."""
        buffers = [past for past, _ in spec.cache_pairs()]
        return sum(
            math.prod(past.sized(batch=rows, capacity=capacity)) * np.dtype(past.dtype).itemsize for past in buffers
        )

    def bind(self, binding: ort.IOBinding) -> None:
        """Make the rows in use of every buffer both the past and the present of its layer."""
        for (past, present), buffer in self._buffers.items():
            shared = ort.OrtValue.ortvalue_from_numpy(buffer[: len(self.lengths)])  # on the CPU the same memory
            binding.bind_ortvalue_input(past, shared)
            binding.bind_ortvalue_output(present, shared)

    def advance(self) -> bool:
        """Record that the graph has run; True if the cache is to be bound anew."""
        return False

    def keep(self, rows: np.ndarray) -> bool:
        """Reorder the rows: row i becomes what row `rows[i]` (new batch,) was. True if the cache is to be bound anew.

        Only tokens in which the two rows differ are copied. `_written` has a number for each token, which two rows
        share where they hold the same; with a prompt of two tokens and two beams:

            extend by 2 tokens  ->  row 0: 1 1
            keep([0, 0])        ->  row 0: 1 1    row 1: 1 1    the prompt was copied
            extend by 1 token   ->  row 0: 1 1 3  row 1: 1 1 4
            keep([1, 1])        ->  row 0: 1 1 4  row 1: 1 1 4  only the last token was copied
        """
        length = self.lengths[rows]
        valid = np.arange(length.max()) < length[:, None]
        before = self._written[:, : length.max()]
        differ = (before[rows] != before[: len(rows)]) & valid
        moves = [
            (target, rows[target], slice(differ[target].argmax(), length[target]))
            for target in np.flatnonzero(differ.any(axis=1))
        ]
        for buffer in (self._written[:, None, :, None], *self._buffers.values()):
            parts = [buffer[row, :, tokens].copy() for _, row, tokens in moves]  # all read before one is written
            for (target, _, tokens), part in zip(moves, parts):
                buffer[target, :, tokens] = part
        resized = len(rows) != len(self.lengths)
        self.lengths = self.lengths[rows]
        return resized

    def truncate(self, length: int, rows: int, capacity: int) -> Cache:
        """A cache with the first `length` tokens of the first row, for `rows` rows of `capacity` tokens.

        It is this one if it is large enough. Use only the returned one afterwards.
        """
        cache = self
        if rows > len(self._written) or capacity > self.capacity:
            cache = type(self)(self._spec, 1, rows, capacity)
            for buffer, mine in zip(cache._buffers.values(), self._buffers.values()):
                buffer[0, :, :length] = mine[0, :, :length]
            cache._written[0, :length] = -1  # not what is in the other rows
        cache.lengths = np.array([length], np.int32)
        return cache

    def extend(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Add `lengths` (batch,) new tokens to the rows, and return the inputs of the graph that depend on this."""
        after = add_lengths(self.lengths, lengths, self.capacity)
        for row, (start, end) in enumerate(zip(self.lengths, after)):
            self._written[row, start:end] = self._calls * len(self._written) + row + 1
        self._calls += 1
        self.lengths = after
        return {
            contract.SEQUENCE_LENGTHS: after - 1,
            contract.TOTAL_SEQUENCE_LENGTH: np.array(after.max(), np.int32),
        }


class CopiedCache(Cache):
    """The same for a graph that leaves the past as it is and writes a copy with the new tokens: two buffers, in turn.

    Each call hands the buffers over and moves nothing, and the shapes that the graph sees stay the same as rows grow.
    """

    def __init__(self, spec: GraphSpec, batch: int, rows: int, capacity: int) -> None:
        super().__init__(spec, batch, rows, capacity)
        self._spare = {names: np.zeros_like(buffer) for names, buffer in self._buffers.items()}

    @staticmethod
    def nbytes(spec: GraphSpec, rows: int, capacity: int) -> int:
        return 2 * Cache.nbytes(spec, rows, capacity)

    def bind(self, binding: ort.IOBinding) -> None:
        """Make the rows in use of every buffer the past of its layer, and those of its spare buffer the present."""
        batch = len(self.lengths)
        for (past, present), buffer in self._buffers.items():
            binding.bind_ortvalue_input(past, ort.OrtValue.ortvalue_from_numpy(buffer[:batch]))
            spare = self._spare[past, present]
            binding.bind_ortvalue_output(present, ort.OrtValue.ortvalue_from_numpy(spare[:batch]))

    def advance(self) -> bool:
        self._buffers, self._spare = self._spare, self._buffers
        return True


def add_lengths(lengths: np.ndarray, new: np.ndarray, capacity: int) -> np.ndarray:
    """The lengths (batch,) of the rows after `new` (batch,) tokens more.

    Raises:
        GenerationError: if a row grows beyond the capacity.
    """
    after = lengths + new.astype(np.int32)
    if after.max() > capacity:
        raise GenerationError(f"the KV cache holds {capacity} tokens, {after.max()} were given")
    return after
