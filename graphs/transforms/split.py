"""A graph too large for memory as several that run one after another."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def split(model: ir.Model, limit: int) -> Iterator[ir.Model]:
    """Parts of a graph without control flow that do, one after another, what it does.

    A part takes inputs of the graph and what parts before it gave, and gives outputs of the graph and what later ones
    take, all under their names in the graph. It has at most `limit` bytes of weights, or a single node's.
    """
    weights = {
        value: value.const_value.nbytes for value in model.graph.initializers.values()
    }  # and what is made of them
    parts: list[list[ir.Node]] = [[]]
    held = 0
    for node in model.graph:
        size = sum(weights.get(value, 0) for value in node.inputs)
        if all(value is None or value in weights for value in node.inputs):
            weights.update(dict.fromkeys(node.outputs, size))  # computed where it is needed, several times if need be
            continue
        if size and held + size > limit and held:
            parts.append([])
            held = 0
        parts[-1].append(node)
        held += size
    for nodes in parts:
        within, outputs = set(nodes), set(model.graph.outputs)
        taken = {
            value: None
            for node in nodes
            for value in node.inputs
            if value is not None and value not in weights and value.producer() not in within
        }
        given = [
            value
            for node in nodes
            for value in node.outputs
            if value in outputs or any(use.node not in within for use in value.uses())
        ]
        yield ir.Model(ir.convenience.extract(model.graph, list(taken), given), ir_version=model.ir_version)
