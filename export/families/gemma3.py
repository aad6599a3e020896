"""Gemma 3 with vision: SigLIP tower, a projector that averages patches, Gemma 3 text.

Parity notes. Positions count from 0. Text is causal; the tokens of an image also see those of it that follow, in
sliding layers as far as the window reaches back. Sliding and full layers have rotary tables of their own. Token
embeddings are scaled by sqrt(hidden), image embeddings are not. Neither attention nor logits are soft-capped, whatever
the text config says: transformers' modules leave those settings unused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

from ...graphs import CheckpointError, contract, manifest
from ..checkpoint import image_processor
from ..checkpoint.checkpoint import Checkpoint, parse
from ..tracing.decoder import RotaryDecoder
from .registry import ModelParts, Recipe

START, IMAGE_TOKEN, END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
DEFAULT_SIDE, DEFAULT_RESAMPLE = 224, 2  # those of the image processor's class
DEFAULT_TOKENS = 256  # as the processor's class has it
CROP_DEFAULTS = {
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
CROP_TEXTS = manifest.CropTexts(
    "Here is the original image ", " and here are some crops to help you see better ", separator=" "
)


class VisionEncoder(torch.nn.Module):
    """The SigLIP tower with its last norm."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values, return_dict=True).last_hidden_state


def build(checkpoint: Checkpoint) -> ModelParts:
    """The Gemma 3 model of a checkpoint's config.json and its three parts; see `Family.build`."""
    parsed = parse(Gemma3Config, checkpoint.config)
    text, vision = parsed.text_config, parsed.vision_config
    if text.use_bidirectional_attention:
        raise CheckpointError("use_bidirectional_attention is true in config.json; only causal text is supported")
    patches, tokens = (vision.image_size // vision.patch_size) ** 2, _image_tokens(checkpoint, parsed)
    text.final_logit_softcapping = None  # transformers' text model would cap; the whole model does not
    model = Gemma3ForConditionalGeneration(parsed)
    model.tie_weights()
    decoder = RotaryDecoder(model.model.language_model, model.lm_head, causal=True, first_position=0, ahead=True)
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
            contract.PROJECTOR: contract.projector(patches, vision.hidden_size, tokens, text.hidden_size),
            contract.DECODER: decoder.spec,
        },
        embed_tokens=model.get_input_embeddings().weight,
        constants={
            "model.vision_tower.embeddings.position_ids": np.arange(patches)[None],
            **decoder.constants(),
        },
    )


def _image_tokens(checkpoint: Checkpoint, parsed: Gemma3Config) -> int:
    """The number of image embeddings of an image.

    Raises:
        CheckpointError: if the projector does not make as many as the processor writes placeholders.
    """
    patches = parsed.vision_config.image_size // parsed.vision_config.patch_size
    side = int(parsed.mm_tokens_per_image**0.5)
    made = (patches // (patches // side)) ** 2 if 0 < side <= patches else 0
    written = checkpoint.json("processor_config.json").integer("image_seq_length", DEFAULT_TOKENS)
    if made != written:
        raise CheckpointError(
            f"an image of {patches} x {patches} patches has {made} embeddings by mm_tokens_per_image"
            f" ({parsed.mm_tokens_per_image}) in config.json, and {written} placeholders in a prompt by"
            " image_seq_length in processor_config.json"
        )
    return made


def source_inputs(
    checkpoint: Checkpoint, model: PreTrainedModel, image: Image.Image, prompt: str
) -> dict[str, torch.Tensor]:
    """The inputs of `Gemma3ForConditionalGeneration.generate`; see `Family.source_inputs`."""
    processor = AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=False)
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    crops = _crop_settings(checkpoint)
    return dict(processor(text=text, images=[image], add_special_tokens=False, return_tensors="pt", **crops))


def recipe(checkpoint: Checkpoint) -> Recipe:
    """How Gemma 3 takes images and prompts; see `Family.recipe`."""
    parsed = parse(Gemma3Config, checkpoint.config)
    text, side = parsed.text_config, parsed.vision_config.image_size
    settings = checkpoint.processor("image")
    image = image_processor.resize(settings | {"resample": settings.get("resample", DEFAULT_RESAMPLE)}, DEFAULT_SIDE)
    if (image.height, image.width) != (side, side):
        raise CheckpointError(
            f"the image processor resizes to {image.height} x {image.width}, config.json has an image_size of {side}"
        )
    if crops := _crop_settings(checkpoint):
        smallest, most, ratio = (crops[name] for name in CROP_DEFAULTS)
        image = manifest.Crops(side, side, image.pixels, smallest, most, ratio)
    if checkpoint.chat_template() is None:
        raise CheckpointError(f"{checkpoint.folder} has no {contract.CHAT_TEMPLATE}; save it there with AutoProcessor")
    checkpoint.expect_token(IMAGE_TOKEN, parsed.image_token_id)
    return Recipe(
        examples=("Describe the picture.", "How many circles are there?"),
        image=image,
        prompt=manifest.ChatPrompt(
            special_tokens=checkpoint.special_tokens(),
            image=IMAGE_TOKEN,
            image_token_id=parsed.image_token_id,
            written=START,
            image_start=f"\n\n{START}",
            image_end=f"{END}\n\n",
            crops=CROP_TEXTS if crops else None,
        ),
        embedding=manifest.Embedding(scale=float(np.float32(text.hidden_size**0.5)), ahead=True),
        max_positions=text.max_position_embeddings,
        eos_token_id=text.eos_token_id,
    )


def _crop_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The options of transformers' processor that cut long images into crops; none if they are not to be cut.

    The processor itself cuts only if it is called with these; to an export, the image processor's settings say it.
    """
    settings = checkpoint.processor("image")
    if settings.get("do_pan_and_scan") is None or not settings.flag("do_pan_and_scan", False):
        return {}
    smallest, most, ratio = CROP_DEFAULTS
    return {
        "do_pan_and_scan": True,
        smallest: settings.integer(smallest, CROP_DEFAULTS[smallest]),
        most: settings.integer(most, CROP_DEFAULTS[most]),
        ratio: CROP_DEFAULTS[ratio] if settings.get(ratio) is None else settings.number(ratio, 0),
    }
