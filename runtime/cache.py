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
        self._buffers: list[tuple[str, str, ort.OrtValue]] = []
        pairs = zip(spec.inputs[-len(spec.outputs) + 1 :], spec.outputs[1:])
        for past, present in pairs:
            shape = [sizes.get(size, size) for size in past.shape]
            # Zeros: the operator multiplies the unused part by a weight of 0, which would keep a NaN.
            buffer = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, past.dtype))
            self._buffers.append((past.name, present.name, buffer))

    def bind(self, binding: ort.IOBinding) -> None:
        """Make every buffer both the past and the present of its layer."""
        for past, present, buffer in self._buffers:
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)

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
