"""The decoder of a VQ-VAE, which makes masks of codes; its weights are published as an .npz file of their own.

Network and weights are those that PaliGemma was trained with (arXiv 2301.02229); names and layout in the file are
PyTorch's: kernels (out, in, height, width), of transposed convolutions (in, out, height, width).
"""

from __future__ import annotations

import dataclasses
import itertools
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...graphs import CheckpointError, contract, manifest
from .registry import ModelParts

CODEBOOK = "_vq_vae._embedding"
WIDTHS = (128, 128, 64, 32, 16)  #: channels before the first and after each doubling of the size
PROVEN = 2  #: masks in a proof


class Residual(nn.Module):
    """Two convolutions of width 3 and one of width 1, added to their input (masks, width, height, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*wide, nn.Conv2d(width, width, 1))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + self.net(values)


class MaskDecoder(nn.Module):
    """Codes (masks, codes) to masks (masks, height, width), above 0 where the object is.

    The layers are named as published.

    Args:
        codes: the number of codes of a mask, which form a square grid, row by row.
        values: the number of different codes.
        depth: the width of a codebook entry.
    """

    def __init__(self, codes: int, values: int, depth: int) -> None:
        super().__init__()
        self.side = round(codes**0.5)
        self.codebook = nn.Parameter(torch.empty(values, depth))
        layers = [nn.Conv2d(depth, WIDTHS[0], 1), nn.ReLU(), Residual(WIDTHS[0]), Residual(WIDTHS[0])]
        for before, after in itertools.pairwise(WIDTHS):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(WIDTHS[-1], 1, 1))

    @property
    def spec(self) -> contract.GraphSpec:
        """The inputs and outputs of the graph."""
        return contract.mask_decoder(self.side**2, self.side * 2 ** (len(WIDTHS) - 1))

    def forward(self, mask_codes: torch.Tensor) -> torch.Tensor:
        grid = nn.functional.embedding(mask_codes, self.codebook).unflatten(1, (self.side, self.side))
        return self.decoder(grid.permute(0, 3, 1, 2)).squeeze(1)


@dataclass(frozen=True)
class MaskWeights:
    """Published weights that were read and checked: arrays of float32 by their names in `MaskDecoder`."""

    name: str
    weights: dict[str, np.ndarray]
    format: manifest.LocationTokens

    def module(self) -> MaskDecoder:
        """A network for these weights, which it does not have yet."""
        return MaskDecoder(self.format.codes, *self.weights["codebook"].shape)

    def added_to(self, parts: ModelParts) -> ModelParts:
        """The parts of a model with the mask decoder added, its weights among the constants.

        Call it within `trace.fake_weights()`.
        """
        module = self.module()
        return dataclasses.replace(
            parts,
            modules={**parts.modules, contract.MASK_DECODER: module},
            graphs={**parts.graphs, contract.MASK_DECODER: module.spec},
            constants={**parts.constants, **self.weights},
        )

    @torch.inference_mode()
    def expectations(self) -> dict[str, np.ndarray]:
        """Codes (masks, codes) and the masks that the network makes of them, for the proof."""
        module = self.module()
        module.load_state_dict({name: torch.from_numpy(array) for name, array in self.weights.items()})
        codes = torch.arange(PROVEN * self.format.codes).reshape(PROVEN, -1) * 7 % self.format.code_values
        return {contract.MASK_CODES: codes.numpy(), contract.MASKS: module(codes).numpy()}


def read_mask_weights(path: str | Path, format: manifest.LocationTokens | manifest.PatchTokens | None) -> MaskWeights:
    """Read published weights for a model that writes boxes in this format.

    Raises:
        CheckpointError: if the model writes no masks, or the file cannot be read or holds other weights.
    """
    if not isinstance(format, manifest.LocationTokens):
        raise CheckpointError("this model writes no codes of masks; leave mask_decoder out")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays, problems = _arrays(file, format)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no .npz file of arrays: {error}; give one such as vae-oid.npz") from None
    if problems:
        raise CheckpointError(f"{path} is no mask decoder of this model:\n" + "\n".join(f"  {p}" for p in problems))
    return MaskWeights(Path(path).name, arrays, format)


def _arrays(file: np.lib.npyio.NpzFile, format: manifest.LocationTokens) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of a decoder by their names in `MaskDecoder`, and a sentence for each problem of the file."""
    arrays: dict[str, np.ndarray] = {}
    problems = []
    depth = file[CODEBOOK].shape[-1] if CODEBOOK in file and file[CODEBOOK].ndim else 1
    with torch.device("meta"):
        expected = MaskDecoder(format.codes, format.code_values, depth).state_dict()
    for name, tensor in expected.items():
        key = CODEBOOK if name == "codebook" else name
        shape = tuple(tensor.shape)
        if key not in file:
            problems.append(f"{key} is missing")
            continue
        array = file[key]
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            problems.append(f"{key} is {array.dtype}, it should be finite numbers of floating point")
        elif array.shape != shape:
            problems.append(f"{key} is {array.shape}, it should be {shape}")
        arrays[name] = array.astype(np.float32, copy=False)
    return arrays, problems
