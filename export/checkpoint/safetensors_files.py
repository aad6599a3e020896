"""Tensors in safetensors files, read in slices."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ...graphs import CheckpointError

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
OTHERS = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, read in slices: each maps the file anew, so that nothing of it stays in memory."""

    path: Path
    offset: int
    kind: str
    shape: tuple[int, ...]

    def __getitem__(self, index: Any) -> np.ndarray:
        """These values, as float32 if they are of a floating type."""
        dtype = FLOATS.get(self.kind) or OTHERS[self.kind]
        mapped = np.memmap(self.path, dtype, "r", self.offset, self.shape)
        return np.array(mapped[index], np.float32 if self.kind in FLOATS else dtype)


def stored_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by their keys; a CheckpointError if it is none, or has unknown types."""
    try:
        with safe_open(path, "np"), path.open("rb") as file:  # the first checks what the second reads
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    header.pop("__metadata__", None)
    unknown = sorted({entry["dtype"] for entry in header.values()} - FLOATS.keys() - OTHERS.keys())
    if unknown:
        raise CheckpointError(
            f"{path} has tensors of {', '.join(unknown)}; save the model in one of {', '.join(FLOATS)}"
        )
    return {
        key: Stored(path, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for key, entry in header.items()
    }
