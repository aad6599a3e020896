"""The KV cache: one buffer a layer and part, read and written in place by the decoder graph."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from ..graphs import GenerationError, GraphSpec, contract


class Cache:
    """Keys and values of `batch` rows with room for `capacity` tokens each."""

    def __init__(self, spec: GraphSpec, batch: int, capacity: int) -> None:
        sizes = {"batch": batch, "capacity": capacity}
        self.capacity = capacity
        self.lengths = np.zeros(batch, np.int32)
        self._buffers: dict[tuple[str, str], np.ndarray] = {}
        pairs = zip(spec.inputs[-len(spec.outputs) + 1 :], spec.outputs[1:])
        for past, present in pairs:
            shape = [sizes.get(size, size) for size in past.shape]
            # Zeros: the operator multiplies the unused part by a weight of 0, which would keep a NaN.
            self._buffers[past.name, present.name] = np.zeros(shape, past.dtype)

    def bind(self, binding: ort.IOBinding) -> None:
        """Make every buffer both the past and the present of its layer."""
        for (past, present), buffer in self._buffers.items():
            shared = ort.OrtValue.ortvalue_from_numpy(buffer)  # on the CPU the same memory
            binding.bind_ortvalue_input(past, shared)
            binding.bind_ortvalue_output(present, shared)

    def keep(self, rows: np.ndarray) -> bool:
        """Let row i be what row `rows[i]` (new batch,) was; True if the buffers are others now, to be bound anew."""
        length = self.lengths.max()
        grown = len(rows) != len(self.lengths)
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        for name, buffer in self._buffers.items():
            if grown:
                self._buffers[name] = np.zeros((len(rows), *buffer.shape[1:]), buffer.dtype)
                self._buffers[name][:, :, :length] = buffer[rows, :, :length]
            else:
                buffer[moved, :, :length] = buffer[rows[moved], :, :length]
        self.lengths = self.lengths[rows]
        return grown

    def extend(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Count `lengths` (batch,) new tokens a row in, and return what the graph must be told of that."""
        after = self.lengths + lengths.astype(np.int32)
        if after.max() > self.capacity:
            raise GenerationError(f"the KV cache holds {self.capacity} tokens, {after.max()} were given")
        self.lengths = after
        return {
            contract.SEQUENCE_LENGTHS: after - 1,
            contract.TOTAL_SEQUENCE_LENGTH: np.array(after.max(), np.int32),
        }
