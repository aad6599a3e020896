"""A graph too large for memory as several that run one after another."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def split(model: ir.Model, limit: int) -> Iterator[ir.Model]:
    """The parts of a graph without control flow, which together compute the same when they run one after another.

    A part takes inputs of the graph and outputs of earlier parts; it returns outputs of the graph and inputs of later
    parts. All keep their names in the graph. A part has at most `limit` bytes of weights, or the weights of one node.
    """
    #: bytes of the initialisers, and of the values that are computed from them alone
    weights = {value: value.const_value.nbytes for value in model.graph.initializers.values()}
    parts: list[list[ir.Node]] = [[]]
    held = 0
    for node in model.graph:
        size = sum(weights.get(value, 0) for value in node.inputs)
        if all(value is None or value in weights for value in node.inputs):
            weights.update(dict.fromkeys(node.outputs, size))  # each part that needs it computes it
            continue
        if size and held + size > limit and held:
            parts.append([])
            held = 0
        parts[-1].append(node)
        held += size
    for nodes in parts:
        within = set(nodes)
        graph_outputs = set(model.graph.outputs)
        inputs = {
            value: None
            for node in nodes
            for value in node.inputs
            if value is not None and value not in weights and value.producer() not in within
        }
        outputs = [
            value
            for node in nodes
            for value in node.outputs
            if value in graph_outputs or any(use.node not in within for use in value.uses())
        ]
        yield ir.Model(ir.convenience.extract(model.graph, list(inputs), outputs), ir_version=model.ir_version)
