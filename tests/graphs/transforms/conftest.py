"""Fixtures of the tests of transforms."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from small_graphs import graph, value


@pytest.fixture
def linear() -> ir.Model:
    """x @ transpose(w), the weight not yet there."""
    x, w, y = value("x", "n", 20), value("w", 30, 20), value("y", "n", 30)
    transpose = ir.node("Transpose", [w], {"perm": [1, 0]})
    transpose.outputs[0].name = "wt"
    return graph([transpose, ir.node("MatMul", [x, transpose.outputs[0]], outputs=[y])], [x], [y], w=w)
