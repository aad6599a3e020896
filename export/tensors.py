"""Tensors in safetensors files, read in slices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..graphs import CheckpointError


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, read in slices: each opens the file anew, so that nothing of it stays in memory."""

    path: Path
    key: str
    shape: tuple[int, ...]

    def __getitem__(self, index: Any) -> np.ndarray:
        """These values, as float32 if they are of a floating type."""
        with unset_fake_temporarily(), safe_open(self.path, "pt") as file:
            tensor: torch.Tensor = file.get_slice(self.key)[index]
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def stored_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by their keys; a CheckpointError if it is none."""
    try:
        with safe_open(path, "pt") as file:
            return {key: Stored(path, key, tuple(file.get_slice(key).get_shape())) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
