"""The portable target: graphs of standard operators, with the shape profiles that TensorRT builds its engines for."""

from __future__ import annotations

import onnx_ir as ir

from ..graphs import ExportError, contract, manifest
from ..graphs.shape_profile import Extent, Profile
from . import precisions as lower
from .families.registry import Behaviour, Stages
from .tracing import portable_attention as standard

ONNXRUNTIME, PORTABLE = TARGETS = ("onnxruntime", "portable")
ROWS = 8  #: most rows of a batch: beams, or prompts of one call
TILES = 4  #: most tiles of a run
TEXT = 64  #: tokens of a usual prompt besides its picture
LONGEST_TEXT = 1024  #: the same of the longest prompt
SMALLEST_CACHE = 256  #: tokens; the runtime makes none smaller on a GPU, and doubles it until it is enough
MASKS = 16  #: most masks of an answer
USUAL_TILES = 5  #: of a picture that is cut into tiles, its thumbnail included


def check(target: str, precisions: dict[str, str]) -> None:
    """Raise an ExportError for an unknown target, or precisions that it has no operators for."""
    if target not in TARGETS:
        raise ExportError(f"target {target!r} is not supported; supported: {', '.join(TARGETS)}")
    blocks = sorted({chosen for chosen in precisions.values() if chosen in lower.BITS})
    if target == PORTABLE and blocks:
        raise ExportError(
            f"precision {' and '.join(blocks)} is not supported for the target {PORTABLE}: its weights in blocks are"
            f" for an operator of ONNX Runtime; choose {', '.join(lower.FLOATS)}, or the target {ONNXRUNTIME}"
        )


def standardise(stages: Stages) -> None:
    """Make the parts of a model trace to operators of the ONNX standard; whose own code knows others looks at it."""
    stages.model.set_attn_implementation(standard.NAME)
    for module in stages.modules.values():
        module.standard = True


def check_operators(name: str, graph: ir.Model) -> None:
    """Raise an ExportError if a graph has other operators than the standard's."""
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in graph.graph if node.domain})
    if foreign:
        raise ExportError(
            f"{name} has {', '.join(foreign)}, which the target {PORTABLE} excludes; choose the target {ONNXRUNTIME}"
        )


def profiles(stages: Stages, behaviour: Behaviour) -> dict[str, Profile]:
    """The shape profile of each graph; usual for the decoder are steps, most of its runs, largest is a long prompt."""
    _, tile_tokens, _ = stages.graphs[contract.PROJECTOR].outputs[0].shape
    tiled, video = isinstance(behaviour.image, manifest.Tiles), behaviour.video
    usual = tile_tokens * (min(USUAL_TILES, 1 + behaviour.image.max_tiles) if tiled else 1) + TEXT
    most = max(1 + behaviour.image.max_tiles if tiled else 1, video.frames if video else 1)
    positions = behaviour.max_positions
    smallest = min(SMALLEST_CACHE, positions)
    sizes = {
        contract.TILES: Extent(1, 1, TILES),
        contract.BATCH: Extent(1, 1, ROWS),
        contract.SEQUENCE: Extent(1, 1, min(positions, tile_tokens * most + LONGEST_TEXT)),
        contract.KEPT: Extent(1, 1, 1),
        contract.CAPACITY: Extent(smallest, min(positions, max(smallest, 1 << usual.bit_length())), positions),
        contract.MASKS: Extent(1, 1, MASKS),
    }
    return {name: {axis: sizes[axis] for axis in sizes if axis in spec.axes} for name, spec in stages.graphs.items()}
