"""A fifth family, kept outside the package: LLaVA. It imports the kit for authors of families alone."""

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
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)


class VisionEncoder(torch.nn.Module):
    def __init__(self, tower: torch.nn.Module, layer: int) -> None:
        super().__init__()
        self.tower, self.layer = tower, layer

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]


def build(checkpoint: Checkpoint) -> ModelParts:
    parsed = parse(LlavaConfig, checkpoint.config)
    text, vision = parsed.text_config, parsed.vision_config
    model = LlavaForConditionalGeneration(parsed)
    model.tie_weights()
    decoder = RotaryDecoder(model.model.language_model, model.lm_head, causal=True, first_position=0)
    side, patches = vision.image_size, (vision.image_size // vision.patch_size) ** 2
    return ModelParts(
        model=model,
        modules={
            contract.VISION_ENCODER: VisionEncoder(model.model.vision_tower, parsed.vision_feature_layer),
            contract.PROJECTOR: model.model.multi_modal_projector,
            contract.DECODER: decoder,
        },
        graphs={
            contract.VISION_ENCODER: contract.vision_encoder(side, side, patches, vision.hidden_size),
            contract.PROJECTOR: contract.projector(patches, vision.hidden_size, patches, text.hidden_size),
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
    text = "<bos>" + "<image>" * model.config.image_seq_length + f"USER: {prompt}\nASSISTANT:"
    return {**tokenizer(text, add_special_tokens=False, return_tensors="pt"), **pixels}


def recipe(checkpoint: Checkpoint) -> Recipe:
    parsed = parse(LlavaConfig, checkpoint.config)
    checkpoint.expect_token("<image>", parsed.image_token_id)
    return Recipe(
        examples=("What is it?", "What colour is it?"),
        image=image_processor.resize(checkpoint.processor("image"), parsed.vision_config.image_size),
        prompt=manifest.TextPrompt(
            start="<bos>",
            image_start="",
            image="<image>",
            image_token_id=parsed.image_token_id,
            image_end="",
            before="USER: ",
            after="\nASSISTANT:",
            strip=False,
            clean_up_spaces=False,
            min_images=0,
            max_images=None,
        ),
        embedding=manifest.Embedding(scale=1.0),
        max_positions=parsed.text_config.max_position_embeddings,
        eos_token_id=parsed.text_config.eos_token_id,
    )
