"""Let an installed torchvision be imported beside a torch that it was not built for.

timm and transformers' image processors import torchvision. A build for another torch (one with CUDA beside one without,
say) cannot load its compiled operators and then fails to import, although nothing here calls them.
"""

from __future__ import annotations

import importlib.util

import torch

# The two that its import looks up; it declares or merely names the others.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None


def make_torchvision_importable() -> None:
    """Declare the operators that a torchvision without its compiled library would stumble over.

    Does nothing where torchvision imports as it is, or is not installed.
    """
    global _library
    if _library is not None or importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            _library.define(schema)
        import torchvision  # noqa: F401
