"""PaliGemma and PaliGemma 2: SigLIP tower, linear projector, Gemma or Gemma 2 with a bidirectional prefix.

Parity notes. Positions count from 1. Every token of the prefix (images, prompt) sees the whole prefix, also in Gemma
2's sliding layers, and whatever the text config says about bidirectional attention: transformers makes the mask from
the token types.
Token embeddings are scaled by sqrt(hidden), image embeddings are not.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, PaliGemmaConfig, PaliGemmaForConditionalGeneration, PreTrainedModel

from ...graphs import CheckpointError, contract, manifest
from ..checkpoint import image_processor
from ..checkpoint.checkpoint import Checkpoint, parse
from ..tracing.decoder import RotaryDecoder
from .registry import ModelParts, Recipe

LOCATIONS = manifest.LocationTokens(
    token="<loc{:04d}>",
    code="<seg{:03d}>",
    codes=16,
    code_values=128,
    bins=1024,
    edges=("ymin", "xmin", "ymax", "xmax"),
    separator=";",
)
IMAGE_TOKEN = "<image>"


class VisionEncoder(torch.nn.Module):
    """The SigLIP tower with its last norm."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values, return_dict=True).last_hidden_state


def build(checkpoint: Checkpoint) -> ModelParts:
    """The PaliGemma model of a checkpoint's config.json and its three parts; see `Family.build`."""
    parsed = parse(PaliGemmaConfig, checkpoint.config)
    text, vision = parsed.text_config, parsed.vision_config
    model = PaliGemmaForConditionalGeneration(parsed)
    model.tie_weights()
    decoder = RotaryDecoder(model.model.language_model, model.lm_head, causal=False, first_position=1)
    patches = (vision.image_size // vision.patch_size) ** 2
    return ModelParts(
        model=model,
        modules={
            contract.VISION_ENCODER: VisionEncoder(model.model.vision_tower),
            contract.PROJECTOR: model.model.multi_modal_projector,
            contract.DECODER: decoder,
        },
        graphs={
            contract.VISION_ENCODER: contract.vision_encoder(
                vision.image_size, vision.image_size, patches, vision.hidden_size
            ),
            contract.PROJECTOR: contract.projector(patches, vision.hidden_size, patches, text.hidden_size),
            contract.DECODER: decoder.spec,
        },
        embed_tokens=model.get_input_embeddings().weight,
        constants={
            "model.vision_tower.embeddings.position_ids": np.arange(patches)[None],
            **decoder.constants(),
        },
    )


def source_inputs(
    checkpoint: Checkpoint, model: PreTrainedModel, image: Image.Image, prompt: str
) -> dict[str, torch.Tensor]:
    """The inputs of `PaliGemmaForConditionalGeneration.generate`; see `Family.source_inputs`."""
    processor = AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=False)
    inputs = processor(images=image, text=IMAGE_TOKEN + prompt, return_tensors="pt")
    return {name: values for name, values in inputs.items() if name != "labels"}


def recipe(checkpoint: Checkpoint) -> Recipe:
    """How PaliGemma takes images and prompts and writes boxes; see `Family.recipe`."""
    parsed = parse(PaliGemmaConfig, checkpoint.config)
    text, side = parsed.text_config, parsed.vision_config.image_size
    image = image_processor.resize(checkpoint.processor("image"), default=side)
    if (image.height, image.width) != (side, side):
        raise CheckpointError(
            f"the image processor resizes to {image.height} x {image.width}, config.json has an image_size of {side}"
        )
    checkpoint.expect_token(IMAGE_TOKEN, parsed.image_token_id)
    return Recipe(
        examples=("caption en", "detect red circle"),
        image=image,
        prompt=manifest.TextPrompt(
            start="",
            image_start="",
            image=IMAGE_TOKEN,
            image_token_id=parsed.image_token_id,
            image_end="",
            before="<bos>",
            after="\n",
            strip=False,
            clean_up_spaces=False,
            min_images=1,
            max_images=None,
        ),
        embedding=manifest.Embedding(scale=float(np.float32(text.hidden_size**0.5))),
        max_positions=text.max_position_embeddings,
        eos_token_id=text.eos_token_id,
        grounding=LOCATIONS if checkpoint.tokenizer.token_to_id(LOCATIONS.token.format(0)) is not None else None,
    )
