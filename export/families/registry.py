"""The interface of a family of models, and the registry that finds a family by its `model_type`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from ...graphs import CheckpointError, GraphSpec, VLMError, manifest
from ...graphs.errors import explain_import_error
from ..checkpoint import generation_config
from ..checkpoint.checkpoint import Checkpoint
from . import plugins

#: model_type in config.json -> the module that exports it, imported when it is needed
_MODULES: dict[str, str | ModuleType] = {
    "colpali": "onnx_vlm.export.families.colpali",
    "gemma3": "onnx_vlm.export.families.gemma3",
    "idefics3": "onnx_vlm.export.families.smolvlm",
    "kosmos-2": "onnx_vlm.export.families.kosmos2",
    "llava": "onnx_vlm.export.families.llava",
    "paligemma": "onnx_vlm.export.families.paligemma",
    "perception_lm": "onnx_vlm.export.families.perception_lm",
    "smolvlm": "onnx_vlm.export.families.smolvlm",
}


DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class ModelParts:
    """The source model and the three parts of it that become graphs, all on fake tensors.

    Attributes:
        modules: the vision encoder, the projector and the decoder, by the names in `contract.GRAPHS`.
        graphs: the inputs and outputs of each, by the same names.
        embed_tokens: the parameter whose rows the runtime looks up.
        constants: values of buffers that the model computes and no checkpoint stores, by their names in `model`.
        fused: a context in which the parts trace to operators of ONNX Runtime that the family adds.
    """

    model: PreTrainedModel
    modules: Mapping[str, torch.nn.Module]
    graphs: Mapping[str, GraphSpec]
    embed_tokens: torch.nn.Parameter
    constants: Mapping[str, np.ndarray]
    fused: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class Recipe:
    """The recipes of a manifest that depend on the family.

    Attributes:
        examples: prompts for one image, with which the bundle is compared to the source model; queries, where it makes
            vectors.
        eos_token_id: ends an answer where generation_config.json names no token that does.
        chat_template: takes the place of the checkpoint's.
    """

    examples: tuple[str, ...]
    image: manifest.ImageRecipe
    prompt: manifest.TextPrompt | manifest.ChatPrompt
    embedding: manifest.Embedding
    max_positions: int
    eos_token_id: int | list[int] | None
    video: manifest.Video | None = None
    grounding: manifest.LocationTokens | manifest.PatchTokens | None = None
    vectors: manifest.Vectors | None = None
    chat_template: str | None = None


class Family(Protocol):
    """A module (or object) with these functions."""

    def build(self, checkpoint: Checkpoint) -> ModelParts:
        """Build the model of a checkpoint's config.json, on tensors that have shapes and no memory.

        Raises:
            CheckpointError: if the model cannot be exported.
        """

    def recipe(self, checkpoint: Checkpoint) -> Recipe:
        """Read from a checkpoint's configuration files how images and prompts are prepared and boxes written.

        Raises:
            CheckpointError: for settings that the runtime does not follow.
        """

    def source_inputs(
        self, checkpoint: Checkpoint, model: PreTrainedModel, image: Image.Image | None, prompt: str
    ) -> dict[str, torch.Tensor]:
        """The inputs that transformers' processor makes of an image and a prompt for the model's `generate`.

        A model that makes vectors takes a page, of which the prompt says nothing, or without an image a query.

        Returns:
            `input_ids` (1, tokens), `pixel_values` (..., 3, height, width) if there is an image, and any others.
        """


def register(model_type: str, family: Any) -> None:
    """Add a family, or replace one: `family` is a module with the functions of `Family`."""
    _MODULES[model_type] = family


def find(model_type: str | None) -> Family:
    """The family of a `model_type`: a registered one, the package's own, or one that another package brings.

    Raises:
        CheckpointError: for an unknown one, with those that are known, if a package that it needs is missing, or if
            another package's family does not load or has the name of one of the package's own.
    """
    family = _MODULES.get(model_type) if isinstance(model_type, str) else None
    if isinstance(model_type, str) and (family is None or isinstance(family, str)):
        family = plugins.load(model_type, own=family is not None) or family
    if family is None:
        known = ", ".join(sorted(plugins.names() | _MODULES.keys()))
        raise CheckpointError(f"config.json: model_type {model_type!r} is not supported; supported: {known}")
    try:
        return importlib.import_module(family) if isinstance(family, str) else family
    except ImportError as error:
        raise CheckpointError(explain_import_error(error, f"exporting model_type {model_type!r}")) from error


def build(family: Family, checkpoint: Checkpoint) -> ModelParts:
    """The parts of a checkpoint's model.

    Raises:
        CheckpointError: if transformers cannot build the model, as a value of its configuration is invalid.
    """
    try:
        return family.build(checkpoint)
    except VLMError:
        raise
    except Exception as error:  # the model's code may raise anything for values that it did not expect
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"transformers cannot build the model of {checkpoint.folder / 'config.json'}:"
            f" {type(error).__name__}: {reason}; mend the value"
        ) from error


def generation(checkpoint: Checkpoint, recipe: Recipe) -> manifest.GenerationDefaults:
    """The defaults of generation: from generation_config.json, and from the family where that says nothing.

    Raises:
        CheckpointError: for a key of the file that is not supported, or whose value is invalid.
    """
    settings = checkpoint.json(generation_config.NAME)
    return manifest.GenerationDefaults(
        eos_token_ids=generation_config.end_ids(settings, recipe.eos_token_id),
        max_new_tokens=generation_config.limit(settings, "max_new_tokens") or DEFAULT_NEW_TOKENS,
        max_positions=recipe.max_positions,
        defaults=generation_config.sampling(settings),
        max_length=None if settings.get("max_new_tokens") else generation_config.limit(settings, "max_length"),
    )
