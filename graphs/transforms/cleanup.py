"""Transforms that leave a graph's results as they are and its nodes fewer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from . import weights


def drop_reshape_round_trips(model: ir.Model) -> int:
    """Remove chains of Reshape that end in the shape they began with; returns how many chains were removed.

    They come from attention, which splits and joins heads around an operator that takes them joined.
    """
    dropped = 0
    for node in list(model.graph):
        if node.op_type != "Reshape":
            continue
        start = node.inputs[0]
        while (before := start.producer()) is not None and before.op_type == "Reshape":
            start = before.inputs[0]
        end = node.outputs[0]
        if start.shape != end.shape or end.is_graph_output():
            continue
        end.replace_all_uses_with(start)
        dropped += 1
    RemoveUnusedNodesPass()(model)
    return dropped


def rotate_whole_sequences(model: ir.Model) -> int:
    """Rotate whole sequences where a graph rotates all tokens but the first; returns how many rotations were changed.

    Such a graph cuts the first tokens off and joins them again. Here their angle becomes zero: rows of ones are put
    before the cosines, rows of zeros before the sines.
    """
    tables: dict[tuple[ir.Value, int], list[ir.Value]] = {}
    changed = 0
    for node in list(model.graph):
        ends = [value.producer() if value is not None else None for value in node.inputs]
        if node.op_type != "Concat" or [end.op_type if end else "" for end in ends] != ["Slice", "RotaryEmbedding"]:
            continue
        head, rotation = ends
        rest = rotation.inputs[0].producer()
        if rest is None or rest.op_type != "Slice" or rest.inputs[0] is not head.inputs[0]:
            continue
        first = int(head.inputs[2].const_value.numpy().item())  # tokens that are not rotated
        start = int(rest.inputs[1].const_value.numpy().item())
        if first != start or head.inputs[0].shape != node.outputs[0].shape:
            continue
        cos, sin = rotation.inputs[2:4]
        if (cos, first) not in tables:
            tables[cos, first] = [_with_rows(model, node, first, cos, 1.0), _with_rows(model, node, first, sin, 0.0)]
        inputs = [head.inputs[0], rotation.inputs[1], *tables[cos, first]]
        whole = ir.node("RotaryEmbedding", inputs, rotation.attributes, domain=rotation.domain)
        old, new = node.outputs[0], whole.outputs[0]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [whole], [old], [new])
        changed += 1
    RemoveUnusedNodesPass()(model)
    return changed


def _with_rows(model: ir.Model, before: ir.Node, rows: int, table: ir.Value, filler: float) -> ir.Value:
    """A table with `rows` rows of one number before its own."""
    constant = ir.tensor(np.full((rows, table.shape[1]), filler, np.float32), name=f"{table.name}.rows")
    joined = ir.node("Concat", [weights.add_initializer(model, constant), table], {"axis": 0})
    joined.outputs[0].name = f"{table.name}.whole"
    joined.outputs[0].type, joined.outputs[0].shape = table.type, ir.Shape((rows + table.shape[0], table.shape[1]))
    model.graph.insert_before(before, joined)
    return joined.outputs[0]


def drop_metadata(model: ir.Model) -> None:
    """Remove the tracer's notes about source lines, which fill most of a small graph's file and name local paths."""
    for holder in (model, model.graph, *model.graph, *(value for node in model.graph for value in node.outputs)):
        holder.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.doc_string = None
