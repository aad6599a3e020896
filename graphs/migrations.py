"""Manifests of older formats made into today's: one function a step, from each format to the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import BundleError

#: The format that an export writes. It changes with every new field, so that an older version says that it is too old.
FORMAT = 10
OLDEST = 7

Data = dict[str, Any]


def _from_7(data: Data) -> Data:
    """Format 8 has more defaults of generation, and ids that are counted at the placeholders of images.

    All new fields may be absent. Format 7 always has each of its defaults, `top_k` too.
    """
    return data


def _from_8(data: Data) -> Data:
    """Format 9 has bundles of the kind "embedding": `vectors`, and their loss.

    It also has images in a grid of tiles whose names stand in the prompt, images of which the middle is seen, text
    around images in a chat, a token before conversations, models that take no videos, and `embedding.ahead`. All new
    fields may be absent.
    """
    return data


def _from_9(data: Data) -> Data:
    """Format 10 has videos of which so many frames a second are taken, and frames whose times stand in the prompt.

    It also has long images that are cut into parts, the texts around these, KV caches of int8 (`precision.kv_cache`)
    and how weights were calibrated. All new fields may be absent.
    """
    return data


STEPS: dict[int, Callable[[Data], Data]] = {7: _from_7, 8: _from_8, 9: _from_9}


def migrate(data: Any, path: Path) -> Data:
    """The JSON of a manifest as one of today's format.

    Raises:
        BundleError: if it is not a manifest, older than the oldest format that is read, or newer than this version.
    """
    stored = data.get("format") if isinstance(data, dict) else None
    if type(stored) is not int or stored < OLDEST:
        raise BundleError(
            f"{path}: format is {stored!r}, this version reads {OLDEST} to {FORMAT}; export the bundle again"
        )
    if stored > FORMAT:
        made_with = data.get("made_with")
        version = made_with.get("onnx-vlm") if isinstance(made_with, dict) else None
        raise BundleError(
            f"{path}: format is {stored}, this version reads {OLDEST} to {FORMAT}; it takes onnx-vlm"
            f" {version or 'of a newer version'} or later: pip install --upgrade onnx-vlm"
        )
    for step in range(stored, FORMAT):
        data = STEPS[step](data)
    return {**data, "format": FORMAT}
