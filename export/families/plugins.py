"""Families of other packages, found by their entry points: the name is a model_type, the value a module."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ...graphs import CheckpointError

GROUP = "onnx_vlm.families"
FUNCTIONS = ("build", "recipe", "source_inputs")  #: those of a family


def names() -> set[str]:
    """Every model_type that an installed package has a family for. No code of theirs runs."""
    return {point.name for point in entry_points(group=GROUP)}


def load(model_type: str, own: bool) -> Any | None:
    """The family that an installed package has for a model_type; None if there is none.

    Args:
        own: whether onnx-vlm has a family of that name itself.

    Raises:
        CheckpointError: if two have one, if it does not load, or if it is no family.
    """
    points = list(entry_points(group=GROUP, name=model_type))
    packages = [_package(point) for point in points]
    if own and points:
        raise CheckpointError(
            f"{packages[0]} has a family for the model_type {model_type!r}, which onnx-vlm has itself; uninstall that"
            " package"
        )
    if not points:
        return None
    if len(points) > 1:
        raise CheckpointError(
            f"{' and '.join(packages)} both have a family for the model_type {model_type!r}; uninstall all but one"
        )
    try:
        family = points[0].load()
    except Exception as error:  # the package's own code may raise anything
        raise CheckpointError(
            f"the family for the model_type {model_type!r} does not load, {points[0].value} of {packages[0]}:"
            f" {type(error).__name__}: {error}; mend, upgrade or uninstall that package"
        ) from error
    if missing := [name for name in FUNCTIONS if not callable(getattr(family, name, None))]:
        raise CheckpointError(
            f"{points[0].value} of {packages[0]} is no family: it has no function {', '.join(missing)}"
        )
    return family


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name} {point.dist.version}" if point.dist else "a package"
