"""The targets of an export: which operators its graphs have, and what else follows from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from ..graphs import ExportError, contract
from ..graphs.precision import PRECISIONS
from ..graphs.shape_profile import Profile, SizeRange
from .families.registry import ModelParts, Recipe
from .tracing import fused_attention, portable_attention
from .tracing.fused_attention import CachedAttention
from .tracing.portable_attention import WrittenCache

ROWS = 8  #: most rows of a batch: beams, or prompts of one call
TILES = 4  #: most tiles of a run
TEXT = 64  #: tokens of a usual prompt besides its image
LONGEST_TEXT = 1024  #: tokens of the longest prompt besides its image
SMALLEST_CACHE = 256  #: tokens; the runtime makes none smaller on a GPU, and doubles it until it is enough
MASKS = 16  #: most masks of an answer
USUAL_TILES = 5  #: of an image that is cut into tiles, its thumbnail included


@dataclass(frozen=True)
class Target:
    """The operators and runtimes that the graphs of a bundle are made for.

    Attributes:
        name: as `export_model` and the manifest call it.
        opset: the version of the ONNX standard.
        domains: the domains of operators that its graphs may have; "" is the standard's.
        precisions: the precisions that its operators can compute with.
        attention: the attention that transformers' modules call, by its name in the `AttentionInterface`.
        cached: how a decoder attends over its KV cache.
        cache: how a decoder graph treats its KV buffers, in the words of the manifest.
        tracing: the context in which the parts of a model are traced.
        profiles: the shape profile of each graph, none where the graphs are not made for ranges of shapes.
    """

    name: str
    opset: int
    domains: tuple[str, ...]
    precisions: tuple[str, ...]
    attention: str
    cached: type[CachedAttention]
    cache: Literal["in_place", "copied"]
    tracing: Callable[[ModelParts], AbstractContextManager[None]]
    profiles: Callable[[ModelParts, Recipe], dict[str, Profile]]

    def check_precisions(self, precisions: Mapping[str, str]) -> None:
        """Raise an ExportError for precisions that the target has no operators for."""
        if contract.KV_CACHE in precisions and self is not ONNXRUNTIME:
            raise ExportError(
                f"a kv_cache of {precisions[contract.KV_CACHE]} is for an operator of ONNX Runtime; choose the target"
                f" {ONNXRUNTIME.name}"
            )
        refused = sorted(set(precisions.values()) - set(self.precisions))
        if refused:
            raise ExportError(
                f"precision {' and '.join(refused)} is not supported for the target {self.name}: its weights in blocks"
                f" are for an operator of ONNX Runtime; choose {', '.join(self.precisions)}, or the target"
                f" {ONNXRUNTIME.name}"
            )

    def prepare(self, parts: ModelParts) -> None:
        """Make the parts of a model trace to the target's operators.

        Raises:
            CheckpointError: if these operators do not take attention heads of the decoder's size.
        """
        parts.model.set_attn_implementation(self.attention)
        parts.modules[contract.DECODER].attend_by(self.cached)

    def check_operators(self, name: str, graph: ir.Model) -> None:
        """Raise an ExportError if the graph `name` has operators of other domains than the target's."""
        foreign = sorted({f"{node.domain}::{node.op_type}" for node in graph.graph if node.domain not in self.domains})
        if foreign:
            raise ExportError(
                f"{name} has {', '.join(foreign)}, which the target {self.name} excludes; choose the target"
                f" {ONNXRUNTIME.name}"
            )


def find(name: str) -> Target:
    """The target of a name; raises an ExportError for an unknown one."""
    if name not in TARGETS:
        raise ExportError(f"target {name!r} is not supported; supported: {', '.join(TARGETS)}")
    return TARGETS[name]


def engine_profiles(parts: ModelParts, recipe: Recipe) -> dict[str, Profile]:
    """The shapes that TensorRT builds engines for, by graph.

    A decoding step is the usual shape of the decoder, because most of its runs are; the largest is a long prompt. One
    that makes vectors runs whole pages.
    """
    _, tile_tokens, _ = parts.graphs[contract.PROJECTOR].outputs[0].shape
    tiles = recipe.image.most_tiles
    frames = recipe.video.frames if recipe.video else 1
    usual_prompt = tile_tokens * min(USUAL_TILES, tiles) + TEXT
    longest_prompt = tile_tokens * max(tiles, frames) + LONGEST_TEXT
    positions = recipe.max_positions
    smallest = min(SMALLEST_CACHE, positions)
    usual_cache = min(positions, max(smallest, 1 << usual_prompt.bit_length()))
    longest = min(positions, longest_prompt)
    sequence, kept = SizeRange(1, 1, longest), SizeRange(1, 1, 1)
    cache = SizeRange(smallest, usual_cache, positions)
    if recipe.vectors is not None:
        sequence = kept = cache = SizeRange(1, min(usual_prompt, longest), longest)
    ranges = {
        contract.TILES: SizeRange(1, 1, TILES),
        contract.BATCH: SizeRange(1, 1, ROWS),
        contract.SEQUENCE: sequence,
        contract.KEPT: kept,
        contract.CAPACITY: cache,
        contract.MASKS: SizeRange(1, 1, MASKS),
    }
    return {
        name: {axis: sizes for axis, sizes in ranges.items() if axis in spec.axes}
        for name, spec in parts.graphs.items()
    }


#: ONNX Runtime's fused operators.
ONNXRUNTIME = Target(
    name="onnxruntime",
    opset=23,
    domains=("", "com.microsoft"),
    precisions=tuple(PRECISIONS),
    attention=fused_attention.NAME,
    cached=CachedAttention,
    cache="in_place",
    tracing=lambda parts: parts.fused(),
    profiles=lambda parts, recipe: {},
)
#: Operators of the ONNX standard alone, as TensorRT parses them.
PORTABLE = Target(
    name="portable",
    opset=portable_attention.OPSET,
    domains=("",),
    precisions=tuple(row.name for row in PRECISIONS.values() if row.dtype),
    attention=portable_attention.NAME,
    cached=WrittenCache,
    cache="copied",
    tracing=lambda parts: nullcontext(),
    profiles=engine_profiles,
)
TARGETS = {target.name: target for target in (ONNXRUNTIME, PORTABLE)}
