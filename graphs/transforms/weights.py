"""Weights of a graph: attached as tensors that are read when they are written, laid out, streamed to a file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import onnx_ir as ir

#: Initialisers of no more bytes than this stay in the .onnx file, where shape inference can see them, if they are not
#: quantised.
KEPT_IN_GRAPH = 1024
#: Elements of a weight that are in memory at a time, for each thread. With fewer, which would stay in a core's cache,
#: threads that quantise would wait for each other.
AT_ONCE = 1 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")
#: pieces of tensors that are made together, a piece of each at a time
Pieces = Callable[[], Iterable[tuple[np.ndarray, ...]]]


class Source(Protocol):
    """An array that a weight is read from, in slices: a NumPy array, or an object that is sliced like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray: ...


Read = Callable[[str], Source]


class Streamed(ir.LazyTensor):
    """A tensor that is made when it is written, in pieces that follow each other along its first axis.

    Args:
        pieces: makes them, for all the tensors that are made together; called each time the values are asked for.
        index: which of them this one is.
    """

    def __init__(self, name: str, dtype: ir.DataType, shape: Iterable[int], pieces: Pieces, index: int = 0) -> None:
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(shape), name=name)
        self.pieces = pieces
        self.index = index

    def _whole(self) -> ir.Tensor:
        whole = np.concatenate([piece[self.index] for piece in self.pieces()]).reshape(self.shape.numpy())
        return ir.Tensor(whole, dtype=self.dtype, name=self.name)


class Weight(Streamed):
    """A weight of the source model: read in slices, transposed if `transposed`, written as `dtype`."""

    def __init__(self, name: str, source: Source, dtype: ir.DataType, transposed: bool = False) -> None:
        shape = source.shape[::-1] if transposed else source.shape
        super().__init__(name, dtype, shape, self._rows)
        self.source = source
        self.transposed = transposed

    def as_dtype(self, dtype: ir.DataType) -> Weight:
        """The same weight, to be written as another type."""
        return Weight(self.name, self.source, dtype, self.transposed)

    def columns(self, part: slice) -> np.ndarray:
        """Columns of a weight (in, out), laid out as (out, in)."""
        return self.source[part] if self.transposed else self.source[:, part].T

    def _rows(self) -> Iterator[tuple[np.ndarray]]:
        dtype = self.dtype.numpy()
        if not len(self.shape):
            yield (np.asarray(self.source[...], dtype).reshape(1),)
            return
        for rows in slices(self.shape.numpy()):
            piece = self.source[:, rows].T if self.transposed else self.source[rows]
            yield (piece.astype(dtype, copy=False),)


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
    """Set the value of every initialiser that has none: a `Weight` of the source that `read` returns for its name."""
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
    """The initialiser of a graph that has the tensor's name, added with the tensor if there is none."""
    if tensor.name in model.graph.initializers:
        return model.graph.initializers[tensor.name]
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


@dataclass
class Unwritten:
    """Tensors that are made together, and where each is written.

    Attributes:
        pieces: makes the tensors.
        targets: for each tensor its index among the pieces, its file, and the offset of its first byte there.
        nbytes: the size of all.
    """

    pieces: Pieces
    targets: list[tuple[int, Path, int]] = field(default_factory=list)
    nbytes: int = 0

    def write(self) -> int:
        """Write them; returns the bytes."""
        with ExitStack() as stack:
            files = [(index, stack.enter_context(path.open("r+b"))) for index, path, _ in self.targets]
            for (_, file), (*_, offset) in zip(files, self.targets):
                file.seek(offset)
            for piece in self.pieces():
                for index, file in files:
                    file.write(np.ascontiguousarray(piece[index]).reshape(-1).view(np.uint8).data)
        return self.nbytes


def write(tensors: Iterable[Unwritten], progress: Callable[[int], None] | None = None) -> None:
    """Write tensors on every core, the largest first, so that none is left for the end.

    Args:
        progress: called with the bytes of each group of tensors that is written.
    """
    ordered = sorted(tensors, key=lambda unwritten: -unwritten.nbytes)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for size in pool.map(Unwritten.write, ordered):
            if progress is not None:
                progress(size)


def store(model: ir.Model, path: Path) -> list[Unwritten]:
    """Write a graph, and make the file beside it, `<name>.data`, that `write` fills with its weights."""
    values = [value for value in model.graph.initializers.values() if _is_beside(value.const_value)]
    tensors = [value.const_value for value in values]
    data = path.with_name(f"{path.name}.data")
    end = 0
    together: dict[Pieces, Unwritten] = {}
    for value, tensor in zip(values, tensors):
        pieces = getattr(tensor, "pieces", partial(_at_once, tensor))
        unwritten = together.setdefault(pieces, Unwritten(pieces))
        unwritten.targets.append((getattr(tensor, "index", 0), data, end))
        unwritten.nbytes += tensor.nbytes
        value.const_value = ir.ExternalTensor(
            data.name, end, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=tensor.name, base_dir=path.parent
        )
        end += tensor.nbytes
    ir.save(model, path)
    for value, tensor in zip(values, tensors):
        value.const_value = tensor
    if values:
        with data.open("wb") as file:
            file.truncate(end)
    return list(together.values())


def _is_beside(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor goes into the file beside the graph: a large one, and whatever is quantised."""
    quantised = isinstance(tensor, Streamed) and not isinstance(tensor, Weight)
    return quantised or tensor.nbytes > KEPT_IN_GRAPH


def _at_once(tensor: ir.TensorProtocol) -> list[tuple[np.ndarray]]:
    return [(tensor.numpy(),)]


def store_array(tensor: Streamed, path: Path) -> Unwritten:
    """Begin an .npy file that `write` fills with a tensor; bfloat16, which NumPy does not know, becomes uint16."""
    dtype = np.dtype(np.uint16 if tensor.dtype == ir.DataType.BFLOAT16 else tensor.dtype.numpy())
    header = {"descr": dtype.str, "fortran_order": False, "shape": tensor.shape.numpy()}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
    return Unwritten(tensor.pieces, [(tensor.index, path, start)], tensor.nbytes)
