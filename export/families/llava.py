"""LLaVA 1.5: a CLIP or SigLIP tower, a projector of two layers, and Llama, Mistral or Qwen 2 text.

Parity notes. Features are hidden states of `vision_feature_layer`, before the tower's last norm; of several layers, one
beside the other. The strategy "default" leaves out the first feature, which is CLIP's class token. Transformers puts
the tokens that the tokenizer adds before a conversation, unless the chat template writes the first of them.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ...graphs import CheckpointError, contract, manifest
from ..checkpoint import image_processor
from ..checkpoint.checkpoint import Checkpoint, parse
from ..tracing.decoder import RotaryDecoder
from .registry import ModelParts, Recipe

IMAGE_TOKEN = "<image>"
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}  #: of each kind of tower


class VisionEncoder(torch.nn.Module):
    """Hidden states of a tower, without the first `dropped` features; of several `states` one beside the other.

    The layers behind the last of these states are left out.
    """

    def __init__(self, tower: torch.nn.Module, states: list[int], dropped: int) -> None:
        super().__init__()
        count = len(tower.encoder.layers) + 1  # the first state is that before the layers
        self.states, self.dropped = [state % count for state in states], dropped
        self.embeddings = tower.embeddings
        self.norm = getattr(tower, "pre_layrnorm", torch.nn.Identity())
        self.layers = tower.encoder.layers[: max(self.states)]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states = [self.norm(self.embeddings(pixel_values))]
        for layer in self.layers:
            states.append(layer(states[-1], None))
        return torch.cat([states[state][:, self.dropped :] for state in self.states], -1)


def build(checkpoint: Checkpoint) -> ModelParts:
    """The LLaVA model of a checkpoint's config.json and its three parts; see `Family.build`."""
    parsed = _parse(checkpoint)
    text, vision = parsed.text_config, parsed.vision_config
    model = LlavaForConditionalGeneration(parsed)
    model.tie_weights()
    decoder = RotaryDecoder(model.model.language_model, model.lm_head, causal=True, first_position=0)
    layers = parsed.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    count = vision.num_hidden_layers
    if not all(-count - 1 <= layer <= count for layer in layers):
        raise CheckpointError(f"config.json: vision_feature_layer is {layers}, the tower has {count} layers")
    dropped = int(parsed.vision_feature_select_strategy == "default")
    positions = (vision.image_size // vision.patch_size) ** 2 + CLASS_TOKENS[vision.model_type]
    features, width = positions - dropped, vision.hidden_size * len(layers)
    _check_placeholders(checkpoint, features, vision.patch_size)
    return ModelParts(
        model=model,
        modules={
            contract.VISION_ENCODER: VisionEncoder(model.model.vision_tower, layers, dropped),
            contract.PROJECTOR: model.model.multi_modal_projector,
            contract.DECODER: decoder,
        },
        graphs={
            contract.VISION_ENCODER: contract.vision_encoder(vision.image_size, vision.image_size, features, width),
            contract.PROJECTOR: contract.projector(features, width, features, text.hidden_size),
            contract.DECODER: decoder.spec,
        },
        embed_tokens=model.get_input_embeddings().weight,
        constants={
            "model.vision_tower.embeddings.position_ids": np.arange(positions)[None],
            **decoder.constants(),
        },
    )


def _parse(checkpoint: Checkpoint) -> LlavaConfig:
    parsed = parse(LlavaConfig, checkpoint.config)
    if (kind := parsed.vision_config.model_type) not in CLASS_TOKENS:
        raise CheckpointError(
            f"config.json: vision_config has the model_type {kind!r}, supported are {', '.join(CLASS_TOKENS)}"
        )
    return parsed


def _check_placeholders(checkpoint: Checkpoint, features: int, patch_size: int) -> None:
    """Raise a CheckpointError if the processor writes another number of placeholders than a picture has features."""
    settings, image = checkpoint.json("processor_config.json"), _image(checkpoint)
    patch = settings.integer("patch_size", patch_size)
    placeholders = (image.height // patch) * (image.width // patch)
    placeholders += int(settings.number("num_additional_image_tokens", 0))
    placeholders -= settings.get("vision_feature_select_strategy") == "default"
    if placeholders != features:
        raise CheckpointError(
            f"a picture has {features} features, but {placeholders} placeholders in a prompt; see"
            " vision_feature_select_strategy in config.json, and patch_size, num_additional_image_tokens and"
            " vision_feature_select_strategy in processor_config.json"
        )


def source_inputs(
    checkpoint: Checkpoint, model: PreTrainedModel, image: Image.Image, prompt: str
) -> dict[str, torch.Tensor]:
    """The inputs of `LlavaForConditionalGeneration.generate`; see `Family.source_inputs`."""
    processor = AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=False)
    content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    return dict(
        processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )


def recipe(checkpoint: Checkpoint) -> Recipe:
    """How LLaVA takes images and prompts; see `Family.recipe`."""
    parsed = _parse(checkpoint)
    side, image = parsed.vision_config.image_size, _image(checkpoint)
    if (image.height, image.width) != (side, side):
        raise CheckpointError(
            f"the image processor makes pictures of {image.height} x {image.width}, config.json has an image_size of"
            f" {side}"
        )
    if checkpoint.chat_template() is None:
        raise CheckpointError(f"{checkpoint.folder} has no {contract.CHAT_TEMPLATE}; save it there with AutoProcessor")
    token = checkpoint.json("processor_config.json").get("image_token", IMAGE_TOKEN)
    checkpoint.expect_token(token, parsed.image_token_id)
    return Recipe(
        examples=("Describe the picture.", "Is there a circle?"),
        image=image,
        prompt=manifest.ChatPrompt(
            special_tokens=checkpoint.special_tokens(),
            image=token,
            image_token_id=parsed.image_token_id,
            start=_start(checkpoint),
        ),
        embedding=manifest.Embedding(scale=1.0),
        max_positions=parsed.text_config.max_position_embeddings,
        eos_token_id=parsed.text_config.eos_token_id,
    )


def _image(checkpoint: Checkpoint) -> manifest.Resize | manifest.Crop:
    """The recipe of the image processor. SigLIP's resizes without a crop, and its settings need not say so."""
    settings = checkpoint.processor("image")
    if str(settings.get("image_processor_type")).startswith("Siglip"):
        return image_processor.resize(settings, default=224)
    return image_processor.crop(settings, 224, tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD))


def _start(checkpoint: Checkpoint) -> str:
    """The token that the tokenizer puts before a text, empty if there is none."""
    added, first = checkpoint.tokenizer.encode("").tokens, checkpoint.special_tokens().get("bos_token")
    if added not in ([], [first]):
        raise CheckpointError(f"tokenizer.json adds {added} to a text; only the bos_token before it is supported")
    return first or "" if added else ""
