"""The precisions that a part of a bundle may have: one row each, with everything that depends on which it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Precision:
    """How weights are stored, how exactly a graph with such weights computes, and how much rounding may change.

    Attributes:
        name: as options and manifests call it.
        bits: of a stored weight.
        dtype: the float type of the weights, as ONNX calls it; None where they are integers with scales.
        tolerance: the largest relative error of a graph against the source model that has the same rounded weights.
        loss_share: the tolerance of logits as a share of the loss, where that is larger: a model that is sensitive to
            the rounding of its weights is sensitive to the rounding of its activations too.
        loss_warned, loss_refused: relative errors of the logits of the rounded model against the source model. Above
            the first an export warns, above the second it refuses the bundle.
        seconds: to write a billion weights on two cores.
    """

    name: str
    bits: int
    dtype: Literal["FLOAT", "FLOAT16", "BFLOAT16"] | None
    tolerance: float
    loss_share: float
    loss_warned: float
    loss_refused: float
    seconds: float

    def logits_tolerance(self, loss: float) -> float:
        """The largest relative error of logits, given the loss of the whole model."""
        return max(self.tolerance, self.loss_share * loss)


PRECISIONS = {
    row.name: row
    for row in (
        Precision("fp32", 32, "FLOAT", 1e-4, 0.0, 1e-4, 1e-4, 16.0),
        Precision("fp16", 16, "FLOAT16", 0.01, 0.0, 0.01, 0.05, 16.0),
        Precision("bf16", 16, "BFLOAT16", 1e-4, 0.0, 0.02, 0.1, 16.0),
        Precision("int8", 8, None, 0.05, 1.5, 0.05, 0.2, 10.0),
        Precision("int4", 4, None, 0.05, 0.25, 0.35, 0.7, 8.0),
    )
}
#: What a KV cache may be rounded to. The source model that a decoder is compared with rounds its cache likewise, so
#: only the values that fall on the other side of a half are left.
CACHES = {row.name: row for row in (Precision("int8", 8, None, 0.01, 0.25, 0.05, 0.2, 0.0),)}
