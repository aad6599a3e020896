"""What the source model makes of one picture and prompt, stage by stage: the proof that a bundle carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...graphs import contract
from ...runtime.verify import Check, compare
from .. import system_errors
from ..checkpoint import hub
from ..checkpoint.checkpoint import Checkpoint, Weights
from ..families import registry as family
from ..families.registry import Family
from .bundle_in_parts import OnDisk
from .source_model import empty_parameters, read_from_disk, remember

NEW_TOKENS = 8


def picture() -> Image.Image:
    """A small picture with smooth and sharp parts, wider than high."""
    ramp = np.linspace(0, 255, 160, dtype=np.uint8)
    across, down = np.meshgrid(ramp, ramp[::-1][:120])
    drawn = Image.fromarray(np.stack([across, down, 255 - across // 2], -1))
    draw = ImageDraw.Draw(drawn)
    draw.ellipse((20, 30, 80, 90), "red", "black")
    draw.rectangle((95, 15, 145, 60), "blue")
    return drawn


@torch.inference_mode()
def expectations(
    checkpoint: Checkpoint, chosen: Family, image: Image.Image, prompt: str, eos_token_ids: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """What the source model's processor and stages make of a picture and prompt, computed in float32.

    Returns:
        Arrays: `input_ids` (tokens,), the inputs and outputs of vision encoder and projector under their names,
        `token_ids` (new tokens,) of a greedy answer, and the `logits` (new tokens, vocab) behind each.
    """
    with empty_parameters():
        parts = family.build(chosen, checkpoint)
    model, weights = parts.model, Weights(checkpoint, parts.model)
    read_from_disk(model, {number: weights.sources.get(name) for number, name in weights.names.items()})
    for tower in parts.modules[contract.VISION_ENCODER].children():
        remember(tower)  # it is asked once as a stage and once for the answer
    inputs = chosen.source_inputs(checkpoint, model, image, prompt)
    pixels = inputs["pixel_values"].flatten(0, -4)
    features = parts.modules[contract.VISION_ENCODER](pixels)
    embeds = parts.modules[contract.PROJECTOR](features)
    answer = model.generate(
        **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True,
        eos_token_id=list(eos_token_ids),
    )  # fmt: skip
    input_ids = inputs["input_ids"][0]
    return {
        contract.INPUT_IDS: input_ids.numpy(),
        contract.PIXEL_VALUES: pixels.numpy(),
        contract.VISION_FEATURES: features.numpy(),
        contract.IMAGE_EMBEDS: embeds.numpy(),
        contract.TOKEN_IDS: answer.sequences[0, len(input_ids) :].numpy(),
        contract.LOGITS: torch.cat(answer.logits).numpy(),
    }


@system_errors.named()
def live(checkpoint: str | Path, adapter: str | Path | None = None) -> tuple[str, Image.Image, dict[str, np.ndarray]]:
    """Prompt, picture and expectations of a checkpoint, computed now; for `verify`."""
    source = hub.open_checkpoint(checkpoint, adapter)
    chosen = family.find(source.config.get("model_type"))
    recipe = chosen.recipe(source)
    image, eos_token_ids = picture(), family.generation(source, recipe).eos_token_ids
    return recipe.example, image, expectations(source, chosen, image, recipe.example, eos_token_ids)


def failures(folder: Path, prompt: str, image: Image.Image, expected: dict[str, np.ndarray]) -> list[Check]:
    """The stages of a written bundle that do not give what is expected."""
    return [check for check in compare(OnDisk(folder), prompt, image, expected) if not check.passed]


def write(folder: Path, image: Image.Image, expected: dict[str, np.ndarray]) -> None:
    """Write the proof's files into the bundle at `folder`."""
    (folder / contract.PROOF_PICTURE).parent.mkdir()
    image.save(folder / contract.PROOF_PICTURE)
    np.savez(folder / contract.PROOF_ARRAYS, **expected)
