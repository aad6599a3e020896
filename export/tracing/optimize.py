"""Graph clean-up after tracing: fold shapes, fuse norms, lay weights out the way they are used."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common
from onnxscript.rewriter import RewritePass, onnx_fusions
from onnxscript.rewriter.rules import common as rules

from ...graphs.transforms import cleanup, weights

#: In bytes. Larger initialisers, the weights, stay on disk; smaller ones (shapes, scales, norms) are computed with.
FOLDED_AT_MOST = 1 << 16
#: onnxscript's full set of rules finds nothing more in these graphs, and its time grows with the square of the layers.
RULES = (
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.reshape_reshape_rule,
    rules.materialize_reshape_shape_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.mul_by_1_rule,
    rules.add_0_rule,
)


def optimize(model: ir.Model) -> None:
    """Optimise a traced graph whose weights are attached. It reads only small initialisers."""
    weights.fold_transposes(model)
    simplify(model)
    with quiet("onnxscript"):
        _fold_resizes(model)
        fused = sum(onnx_fusions.fuse(model).values())
    if fused + cleanup.drop_reshape_round_trips(model):
        simplify(model)
    common.CommonSubexpressionEliminationPass()(model)
    cleanup.rotate_whole_sequences(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.NameFixPass()(model)
    cleanup.drop_metadata(model)


def simplify(model: ir.Model) -> None:
    """Compute constants and remove nodes that change nothing. Equal computations in several layers are not merged."""
    common.InlinePass()(model)
    with quiet("onnxscript", "onnx_ir"):
        for _ in range(2):  # the second pass folds constants that the first one leaves
            folded = onnxscript.optimizer.fold_constants(
                model, input_size_limit=FOLDED_AT_MOST, output_size_limit=FOLDED_AT_MOST, onnx_shape_inference=True
            )
            rewritten = RewritePass(RULES)(model)
            common.RemoveUnusedNodesPass()(model)
            if not (folded.modified or rewritten.modified):
                break
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.DeduplicateInitializersPass()(model)


def _fold_resizes(model: ir.Model) -> None:
    """Compute interpolated positions, which depend on weights alone: TensorRT has no such Resize."""
    behind = set()
    waiting = [node for node in model.graph if node.op_type == "Resize"]
    while waiting:
        behind.add(node := waiting.pop())
        waiting.extend(set(node.predecessors()) - behind)
    inputs = {value for node in behind for value in node.inputs if value is not None and value.is_graph_input()}
    if not inputs:
        onnxscript.optimizer.fold_constants(model, should_fold=lambda node: node in behind or None)


@contextmanager
def quiet(*packages: str) -> Iterator[None]:
    """Keep the remarks and warnings of packages from the user's terminal."""
    loggers = [logging.getLogger(package) for package in packages]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
