"""Deep models traced by their first layers: the later ones are copies, made in the graph, which is much faster.

A copy is made only where the traced layers show that layers repeat: two of them must be the same graph, node for node,
but for the names of their weights and buffers. Where they are not, everything is traced.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import onnx_ir as ir
import torch

from ...graphs import contract

PERIODS = (1, 2)  #: after how many layers they may repeat
OWN = ("layer_idx", "training")  #: attributes in which layers may differ

Trace = Callable[[], ir.Model]


class _UnlikeError(Exception):
    """Layers that do not repeat."""


def unrolled(module: torch.nn.Module, trace: Trace) -> ir.Model:
    """The graph that `trace()` returns for a module; if its layers repeat, only the first of them are traced."""
    repeating = _repeating(module)
    if repeating is None:
        return trace()
    path, layers, period = repeating
    traced = 3 * period  # the first period has constants that all layers use
    try:
        with _cut(module, path, traced):
            model = trace()
        _Layers(model, path, traced, period).extend(len(layers))
    except (_UnlikeError, torch.onnx.OnnxExporterError):  # some models need all of their layers
        return trace()
    return model


def _repeating(module: torch.nn.Module) -> tuple[str, torch.nn.ModuleList, int] | None:
    """Path and period of the longest list of layers, if they repeat and are more than must be traced."""
    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, torch.nn.ModuleList)]
    if not lists:
        return None
    path, layers = max(lists, key=lambda pair: len(pair[1]))
    described = [_description(layer) for layer in layers]
    for period in PERIODS:
        if len(layers) > 3 * period and described[period:] == described[:-period]:
            return path, layers, period
    return None


def _description(layer: torch.nn.Module) -> list[Any]:
    """Classes, shapes and plain attributes of a layer and of all modules in it."""
    plain = (bool, int, float, str, type(None), tuple)
    return [
        (
            name,
            type(part),
            sorted((key, value) for key, value in vars(part).items() if isinstance(value, plain) and key not in OWN),
            [(key, tuple(value.shape)) for key, value in part.named_parameters(recurse=False)],
        )
        for name, part in layer.named_modules()
    ]


@contextmanager
def _cut(module: torch.nn.Module, path: str, count: int) -> Iterator[None]:
    """Leave only the first `count` layers in the list at `path` meanwhile."""
    parent, _, name = path.rpartition(".")
    owner = module.get_submodule(parent)
    whole = getattr(owner, name)
    before = [(part, set(vars(part)), part._forward_hooks.copy()) for part in module.modules()]
    setattr(owner, name, whole[:count])
    try:
        yield
    finally:
        setattr(owner, name, whole)
        # Transformers hooks the layers that it finds, and notes that it did. All layers have to be hooked later.
        for part, attributes, hooks in before:
            part._forward_hooks = hooks
            for attribute in set(vars(part)) - attributes:
                delattr(part, attribute)


class _Layers:
    """The layers of a traced graph, by the scopes that their nodes come from."""

    def __init__(self, model: ir.Model, path: str, traced: int, period: int) -> None:
        self.graph = model.graph
        self.path = path
        self.period = period
        self.layers: list[list[ir.Node]] = [[] for _ in range(traced)]
        self.layer_of: dict[ir.Node, int] = {}
        scope = re.compile(rf"module\.{re.escape(path)}\.(\d+):")
        for node in self.graph:
            if match := scope.search(_namespace(node)):
                layer = int(match[1])
                self.layer_of[node] = layer
                self.layers[layer].append(node)
        self.names = {value.name: value for value in (*self.graph.inputs, *self.graph.initializers.values())}
        self.fresh = (f"copy_{index}" for index in itertools.count())

    def extend(self, count: int) -> None:
        """Append copies until there are `count` layers."""
        traced = len(self.layers)
        period = self.period
        carried = [self._carried(index) for index in range(traced - 1)]
        # A layer takes the value that the layer before carried to it, and values that all layers share.
        twin: dict[ir.Value, ir.Value] = dict(zip(carried, carried[period:]))
        for index in range(2 * period, traced):
            self._match(self.layers[index - period], self.layers[index], index, twin)
        last = twin[carried[traced - 1 - period]]
        outside = [use for use in last.uses() if use.node not in self.layer_of]
        if not outside or last.is_graph_output() or any(map(self._leaves, carried)):
            raise _UnlikeError
        point = self.layers[-1][-1]
        rows = [list(layer) for layer in self.layers]
        ends = [*carried, last]
        for index in range(traced, count):
            replaced = {ends[index - period - 1]: ends[index - 1]}
            copies = [self._copy(node, index, replaced) for node in rows[index - period]]
            self.graph.insert_after(point, copies)
            point = copies[-1]
            rows.append(copies)
            ends.append(replaced[ends[index - period]])
        for use in outside:
            use.node.replace_input_with(use.idx, ends[-1])

    def _leaves(self, value: ir.Value) -> bool:
        return value.is_graph_output() or any(use.node not in self.layer_of for use in value.uses())

    def _carried(self, index: int) -> ir.Value:
        """The one value that a layer computes from its inputs and the next layer takes."""
        values = {
            value
            for node in self.layers[index + 1]
            for value in node.inputs
            if value is not None and value.producer() in self.layer_of and self.layer_of[value.producer()] == index
        }
        values = {value for value in values if not _is_constant(value)}
        if len(values) != 1:
            raise _UnlikeError
        return values.pop()

    def _match(self, earlier: list[ir.Node], later: list[ir.Node], index: int, twin: dict[ir.Value, ir.Value]) -> None:
        """Raise _UnlikeError unless two layers are the same graph; learn which values correspond."""
        if len(earlier) != len(later):
            raise _UnlikeError
        for a, b in zip(earlier, later):
            if a.op_identifier() != b.op_identifier() or len(a.inputs) != len(b.inputs) or not _same_attributes(a, b):
                raise _UnlikeError
            for u, v in zip(a.inputs, b.inputs):
                if u is not None and self._renamed(u, index) is not v and twin.get(u) is not v and u is not v:
                    raise _UnlikeError
            twin.update(zip(a.outputs, b.outputs))

    def _renamed(self, value: ir.Value, index: int) -> ir.Value | None:
        """The weight or buffer of layer `index` that corresponds to one of layer `index - period`."""
        old = str(index - self.period)
        for prefix in (f"{self.path}.", contract.PAST):
            if value.name.startswith(f"{prefix}{old}."):
                name = f"{prefix}{index}.{value.name.removeprefix(f'{prefix}{old}.')}"
                if name not in self.names and value.is_initializer():
                    self.names[name] = ir.Value(name=name, type=deepcopy(value.type), shape=value.shape)
                    self.graph.initializers.add(self.names[name])
                return self.names.get(name)
        return None

    def _copy(self, node: ir.Node, index: int, replaced: dict[ir.Value, ir.Value]) -> ir.Node:
        inputs = [value and (replaced.get(value) or self._renamed(value, index) or value) for value in node.inputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            node.attributes.values(),
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=next(self.fresh),
        )
        for old, new in zip(node.outputs, copy.outputs):
            new.name, new.type, new.shape = next(self.fresh), deepcopy(old.type), old.shape
            replaced[old] = new
        return copy


def _namespace(node: ir.Node) -> str:
    """The scope that a node was traced in; a node that a rewrite made has the scope of its first use."""
    if "namespace" in node.metadata_props:
        return node.metadata_props["namespace"]
    return next((_namespace(use.node) for value in node.outputs for use in value.uses()), "")


def _is_constant(value: ir.Value) -> bool:
    """Whether a value depends on nothing that varies, except the sizes of inputs, which are the same in every layer."""
    node = value.producer()
    if node is None:
        return value.is_initializer()
    return node.op_type == "Shape" or all(source is None or _is_constant(source) for source in node.inputs)


def _same_attributes(a: ir.Node, b: ir.Node) -> bool:
    def plain(node: ir.Node) -> dict[str, Any]:
        return {
            name: attribute.value.tobytes() if isinstance(attribute.value, ir.TensorProtocol) else attribute.value
            for name, attribute in node.attributes.items()
        }

    return plain(a) == plain(b)
