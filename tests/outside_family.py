"""A family kept outside the package: ViP-LLaVA. It imports the kit for authors of families alone."""

from __future__ import annotations

import numpy as np
import torch
from onnx_vlm.export.families import (
    Checkpoint,
    ModelParts,
    Recipe,
    RotaryDecoder,
    contract,
    image_processor,
    manifest,
    parse,
)
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedModel,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

START, AFTER = "<bos>###Human: ", "###Assistant:"


class VisionEncoder(torch.nn.Module):
    """Hidden states of several layers, one beside the other, without the class token."""

    def __init__(self, tower: torch.nn.Module, layers: list[int]) -> None:
        super().__init__()
        self.tower, self.layers = tower, layers

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        return torch.cat([states[layer][:, 1:] for layer in self.layers], -1)


def build(checkpoint: Checkpoint) -> ModelParts:
    parsed = parse(VipLlavaConfig, checkpoint.config)
    text, vision, layers = parsed.text_config, parsed.vision_config, list(parsed.vision_feature_layer)
    model = VipLlavaForConditionalGeneration(parsed)
    model.tie_weights()
    decoder = RotaryDecoder(model.model.language_model, model.lm_head, causal=True, first_position=0)
    side, patches = vision.image_size, (vision.image_size // vision.patch_size) ** 2
    width = vision.hidden_size * len(layers)
    return ModelParts(
        model=model,
        modules={
            contract.VISION_ENCODER: VisionEncoder(model.model.vision_tower, layers),
            contract.PROJECTOR: model.model.multi_modal_projector,
            contract.DECODER: decoder,
        },
        graphs={
            contract.VISION_ENCODER: contract.vision_encoder(side, side, patches, width),
            contract.PROJECTOR: contract.projector(patches, width, patches, text.hidden_size),
            contract.DECODER: decoder.spec,
        },
        embed_tokens=model.get_input_embeddings().weight,
        constants={
            "model.vision_tower.embeddings.position_ids": np.arange(patches + 1)[None],
            **decoder.constants(),
        },
    )


def source_inputs(
    checkpoint: Checkpoint, model: PreTrainedModel, image: Image.Image, prompt: str
) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    pixels = AutoImageProcessor.from_pretrained(checkpoint.folder, trust_remote_code=False)(image, return_tensors="pt")
    text = START + "<image>" * model.config.image_seq_length + f"\n{prompt}{AFTER}"
    return {**tokenizer(text, add_special_tokens=False, return_tensors="pt"), **pixels}


def recipe(checkpoint: Checkpoint) -> Recipe:
    parsed = parse(VipLlavaConfig, checkpoint.config)
    checkpoint.expect_token("<image>", parsed.image_token_id)
    return Recipe(
        examples=("What is it?", "What colour is it?"),
        image=image_processor.crop(checkpoint.processor("image"), parsed.vision_config.image_size),
        prompt=manifest.TextPrompt(
            start=START,
            image_start="",
            image="<image>",
            image_token_id=parsed.image_token_id,
            image_end="",
            before="\n",
            after=AFTER,
            strip=False,
            clean_up_spaces=False,
            min_images=1,
            max_images=1,
        ),
        embedding=manifest.Embedding(scale=1.0),
        max_positions=parsed.text_config.max_position_embeddings,
        eos_token_id=parsed.text_config.eos_token_id,
    )
