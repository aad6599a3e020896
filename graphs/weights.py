"""Weights of a graph: attached as tensors that are read when they are written, laid out, streamed to a file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

#: Initialisers of no more bytes than this stay in the .onnx file, where shape inference can see them.
KEPT_IN_GRAPH = 1024
#: Elements of a weight that are in memory at a time, for each thread; most weights have a part for every thread then.
#: Fewer would stay in a core's cache, but threads that quantise would wait for each other.
AT_ONCE = 1 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")


class Source(Protocol):
    """What a weight is read from. It is sliced as a NumPy array is, and may be one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray: ...


Read = Callable[[str], Source]


class Streamed(ir.LazyTensor):
    """A tensor that is made when it is written, in pieces that follow each other along its first axis.

    Args:
        pieces: makes them; called each time the values are asked for.
    """

    def __init__(
        self, name: str, dtype: ir.DataType, shape: Iterable[int], pieces: Callable[[], Iterable[np.ndarray]]
    ) -> None:
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(shape), name=name)
        self.pieces = pieces

    def _whole(self) -> ir.Tensor:
        whole = np.concatenate(list(self.pieces())).reshape(self.shape.numpy())
        return ir.Tensor(whole, dtype=self.dtype, name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        for piece in self.pieces():
            file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)


class Weight(Streamed):
    """A weight of the source model: read in slices, transposed if `transposed`, written as `dtype`."""

    def __init__(self, name: str, source: Source, dtype: ir.DataType, transposed: bool = False) -> None:
        shape = source.shape[::-1] if transposed else source.shape
        super().__init__(name, dtype, shape, self._rows)
        self.source, self.transposed = source, transposed

    def as_dtype(self, dtype: ir.DataType) -> Weight:
        """The same weight, to be written as another type."""
        return Weight(self.name, self.source, dtype, self.transposed)

    def columns(self, some: slice) -> np.ndarray:
        """Columns of a weight (in, out), laid out as (out, in)."""
        return self.source[some] if self.transposed else self.source[:, some].T

    def _rows(self) -> Iterator[np.ndarray]:
        dtype = self.dtype.numpy()
        if self.transposed:
            yield from in_order(lambda rows: self.source[:, rows].T.astype(dtype), slices(self.shape.numpy()))
        elif len(self.shape):
            yield from in_order(lambda rows: self.source[rows].astype(dtype, copy=False), slices(self.shape.numpy()))
        else:
            yield np.asarray(self.source[...], dtype).reshape(1)


class ValuesAndScales:
    """Quantised values and their scales, of one reading of a weight if the values are written first.

    Args:
        pieces: makes them, values and scales that belong together.
    """

    def __init__(self, pieces: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]) -> None:
        self._pieces = pieces
        self._kept: list[np.ndarray] = []

    def values(self) -> Iterator[np.ndarray]:
        self._kept = []
        for values, scales in self._pieces():
            self._kept.append(scales)
            yield values

    def scales(self) -> Iterator[np.ndarray]:
        kept, self._kept = self._kept, []
        yield from kept or (scales for _, scales in self._pieces())


def slices(shape: tuple[int, ...], at_once: int | None = None) -> list[slice]:
    """The first axis in parts of about `at_once` elements, `AT_ONCE` if None."""
    step = max(1, (at_once or AT_ONCE) // max(1, int(np.prod(shape[1:]))))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` on every core, no more than one item a core ahead of its reader."""
    remaining, cores = iter(items), os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        running = deque(pool.submit(work, item) for item in islice(remaining, cores))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(work, item) for item in islice(remaining, 1))
            yield result


def attach(model: ir.Model, read: Read) -> None:
    """Give every initialiser without a value what `read` returns for its name, to be sliced whenever it is needed."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = Weight(name, read(name), value.dtype)


def fold_transposes(model: ir.Model) -> int:
    """Store weights the way they are used, so that no Transpose of an initialiser is left; returns how many there were.

    PyTorch keeps a linear layer's weight as (out, in), MatMul wants (in, out).
    """
    folded = 0
    for node in list(model.graph):
        weight = node.inputs[0] if node.inputs else None
        if node.op_type != "Transpose" or weight is None or not weight.is_initializer() or len(weight.shape) != 2:
            continue
        if (perm := node.attributes.get("perm")) is not None and list(perm.as_ints()) != [1, 0]:
            continue
        source, output = weight.const_value, node.outputs[0]
        value = add_initializer(model, Weight(f"{weight.name}.T", source.source, source.dtype, transposed=True))
        output.replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
        if not weight.uses():
            model.graph.initializers.pop(weight.name)
        folded += 1
    return folded


def add_initializer(model: ir.Model, tensor: ir.TensorProtocol) -> ir.Value:
    """A tensor as an initialiser of a graph, once: the one of that name if there is one."""
    if tensor.name in model.graph.initializers:
        return model.graph.initializers[tensor.name]
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def stored_bytes(model: ir.Model) -> int:
    """How many bytes of weights `save` writes beside the graph."""
    sizes = (value.const_value.nbytes for value in model.graph.initializers.values())
    return sum(size for size in sizes if size > KEPT_IN_GRAPH)


def save(model: ir.Model, path: Path, progress: Callable[[int], None] | None = None) -> None:
    """Write `path` and, beside it, `<name>.data` with every weight, one at a time.

    `progress` is told the bytes written.
    """

    def tell(tensor: ir.TensorProtocol, _) -> None:
        if progress is not None:
            progress(tensor.nbytes)

    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=KEPT_IN_GRAPH, callback=tell)


def save_array(tensor: Streamed, path: Path) -> None:
    """Write a tensor as an .npy file; bfloat16, which NumPy does not know, as uint16."""
    dtype = np.dtype(np.uint16 if tensor.dtype == ir.DataType.BFLOAT16 else tensor.dtype.numpy())
    header = {"descr": dtype.str, "fortran_order": False, "shape": tensor.shape.numpy()}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        tensor.tofile(file)
