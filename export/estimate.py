"""Estimate the time, memory and disk of an export before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..graphs import contract
from ..graphs.precision import PRECISIONS

#: Seconds on two cores: of every export, and to prove a billion weights, twice that where they are rounded. One image
#: took 40 seconds; there are two.
START = 16.0
PROOF = 80.0
#: Seconds on two cores to round a billion weights by calibration, and to see what an image of 800 tokens gives them.
CALIBRATION = 90.0
CALIBRATION_IMAGE = 26.0
#: Bytes of memory of every export, and besides of a proof; a proof also takes this many bytes for each of the largest
#: weight.
MEMORY = 1_200_000_000
PROOF_MEMORY = 1_000_000_000
PROOF_LARGEST = 2.5


@dataclass(frozen=True)
class Estimate:
    """A rough estimate of an export: seconds on two cores, bytes of memory and of disk."""

    seconds: float
    memory: int
    disk: int

    def __str__(self) -> str:
        disk = f"{self.disk / 1e6:.0f} MB" if self.disk < 1e9 else f"{self.disk / 1e9:.1f} GB"
        return f"about {disk} on disk, {self.memory / 1e9:.1f} GB of memory, {self.seconds:.0f} seconds"


def estimate(
    parts: dict[str, list[torch.Tensor]], precisions: dict[str, str], block_size: int, prove: bool, images: int = 0
) -> Estimate:
    """Estimate the export of weights, given by the part that they belong to, in these precisions.

    Args:
        images: how many it is calibrated on.
    """
    seconds, disk, largest = START, 0, 0
    for name, tensors in parts.items():
        precision = PRECISIONS[precisions[name]]
        proof = PROOF * (1 if precision.name == "fp32" else 2) if prove else 0.0
        for tensor in tensors:
            seconds += tensor.numel() / 1e9 * (precision.seconds + proof)
            shared = block_size if name == contract.DECODER else tensor.shape[-1]  # weights of a scale
            bits = precision.bits if precision.dtype else precision.bits + 32 / shared
            size = int(tensor.numel() * (bits if tensor.ndim == 2 or precision.dtype else 32) / 8)
            disk, largest = disk + size, max(largest, size)
    if images:
        weights = sum(tensor.numel() for tensors in parts.values() for tensor in tensors) / 1e9
        seconds += weights * (CALIBRATION + images * CALIBRATION_IMAGE)
    proof_memory = prove * int(PROOF_MEMORY + PROOF_LARGEST * largest)
    calibration_memory = disk if images else 0  # the bundle is loaded to answer
    return Estimate(seconds, MEMORY + max(proof_memory, calibration_memory), disk)
