"""The kit for authors of model families; docs/add-a-family.md explains how to write one.

* `Family` is the protocol: a module with the functions `build`, `recipe` and `source_inputs`; an entry point of the
  group `onnx_vlm.families`, or `register`, adds it.
* `ModelParts` and `Recipe` are what its functions return, in the words of `contract` (names and shapes of the inputs
  and outputs of graphs) and `manifest` (how images and prompts are prepared and boxes are written).
* `Checkpoint` reads a checkpoint's files, `parse` makes its config.json a configuration class of transformers, and
  `image_processor` reads the settings of image processors. A `CheckpointError` says what cannot be exported.
* `RotaryDecoder` makes a graph of a causal language model with rotary embeddings. Other ones extend `Decoder`, whose
  layers attend by `CachedAttention`.
* `replaced` swaps functions of other packages while a model is built or traced; `with_real_tensors` computes values
  that no checkpoint stores.
"""

from __future__ import annotations

from ...graphs import CheckpointError, contract, manifest
from ..checkpoint import image_processor
from ..checkpoint.checkpoint import Checkpoint, parse
from ..tracing.decoder import Decoder, RotaryDecoder
from ..tracing.fused_attention import CachedAttention
from ..tracing.patching import replaced, with_real_tensors
from .registry import Family, ModelParts, Recipe, register

__all__ = [
    "CachedAttention",
    "Checkpoint",
    "CheckpointError",
    "Decoder",
    "Family",
    "ModelParts",
    "Recipe",
    "RotaryDecoder",
    "contract",
    "image_processor",
    "manifest",
    "parse",
    "register",
    "replaced",
    "with_real_tensors",
]
