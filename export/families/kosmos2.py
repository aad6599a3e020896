"""KOSMOS-2: a CLIP tower, a resampler with latent queries, a decoder with sub-layer norms and sinusoidal positions.

Parity notes. Image embeddings replace token embeddings before both are scaled by sqrt(hidden); the decoder graph
scales them and adds the positions. Positions count from pad_token_id + 1; a `<pad>` in a text, which transformers gives
no position, counts here. In a padded batch transformers counts the padding into the positions of decoded tokens, so a
row's answer there may differ from the row's alone; ours is that of the row alone. Where the
image size of the processor differs from that of config.json, position encodings are interpolated, as transformers does
with `interpolate_pos_encoding`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Kosmos2Config, Kosmos2ForConditionalGeneration, PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.kosmos2.configuration_kosmos2 import Kosmos2VisionConfig
from transformers.utils import ModelOutput

from ...graphs import CheckpointError, contract, manifest
from ..checkpoint import image_processor
from ..checkpoint.checkpoint import Checkpoint, parse
from ..tracing.decoder import Decoder
from ..tracing.fused_attention import CachedAttention
from ..tracing.patching import DECODER_MASK, changed, replaced, with_real_tensors
from .registry import ModelParts, Recipe

IMAGE, IMAGE_END = "<image>", "</image>"
FIRST_PLACEHOLDER = 4  #: its processor numbers the placeholders of an image from here, over the ids of words
PATCHES = manifest.PatchTokens(
    token="<patch_index_{:04d}>",
    side=32,
    phrase=("<phrase>", "</phrase>"),
    object=("<object>", "</object>"),
    separator="</delimiter_of_multi_objects/>",
)


class VisionEncoder(torch.nn.Module):
    """The tower, its last norm, and features of length 1, as `Kosmos2Model.get_image_features` has them."""

    def __init__(self, vision_model: torch.nn.Module, interpolate: bool) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.interpolate = interpolate

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.vision_model(pixel_values, interpolate_pos_encoding=self.interpolate).last_hidden_state
        return torch.nn.functional.normalize(self.vision_model.model.post_layernorm(features), dim=-1)


class Projector(torch.nn.Module):
    """The resampler: any number of features to a fixed number of image embeddings."""

    def __init__(self, projection: torch.nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, vision_features: torch.Tensor) -> torch.Tensor:
        return self.projection(vision_features)[0]


class SinusoidalDecoder(Decoder):
    """The text model, with positions looked up in a table whose first row belongs to the first token."""

    def __init__(self, causal_lm: torch.nn.Module) -> None:
        config = causal_lm.config
        super().__init__(causal_lm, causal=True, head_dim=config.embed_dim // config.attention_heads)
        self.register_buffer("positions", torch.empty(config.max_position_embeddings, config.embed_dim))

    def constants(self) -> dict[str, np.ndarray]:
        """The table of positions, (max_position_embeddings, embed_dim); see `Decoder.constants`."""
        embed = self.causal_lm.model.embed_positions
        first = embed.padding_idx + 1
        rows, width = self.positions.shape
        table = with_real_tensors(lambda: embed.get_embedding(first + rows, width, embed.padding_idx).numpy())
        return {"positions": table[first:]}

    def run(self, inputs_embeds: torch.Tensor, cached: CachedAttention, **options: Any) -> ModelOutput:
        """Call the text model with positions that count from the cache; see `Decoder.run`."""
        sequence = inputs_embeds.shape[1]
        before = torch.where(cached.total_sequence_length == sequence, 0, cached.sequence_lengths + 1 - sequence)
        positions = before.unsqueeze(1) + torch.arange(sequence)
        model = self.causal_lm.model
        with (
            changed(DECODER_MASK, lambda _: lambda *_: None, model),
            replaced(
                model.embed_positions, forward=lambda **_: torch.nn.functional.embedding(positions, self.positions)
            ),
        ):
            return self.causal_lm(inputs_embeds=inputs_embeds, cached=cached, **options)


def build(checkpoint: Checkpoint) -> ModelParts:
    """The KOSMOS-2 model of a checkpoint's config.json and its three parts; see `Family.build`."""
    parsed = parse(Kosmos2Config, checkpoint.config)
    text, vision = parsed.text_config, parsed.vision_config
    model = Kosmos2ForConditionalGeneration(parsed)
    model.tie_weights()
    decoder = SinusoidalDecoder(model.text_model)
    image = _resize(checkpoint)
    patches = (image.height // vision.patch_size) * (image.width // vision.patch_size) + 1
    positions = (vision.image_size // vision.patch_size) ** 2 + 1
    tokens = parsed.latent_query_num
    return ModelParts(
        model=model,
        modules={
            contract.VISION_ENCODER: VisionEncoder(model.vision_model, _interpolates(image, vision)),
            contract.PROJECTOR: Projector(model.image_to_text_projection),
            contract.DECODER: decoder,
        },
        graphs={
            contract.VISION_ENCODER: contract.vision_encoder(image.height, image.width, patches, vision.hidden_size),
            contract.PROJECTOR: contract.projector(patches, vision.hidden_size, tokens, text.embed_dim),
            contract.DECODER: decoder.spec,
        },
        embed_tokens=model.get_input_embeddings().weight,
        constants={
            "vision_model.model.embeddings.position_ids": np.arange(positions)[None],
            **decoder.constants(),
        },
    )


def source_inputs(
    checkpoint: Checkpoint, model: PreTrainedModel, image: Image.Image, prompt: str
) -> dict[str, torch.Tensor]:
    """The inputs of `Kosmos2ForConditionalGeneration.generate`; see `Family.source_inputs`."""
    processor = AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=False)
    config = model.config
    inputs = dict(processor(images=image, text=prompt, num_image_tokens=config.latent_query_num, return_tensors="pt"))
    # `generate` never interpolates positions, which images of another size need; the tower itself can.
    interpolate = _interpolates(_resize(checkpoint), config.vision_config)
    features = VisionEncoder(model.vision_model, interpolate)(inputs["pixel_values"])
    return {**inputs, "image_embeds": model.image_to_text_projection(features)[0]}


def recipe(checkpoint: Checkpoint) -> Recipe:
    """How KOSMOS-2 takes images and prompts and writes boxes; see `Family.recipe`."""
    text = parse(Kosmos2Config, checkpoint.config).text_config
    grounded = checkpoint.tokenizer.token_to_id(PATCHES.token.format(PATCHES.side**2 - 1)) is not None
    image_token_id = checkpoint.tokenizer.token_to_id(IMAGE)
    if image_token_id is None:
        raise CheckpointError(
            f"{contract.TOKENIZER} has no {IMAGE}; save it with Kosmos2Processor, which adds its tags"
        )
    return Recipe(
        examples=("<grounding> An image of", "<grounding> Describe this image in detail:"),
        image=_resize(checkpoint),
        prompt=manifest.TextPrompt(
            start="<s>",
            image_start=IMAGE,
            image=IMAGE,
            image_token_id=image_token_id,
            image_end=IMAGE_END,
            before="",
            after="",
            strip=True,
            clean_up_spaces=checkpoint.json("tokenizer_config.json").flag("clean_up_tokenization_spaces", False),
            min_images=0,
            max_images=1,
            counted_from=FIRST_PLACEHOLDER,
        ),
        embedding=manifest.Embedding(scale=1.0),
        max_positions=text.max_position_embeddings,
        eos_token_id=text.eos_token_id,
        grounding=PATCHES if grounded else None,
    )


def _interpolates(image: manifest.Resize, vision: Kosmos2VisionConfig) -> bool:
    """Whether images have another size than the tower has positions for."""
    return (image.height, image.width) != (vision.image_size, vision.image_size)


def _resize(checkpoint: Checkpoint) -> manifest.Resize:
    """The recipe of the CLIP image processor; a CheckpointError if it crops a part of the image away."""
    settings = checkpoint.processor("image")
    if settings.get("use_square_size"):
        settings |= {"size": 224}  # transformers uses this size, whatever the other settings say
    recipe = image_processor.resize(settings, 224, tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD))
    crop = image_processor.square(settings, "crop_size", 224)
    if settings.get("do_center_crop", True) and crop != (recipe.height, recipe.width):
        raise CheckpointError(
            f"the image processor crops {recipe.height} x {recipe.width} to {crop[0]} x {crop[1]}; only crops of the"
            " whole image are supported"
        )
    return recipe
