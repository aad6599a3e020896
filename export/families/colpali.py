"""ColPali: PaliGemma without its head, and a projection that makes a vector of length 1 for each token.

Parity notes. The processor gives every token of a page and of a query the type of a prefix, so all of them see each
other. A query ends with `AUGMENTATION` padding tokens that are not masked: the model was trained to write into them.
Source vectors of masked tokens are zero; here they are left out.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, ColPaliConfig, ColPaliForRetrieval, PreTrainedModel

from ...graphs import CheckpointError, contract, manifest
from ..checkpoint import image_processor
from ..checkpoint.checkpoint import Checkpoint, parse
from ..tracing.decoder import RotaryDecoder
from .paligemma import IMAGE_TOKEN, VisionEncoder
from .registry import ModelParts, Recipe

AUGMENTATION = 10  #: padding tokens behind a query
PAGE, QUERY = "Describe the image.", "Question: "  #: the processor's defaults


class Vectors(torch.nn.Module):
    """The projection on top of the last hidden states, and the division by the norm."""

    def __init__(self, projection: torch.nn.Linear) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        vectors = self.projection(hidden_states)
        return vectors / vectors.norm(dim=-1, keepdim=True)


def _parse(checkpoint: Checkpoint) -> ColPaliConfig:
    parsed = parse(ColPaliConfig, checkpoint.config)
    if parsed.vlm_config.model_type != "paligemma":
        raise CheckpointError(
            f"config.json: vlm_config has the model_type {parsed.vlm_config.model_type!r}, only paligemma is supported"
        )
    return parsed


def build(checkpoint: Checkpoint) -> ModelParts:
    """The ColPali model of a checkpoint's config.json and its three parts; see `Family.build`."""
    parsed = _parse(checkpoint)
    text, vision = parsed.vlm_config.text_config, parsed.vlm_config.vision_config
    model = ColPaliForRetrieval(parsed)
    # No head makes logits, so nothing caps them; transformers' causal models would cap what stands in its place.
    text.final_logit_softcapping = None
    head = Vectors(model.embedding_proj_layer)
    decoder = RotaryDecoder(model.vlm.language_model, head, causal=False, first_position=1)
    patches = (vision.image_size // vision.patch_size) ** 2
    return ModelParts(
        model=model,
        modules={
            contract.VISION_ENCODER: VisionEncoder(model.vlm.vision_tower),
            contract.PROJECTOR: model.vlm.multi_modal_projector,
            contract.DECODER: decoder,
        },
        graphs={
            contract.VISION_ENCODER: contract.vision_encoder(
                vision.image_size, vision.image_size, patches, vision.hidden_size
            ),
            contract.PROJECTOR: contract.projector(patches, vision.hidden_size, patches, text.hidden_size),
            contract.DECODER: contract.vector_decoder(decoder.spec, parsed.embedding_dim),
        },
        embed_tokens=model.get_input_embeddings().weight,
        constants={
            "vlm.vision_tower.embeddings.position_ids": np.arange(patches)[None],
            **decoder.constants(),
        },
    )


def source_inputs(
    checkpoint: Checkpoint, model: PreTrainedModel, image: Image.Image | None, prompt: str
) -> dict[str, torch.Tensor]:
    """The inputs of `ColPaliForRetrieval` for a page, or for a query; see `Family.source_inputs`."""
    processor = AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=False)
    inputs = processor(text=[prompt]) if image is None else processor(images=image)
    return {name: values for name, values in inputs.items() if name != "labels"}


def recipe(checkpoint: Checkpoint) -> Recipe:
    """How ColPali takes pages and queries; see `Family.recipe`."""
    parsed = _parse(checkpoint)
    text, side = parsed.vlm_config.text_config, parsed.vlm_config.vision_config.image_size
    image = image_processor.resize(checkpoint.processor("image"), default=side)
    if (image.height, image.width) != (side, side):
        raise CheckpointError(
            f"the image processor resizes to {image.height} x {image.width}, config.json has an image_size of {side}"
        )
    checkpoint.expect_token(IMAGE_TOKEN, parsed.vlm_config.image_token_id)
    settings, special = checkpoint.json("processor_config.json"), checkpoint.special_tokens()
    start, filler = special.get("bos_token", "<bos>"), special.get("pad_token", "<pad>")
    return Recipe(
        examples=("a red circle", "two green triangles"),
        image=image,
        prompt=manifest.TextPrompt(
            start="",
            image_start="",
            image=IMAGE_TOKEN,
            image_token_id=parsed.vlm_config.image_token_id,
            image_end="",
            before=start,
            after="\n",
            strip=False,
            clean_up_spaces=False,
            min_images=1,
            max_images=1,
        ),
        embedding=manifest.Embedding(scale=float(np.float32(text.hidden_size**0.5))),
        max_positions=text.max_position_embeddings,
        eos_token_id=text.eos_token_id,
        vectors=manifest.Vectors(
            page=settings.get("visual_prompt_prefix", PAGE),
            query_before=start + settings.get("query_prefix", QUERY),
            query_after=filler * AUGMENTATION + "\n",
        ),
    )
