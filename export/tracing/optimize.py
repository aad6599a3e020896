"""Graph clean-up after tracing: shapes folded, norms fused, weights laid out as they are used."""

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

#: Weights are larger than this and stay on disk; shapes, scales and norms are smaller and may be computed with. Bytes.
FOLDED_AT_MOST = 1 << 16
#: onnxscript's full set of rules finds nothing more in these graphs, in a time that grows with the square of layers.
RULES = (
    rules.cast_cast_rule, rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule,
    rules.transpose_transpose_rule, rules.reshape_reshape_rule, rules.materialize_reshape_shape_rule,
    rules.unsqueeze_unsqueeze_rule, rules.squeeze_reshape_1d_rule, rules.collapse_slice_rule,
    rules.collapse_slice2_rule, rules.mul_by_1_rule, rules.add_0_rule,
)  # fmt: skip


def optimize(model: ir.Model) -> None:
    """Make of a traced graph, its weights attached, what is written. Only small initialisers are read."""
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
    """Compute what is constant and leave out what changes nothing. What layers compute alike they keep apart."""
    common.InlinePass()(model)
    with quiet("onnxscript", "onnx_ir"):
        for _ in range(2):  # what one pass leaves constant, the next folds
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
    behind, waiting = set(), [node for node in model.graph if node.op_type == "Resize"]
    while waiting:
        behind.add(node := waiting.pop())
        waiting.extend(set(node.predecessors()) - behind)
    given = {value for node in behind for value in node.inputs if value is not None and value.is_graph_input()}
    if not given:
        onnxscript.optimizer.fold_constants(model, should_fold=lambda node: node in behind or None)


@contextmanager
def quiet(*packages: str) -> Iterator[None]:
    """Keep remarks of packages on how they get along from the user's terminal."""
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
