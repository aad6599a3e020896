"""Transforms that leave a graph's results as they are and its nodes fewer."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def drop_reshape_round_trips(model: ir.Model) -> int:
    """Remove chains of Reshape that end in the shape they began with; returns how many ends were removed.

    Attention splits and joins heads around an operator that takes them joined.
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


def drop_metadata(model: ir.Model) -> None:
    """Remove what a tracer notes about source lines: it is most of a small graph's file and names local paths."""
    for holder in (model, model.graph, *model.graph, *(v for node in model.graph for v in node.outputs)):
        holder.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.doc_string = None
