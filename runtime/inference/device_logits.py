"""Logits that stay on a device: greedy decoding needs only the ids of the largest."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from ...graphs import GenerationError, VLMError

if TYPE_CHECKING:
    from .device_cache import Device


class DeviceLogits:
    """Logits (batch, vocab) on the device. As an array they come to the host; of their largest only the ids do."""

    def __init__(self, device: Device, value: ort.OrtValue) -> None:
        self._device, self._value = device, value

    @functools.cached_property
    def _array(self) -> np.ndarray:
        with failing():
            return np.array(self._value.numpy()[:, 0])

    @functools.cached_property
    def _ids(self) -> np.ndarray:
        return self._device.argmax(self._value)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self._array if dtype is None else self._array.astype(dtype)

    def take(self, rows: Sequence[int], axis: int = 0) -> DeviceRows:
        """Some of the rows."""
        return DeviceRows(self, rows)

    def argmax(self, axis: int = -1) -> np.ndarray:
        """The ids (batch,) of the largest of each row."""
        return self._ids


@dataclass(frozen=True)
class DeviceRows:
    """Some rows (rows, vocab) of logits on the device, like these."""

    logits: DeviceLogits
    rows: Sequence[int]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.logits, dtype)[self.rows]

    def argmax(self, axis: int = -1) -> np.ndarray:
        """The ids (rows,) of the largest of each row."""
        return self.logits.argmax()[self.rows]


@contextmanager
def failing() -> Iterator[None]:
    """Errors of ONNX Runtime, which share no class of their own, as ours."""
    try:
        yield
    except VLMError:
        raise
    except Exception as error:
        raise GenerationError(f"the device failed: {error}") from error
