"""Whether a new bundle is kept: what is allowed of its fidelity and of its loss."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...graphs import ExportError, contract, expansion
from ...graphs.precision import CACHES, PRECISIONS
from ...runtime.stored_proof import Evidence
from ...runtime.verify import Check, compare, compare_decoder, encode
from .bundle_in_parts import OnDisk

logger = logging.getLogger(__name__)


def judge(
    folder: Path,
    evidence: Evidence,
    weights: Check,
    precisions: Mapping[str, str],
    source: str,
    accept_loss: bool,
) -> None:
    """Warn of a bundle that loses much, and refuse one that does not do what the evidence says.

    Args:
        folder: the bundle.
        evidence: what the source model does with its weights.
        weights: these against the source model's own.
        precisions: of each of its parts.
        source: the name of the source model.
        accept_loss: keep it whatever its loss.

    Raises:
        ExportError: if its graphs do something else than the source model with the same weights, if its weights are not
            the source model's, or if rounding them loses more than may be lost.
    """
    failed = failures(folder, evidence, weights)
    if failed:
        raise ExportError(
            f"the bundle does not do what {source} does, so it is not kept:\n"
            + "\n".join(
                f"  {check.name}: error {check.error:.2g}, {check.tolerance} allowed {check.note}" for check in failed
            )
            + "\nplease report this; --no-prove keeps the bundle as it is"
        )
    if evidence.loss is None:
        return
    what, remedy = "rounding the weights", "choose a --precision of more bits or a smaller --block-size"
    if contract.KV_CACHE in precisions:
        what, remedy = f"{what} and the KV cache", f"leave --kv-cache out, {remedy}"
    rows = [(CACHES if part == contract.KV_CACHE else PRECISIONS)[name] for part, name in precisions.items()]
    warned, refused = max(row.loss_warned for row in rows), max(row.loss_refused for row in rows)
    if not evidence.loss.error <= refused and not accept_loss:
        raise ExportError(
            f"{what} changes {source} too much, so the bundle is not kept: {evidence.loss}; a distance of"
            f" {refused} is allowed; {remedy}, or keep it with --accept-loss"
        )
    if not evidence.loss.error <= warned:
        logger.warning(
            "%s changes %s noticeably: %s; a distance of up to %s is usual; try its answers before you use it, or %s",
            what,
            source,
            evidence.loss,
            warned,
            remedy,
        )


def judge_columns(folder: Path, evidence: Evidence) -> None:
    """Remove the decoder's second graph where it does not do what the evidence says, and warn of that.

    It rounds a whole row of activations by its largest one, so activations that are much larger than the others of
    their row make it less exact than blocks are.
    """
    if not (folder / expansion.TABLE).exists():
        return
    stages = OnDisk(folder, columns=True)
    cases = [dataclasses.replace(case, expected=_prefill(case.expected)) for case in evidence.cases]
    encoded = [encode(stages, case.prompt, case.image) for case in cases]
    checks = list(compare_decoder(stages, dataclasses.replace(evidence, cases=cases), encoded))
    failed = [check for check in checks if not check.passed]
    if failed:
        (folder / expansion.GRAPH).unlink()
        (folder / expansion.TABLE).unlink()
        logger.warning(
            "the decoder's weights cannot be expanded, so --expand-weights will not work with this bundle: %s",
            "; ".join(f"{check.name}: error {check.error:.2g}, {check.tolerance:.2g} allowed" for check in failed),
        )


def _prefill(expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is expected after a prompt alone: the later tokens are run by the first graph."""
    first = {contract.TOKEN_IDS, contract.LOGITS}
    return {name: values[:1] if name in first else values for name, values in expected.items()}


def failures(folder: Path, evidence: Evidence, weights: Check) -> list[Check]:
    """The checks in which a written bundle differs from the evidence."""
    checks = [weights]
    if weights.passed:
        checks += compare(OnDisk(folder), evidence)
    return [check for check in checks if not check.passed]
