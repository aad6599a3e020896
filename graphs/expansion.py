"""Weights in blocks of 4 bits as columns of 8-bit integers: the same numbers, laid out for products of many rows.

The scales of a column's blocks are whole multiples of one number, so that a value times its block's multiple is an
integer of 8 bits. A bundle has a second graph of its decoder that multiplies such columns, and a table that says where
the blocks stand; a runtime makes the columns when it loads them.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from . import strict_json
from .errors import BundleError

GRAPH, TABLE = "decoder_columns.onnx", "decoder_columns.json"
BLOCK_SIZE = 128  #: of the blocks that can be expanded
#: The largest multiple, so that with values from -8 to 7 no product leaves the range of int8.
LARGEST_MULTIPLE = 15
EXACT = 1e-3  #: how far a multiple may be from a whole number
#: Bytes of pairs of values that are expanded at a time: few enough for the cache of a core.
AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Blocks:
    """A weight (rows, columns) in blocks, in the file beside a graph.

    Attributes:
        columns_name, scales_name: of the initialisers of the second graph that take its place: int8 (rows, columns)
            and float32 (columns,).
        rows, columns: its sizes.
        values: where the first byte stands of uint8 (columns, blocks, 64), two values of 4 bits in each.
        scales: where the first byte stands of float32 (columns, blocks).
    """

    columns_name: str
    scales_name: str
    rows: int
    columns: int
    values: int
    scales: int

    @property
    def blocks(self) -> int:
        """How many blocks a column has."""
        return math.ceil(self.rows / BLOCK_SIZE)

    @property
    def nbytes(self) -> int:
        """The bytes of its integers, with a row more where `rows` is odd."""
        return self.columns * (self.rows + self.rows % 2)

    def units(self, stored: np.ndarray) -> np.ndarray:
        """The scales (columns,) of float32 that the integers are multiplied by.

        Args:
            stored: the bytes of the file, uint8 (bytes,).
        """
        return np.abs(self._scales(stored)).max(1) / np.float32(LARGEST_MULTIPLE)

    def expand(self, stored: np.ndarray, integers: np.ndarray) -> None:
        """Write the integers of the weight.

        Args:
            stored: the bytes of the file, uint8 (bytes,).
            integers: gets them, int8 (rows, columns), with a row more where `rows` is odd.

        Raises:
            BundleError: if the scales of a column are no multiples of one number.
        """
        units = self.units(stored)
        exact = self._scales(stored) / np.where(units > 0, units, 1)[:, None]
        if not np.abs(exact - np.rint(exact)).max() < EXACT:  # nor where one is not a number
            raise BundleError(
                f"{self.columns_name}: scales that are no multiples of one number; export the bundle again"
            )
        multiples = np.rint(exact).astype(np.int8)
        packed = stored[self.values : self.values + self.columns * self.blocks * BLOCK_SIZE // 2]
        packed = packed.reshape(self.columns, -1)
        step = max(1, AT_ONCE // packed.shape[1])
        for start in range(0, self.columns, step):
            part = slice(start, start + step)
            pairs = np.ascontiguousarray(packed[part].T)[: len(integers) // 2]
            times = np.repeat(multiples[part].T, BLOCK_SIZE // 2, axis=0)[: len(pairs)]
            integers[0::2, part] = ((pairs & 15).view(np.int8) - np.int8(8)) * times
            integers[1::2, part] = ((pairs >> 4).view(np.int8) - np.int8(8)) * times

    def _scales(self, stored: np.ndarray) -> np.ndarray:
        part = stored[self.scales : self.scales + 4 * self.columns * self.blocks]
        return np.frombuffer(part.tobytes(), np.float32).reshape(self.columns, self.blocks)


@dataclass(frozen=True)
class Table:
    """All weights of a graph that are expanded."""

    weights: tuple[Blocks, ...]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def load(path: Path, size: int) -> Table:
    """The table in a file, held to the size of the file with the weights.

    Raises:
        BundleError: if it cannot be read, or names bytes that are not there.
    """
    problems: list[str] = []
    try:
        table = strict_json.read(Table, json.loads(path.read_text(encoding="utf-8")), "", problems)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}; export the bundle again") from None
    if not problems:
        problems = [
            f"{weight.columns_name}: not within {size} bytes" for weight in table.weights if not _fits(weight, size)
        ]
    if problems:
        raise BundleError(f"{path} is damaged:\n" + "\n".join(f"  {p}" for p in problems) + "\nexport the bundle again")
    return table


def _fits(weight: Blocks, size: int) -> bool:
    if min(weight.rows, weight.columns) < 1 or min(weight.values, weight.scales) < 0:
        return False
    blocks = weight.columns * weight.blocks
    return weight.values + blocks * BLOCK_SIZE // 2 <= size and weight.scales + 4 * blocks <= size
