"""Graph clean-up after tracing: shapes folded, norms fused, weights laid out as they are used."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript.optimizer
from onnxscript.rewriter import onnx_fusions

from ..graphs import tidy, weights
from .trace import quiet

#: Weights are larger than this and stay on disk; shapes, scales and norms are smaller and may be computed with. Bytes.
FOLDED_AT_MOST = 1 << 16


def optimize(model: ir.Model) -> None:
    """Simplify a traced graph in place. Only small initialisers are read."""
    weights.fold_transposes(model)
    with quiet("onnxscript"):
        onnxscript.optimizer.optimize(model, input_size_limit=FOLDED_AT_MOST, output_size_limit=FOLDED_AT_MOST)
        onnx_fusions.fuse(model)
        tidy.drop_reshape_round_trips(model)
        onnxscript.optimizer.optimize(model, input_size_limit=FOLDED_AT_MOST, output_size_limit=FOLDED_AT_MOST)
    tidy.drop_metadata(model)
