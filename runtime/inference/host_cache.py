"""The KV cache: one buffer a layer and part, read and written in place by the decoder graph."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from ...graphs import GenerationError, GraphSpec, contract


class Cache:
    """Keys and values of up to `rows` rows with room for `capacity` tokens each; at first `batch` of them are in use.

    The graph works on the first rows of each buffer, so rows come and go without a copy of the others. Rows behind the
    batch may be filled on their own, before they join it.
    """

    def __init__(self, spec: GraphSpec, batch: int, rows: int, capacity: int) -> None:
        self._spec, self.capacity, self.batch = spec, capacity, batch
        self._lengths = np.zeros(rows, np.int32)
        self._waiting: set[int] = set()  # rows behind the batch that hold tokens
        # Which call wrote each token: rows hold the same where they have the same numbers.
        self._written = np.zeros((rows, capacity), np.int64)
        self._calls = 0
        # A batch that is empty at first may use few of its rows and tokens.
        self._zeros = lazy_zeros if batch == 0 else np.zeros
        # Zeros: the operator multiplies the unused part by a weight of 0, which would keep a NaN.
        self._buffers = {
            (past.name, present.name): self._zeros(past.sized(batch=rows, capacity=capacity), np.dtype(past.dtype))
            for past, present in spec.cache_pairs()
        }

    @property
    def lengths(self) -> np.ndarray:
        """(batch,), the tokens of each row."""
        return self._lengths[: self.batch]

    @staticmethod
    def nbytes(spec: GraphSpec, rows: int, capacity: int) -> int:
        """The bytes that a cache will take."""
        buffers = [past for past, _ in spec.cache_pairs()]
        return sum(
            math.prod(past.sized(batch=rows, capacity=capacity)) * np.dtype(past.dtype).itemsize for past in buffers
        )

    def bind(self, binding: ort.IOBinding, part: slice | None = None) -> None:
        """Make the rows in use of every buffer, or a `part` of the rows, both the past and the present of its layer."""
        for (past, present), buffer in self._buffers.items():
            shared = ort.OrtValue.ortvalue_from_numpy(buffer[part or self._used])  # on the CPU the same memory
            binding.bind_ortvalue_input(past, shared)
            binding.bind_ortvalue_output(present, shared)

    @property
    def _used(self) -> slice:
        return slice(self.batch)

    def advance(self, part: slice | None = None) -> bool:
        """Record that the graph has run, on a `part` of the rows or on those in use; True if the cache is to be bound
        anew."""
        return False

    def begin(self, row: int, prefix: Sequence[np.ndarray] = (), length: int = 0) -> None:
        """Empty a row behind the batch, or fill it with the first `length` tokens of a prefix that `save` returned."""
        for buffer, tokens in zip(self._buffers.values(), prefix):
            buffer[row, :, :length] = tokens[:, :length]
        self._note(row, 0, length)
        self._lengths[row] = length
        self._waiting.add(row)

    def save(self, row: int, length: int) -> list[np.ndarray]:
        """A copy of the first `length` tokens of a row: for each buffer (heads, length, head_dim)."""
        return [buffer[row, :, :length].copy() for buffer in self._buffers.values()]

    def keep(self, rows: np.ndarray) -> bool:
        """Reorder the rows: row i becomes what row `rows[i]` (new batch,) was. True if the cache is to be bound anew.

        Only tokens in which the two rows differ are copied. `_written` has a number for each token, which two rows
        share where they hold the same; with a prompt of two tokens and two beams:

            extend by 2 tokens  ->  row 0: 1 1
            keep([0, 0])        ->  row 0: 1 1    row 1: 1 1    the prompt was copied
            extend by 1 token   ->  row 0: 1 1 3  row 1: 1 1 4
            keep([1, 1])        ->  row 0: 1 1 4  row 1: 1 1 4  only the last token was copied
        """
        resized = len(rows) != self.batch
        length = self._lengths[rows]
        longest = length.max(initial=0)
        valid = np.arange(longest) < length[:, None]
        before = self._written[:, :longest]
        differ = (before[rows] != before[: len(rows)]) & valid
        moves = [
            (target, rows[target], slice(differ[target].argmax(), length[target]))
            for target in np.flatnonzero(differ.any(axis=1))
        ]
        for buffer in (self._written[:, None, :, None], *self._buffers.values()):
            parts = [buffer[row, :, tokens].copy() for _, row, tokens in moves]  # all read before one is written
            for (target, _, tokens), part in zip(moves, parts):
                buffer[target, :, tokens] = part
        self.batch = len(rows)
        self._lengths[: self.batch] = length
        self._waiting -= {*range(self.batch), *rows.tolist()}
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
        cache.batch = 1
        cache._lengths[0] = length
        return cache

    def forget(self, tokens: int) -> None:
        """Drop the last `tokens` tokens of the rows in use."""
        self._lengths[: self.batch] -= tokens

    def extend(self, lengths: np.ndarray, part: slice | None = None) -> dict[str, np.ndarray]:
        """Add new tokens to the rows in use, `lengths` (rows,) to each, or to a `part` of the rows.

        Returns:
            The inputs of the graph that depend on this.
        """
        part = part or self._used
        before = self._lengths[part].copy()
        after = add_lengths(before, lengths, self.capacity)
        for index, start, end in zip(range(len(self._lengths))[part], before, after):
            self._note(index, start, end)
        self._calls += 1
        self._lengths[part] = after
        return {
            contract.SEQUENCE_LENGTHS: after - 1,
            contract.TOTAL_SEQUENCE_LENGTH: np.array(after.max(), np.int32),
        }

    def _note(self, row: int, start: int, end: int) -> None:
        """Note that this call writes the tokens from `start` to `end` of a row."""
        self._written[row, start:end] = self._calls * len(self._written) + row + 1


class CopiedCache(Cache):
    """The same for a graph that leaves the past as it is and writes a copy with the new tokens: two buffers, in turn.

    Each call hands the buffers over and moves nothing, and the shapes that the graph sees stay the same as rows grow.
    """

    def __init__(self, spec: GraphSpec, batch: int, rows: int, capacity: int) -> None:
        super().__init__(spec, batch, rows, capacity)
        self._spare = {names: self._zeros(buffer.shape, buffer.dtype) for names, buffer in self._buffers.items()}

    @staticmethod
    def nbytes(spec: GraphSpec, rows: int, capacity: int) -> int:
        return 2 * Cache.nbytes(spec, rows, capacity)

    def bind(self, binding: ort.IOBinding, part: slice | None = None) -> None:
        """Make the rows in use of every buffer, or a `part` of the rows, the past of its layer, and those of its spare
        buffer the present."""
        part = part or self._used
        for (past, present), buffer in self._buffers.items():
            binding.bind_ortvalue_input(past, ort.OrtValue.ortvalue_from_numpy(buffer[part]))
            spare = self._spare[past, present]
            binding.bind_ortvalue_output(present, ort.OrtValue.ortvalue_from_numpy(spare[part]))

    def advance(self, part: slice | None = None) -> bool:
        if part is None:
            self._buffers, self._spare = self._spare, self._buffers
        for index in self._waiting if part is None else range(part.start, part.stop):  # that ran alone, or not
            length = self._lengths[index]
            for names, buffer in self._buffers.items():
                buffer[index, :, :length] = self._spare[names][index, :, :length]
        return part is None


def lazy_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros whose memory is taken as it is written.

    NumPy asks for huge pages: the first token of a row would take, and clear, the memory of all its tokens at once,
    0.9 s where a row has 512 MB. Reading thousands of tokens takes up to 4 % longer in small pages.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


def add_lengths(lengths: np.ndarray, new: np.ndarray, capacity: int) -> np.ndarray:
    """The lengths (batch,) of the rows after `new` (batch,) tokens more.

    Raises:
        GenerationError: if a row grows beyond the capacity.
    """
    after = lengths + new.astype(np.int32)
    if after.max() > capacity:
        raise GenerationError(f"the KV cache holds {capacity} tokens, {after.max()} were given")
    return after
