"""PaliGemma and PaliGemma 2: SigLIP tower, linear projector, Gemma or Gemma 2 with a bidirectional prefix.

Parity notes. Positions count from 1. The prefix (pictures, prompt) sees itself whole, also through Gemma 2's sliding
layers and whatever the text config says of bidirectional attention: transformers makes that mask from the token types.
Token embeddings are scaled by sqrt(hidden), image embeddings are not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PaliGemmaConfig, PaliGemmaForConditionalGeneration

from ..graphs import CheckpointError, contract, manifest
from . import attention
from .checkpoint import parse
from .decoder import Decoder
from .family import Behaviour, Stages

LOCATIONS = manifest.LocationTokens("<loc{:04d}>", 1024, ("ymin", "xmin", "ymax", "xmax"), ";")
IMAGE_TOKEN = "<image>"


class VisionEncoder(torch.nn.Module):
    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values).last_hidden_state


def build(config: dict[str, Any]) -> Stages:
    parsed = parse(PaliGemmaConfig, config)
    parsed._attn_implementation = attention.NAME
    text, vision = parsed.text_config, parsed.vision_config
    model = PaliGemmaForConditionalGeneration(parsed)
    model.tie_weights()
    causal_lm = AutoModelForCausalLM.from_config(text)
    causal_lm.model, causal_lm.lm_head = model.model.language_model, model.lm_head
    decoder = Decoder(causal_lm, causal=False, first_position=1)
    patches = (vision.image_size // vision.patch_size) ** 2
    return Stages(
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
            contract.DECODER: contract.decoder(
                text.num_hidden_layers, text.num_key_value_heads, text.head_dim, text.hidden_size, text.vocab_size
            ),
        },
        embed_tokens=model.get_input_embeddings().weight,
        constants={
            "model.vision_tower.embeddings.position_ids": np.arange(patches)[None],
            **decoder.constants(),
        },
    )


def behaviour(config: dict[str, Any], processor: dict[str, Any], tokenizer: Tokenizer) -> Behaviour:
    parsed = parse(PaliGemmaConfig, config)
    text, vision = parsed.text_config, parsed.vision_config
    image_token_id = tokenizer.token_to_id(IMAGE_TOKEN)
    if image_token_id != parsed.image_token_id:
        raise CheckpointError(
            f"tokenizer.json has {IMAGE_TOKEN} as {image_token_id}, config.json as {parsed.image_token_id}"
        )
    return Behaviour(
        image=manifest.Resize(
            height=vision.image_size,
            width=vision.image_size,
            resample=("nearest", "lanczos", "bilinear", "bicubic")[processor.get("resample", 3)],
            rescale_factor=processor.get("rescale_factor", 1 / 255),
            mean=tuple(processor.get("image_mean", (0.5,) * 3)),
            std=tuple(processor.get("image_std", (0.5,) * 3)),
        ),
        prompt=manifest.Prompt(
            image=IMAGE_TOKEN,
            image_token_id=image_token_id,
            image_tokens=(vision.image_size // vision.patch_size) ** 2,
            before="<bos>",
            after="\n",
            needs_image=True,
        ),
        embedding=manifest.Embedding(scale=float(np.float32(text.hidden_size**0.5))),
        max_positions=text.max_position_embeddings,
        grounding=LOCATIONS if tokenizer.token_to_id(LOCATIONS.token.format(0)) is not None else None,
    )
