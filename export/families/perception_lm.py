"""PerceptionLM: timm's PE vision transformer on tiles and frames, a pooling projector, a Llama decoder.

Parity notes. The class token, where the tower has one, is dropped before the projector. Thumbnail first, then tiles row
by row. timm attends with PyTorch's own function, which is exported as the standard's Attention operator; it rotates
queries and keys of patches, not of the class token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import timm  # noqa: F401 (the model needs it: an absent one is named before anything is built)
import torch
from PIL import Image
from transformers import AutoProcessor, PerceptionLMConfig, PerceptionLMForConditionalGeneration, PreTrainedModel

from ...graphs import CheckpointError, contract, manifest
from ..checkpoint import image_processor
from ..checkpoint.checkpoint import Checkpoint, parse
from ..tracing.decoder import RotaryDecoder
from ..tracing.patching import BLOCK_ROTATION, DROP_PATH_RATES, PATCH_ROTATION, changed, require, with_real_tensors
from .registry import ModelParts, Recipe

IMAGE_TOKEN, VIDEO_TOKEN = "<|image|>", "<|video|>"
TOWER = "model.vision_tower"
DEFAULT_TILE, DEFAULT_TILES = 448, 36
DEFAULT_FRAMES = 32  # as in the examples of the model's documentation; the processor's settings name no number


class VisionEncoder(torch.nn.Module):
    """timm's tower, without the class token if `drop_class_token`."""

    def __init__(self, tower: torch.nn.Module, drop_class_token: bool) -> None:
        super().__init__()
        self.tower = tower
        self.dropped = int(drop_class_token)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values, return_dict=True).last_hidden_state[:, self.dropped :]


@contextmanager
def rotation_as_operator() -> Iterator[None]:
    """Make timm's towers rotate queries and keys with one operator of ONNX Runtime."""
    with changed(PATCH_ROTATION, lambda _: rotate), changed(BLOCK_ROTATION, lambda _: rotate):
        yield


def rotate(x: torch.Tensor, emb: torch.Tensor, half: bool = False) -> torch.Tensor:
    """timm's rotation: x is (tiles, heads, patches, head_dim), emb (patches, 2 * head_dim).

    `emb` is sines, then cosines, each twice: side by side, or one half after the other if `half`.
    """
    width = x.shape[-1]
    sin, cos = (part[:, : width // 2] if half else part[:, ::2] for part in emb.split(width, dim=-1))
    inputs = (x, torch.zeros(1, dtype=torch.int64), cos, sin)
    return torch.onnx.ops.symbolic(
        "com.microsoft::RotaryEmbedding",
        inputs,
        {"interleaved": int(not half)},
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )


def build(checkpoint: Checkpoint) -> ModelParts:
    """The PerceptionLM model of a checkpoint's config.json and its three parts; see `Family.build`."""
    parsed = parse(PerceptionLMConfig, checkpoint.config)
    with _real_drop_path():
        model = PerceptionLMForConditionalGeneration(parsed)
    model.tie_weights()
    decoder = RotaryDecoder(model.model.language_model, model.lm_head, causal=True, first_position=0)
    tower = model.model.vision_tower.timm_model
    height, width = tower.patch_embed.img_size
    features = tower.patch_embed.num_patches + tower.num_prefix_tokens - parsed.vision_use_cls_token
    tokens = (int(features**0.5) // parsed.projector_pooling_ratio) ** 2
    _check_tile(checkpoint, parsed, (height, width), features, tokens)
    return ModelParts(
        model=model,
        modules={
            contract.VISION_ENCODER: VisionEncoder(model.model.vision_tower, parsed.vision_use_cls_token),
            contract.PROJECTOR: model.model.multi_modal_projector,
            contract.DECODER: decoder,
        },
        graphs={
            contract.VISION_ENCODER: contract.vision_encoder(height, width, features, tower.embed_dim),
            contract.PROJECTOR: contract.projector(features, tower.embed_dim, tokens, parsed.text_config.hidden_size),
            contract.DECODER: decoder.spec,
        },
        embed_tokens=model.get_input_embeddings().weight,
        constants={**_tower_constants(model.model.vision_tower), **decoder.constants()},
        fused=rotation_as_operator,
    )


def _check_tile(
    checkpoint: Checkpoint, parsed: PerceptionLMConfig, size: tuple[int, int], features: int, tokens: int
) -> None:
    """Raise a CheckpointError if the processor prepares tiles otherwise than the model takes them."""
    side = _tile_side(checkpoint)
    if size != (side, side):
        raise CheckpointError(f"the processor makes tiles of {side} pixels, the tower takes {size[0]} x {size[1]}")
    settings = checkpoint.json("processor_config.json")
    placeholders = (side // settings.integer("patch_size", 14) // settings.integer("pooling_ratio", 2)) ** 2
    if tokens != placeholders or int(features**0.5) ** 2 != features:
        class_token = "dropped" if parsed.vision_use_cls_token else "kept"
        raise CheckpointError(
            f"a tile has {features} vision features (class token {class_token}) and a pooling ratio of"
            f" {parsed.projector_pooling_ratio}, but {placeholders} placeholders in a prompt; see vision_use_cls_token"
            " and projector_pooling_ratio in config.json, patch_size and pooling_ratio in processor_config.json"
        )


@contextmanager
def _real_drop_path() -> Iterator[None]:
    """Compute drop path rates with real tensors: timm reads their values, and fake tensors have none."""
    compute = require(DROP_PATH_RATES)

    def real(*arguments: object, **options: object) -> object:
        return with_real_tensors(partial(compute, *arguments, **options))

    with changed(DROP_PATH_RATES, lambda _: real):
        yield


def _tower_constants(tower: torch.nn.Module) -> dict[str, np.ndarray]:
    """Buffers that timm computes and no checkpoint stores (rotary tables), computed on real memory."""
    constants = {}
    for name, module in tower.named_modules():
        if next(module.buffers(recurse=False), None) is not None and hasattr(module, "init_non_persistent_buffers"):
            values = with_real_tensors(partial(_computed_buffers, module))
            constants |= {f"{TOWER}.{name}.{key}": value for key, value in values.items()}
    return constants


@torch.inference_mode()
def _computed_buffers(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The values of a module's own buffers as it computes them; the buffers themselves stay as they are."""
    fake = dict(module.named_buffers(recurse=False))
    try:
        for key, buffer in fake.items():
            setattr(module, key, torch.empty(tuple(buffer.shape), dtype=buffer.dtype))
        module.init_non_persistent_buffers()
        return {key: getattr(module, key).numpy() for key in fake}
    finally:
        for key, buffer in fake.items():
            setattr(module, key, buffer)


def source_inputs(
    checkpoint: Checkpoint, model: PreTrainedModel, image: Image.Image, prompt: str
) -> dict[str, torch.Tensor]:
    """The inputs of `PerceptionLMForConditionalGeneration.generate`; see `Family.source_inputs`."""
    processor = AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=False)
    processor.image_processor.max_num_tiles = min(processor.image_processor.max_num_tiles, contract.PROOF_TILES)
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=[image], add_special_tokens=False, return_tensors=None)
    pixels = torch.cat([torch.as_tensor(np.asarray(tiles)) for tiles in inputs["pixel_values"]])
    ids = {name: torch.tensor(inputs[name]) for name in ("input_ids", "attention_mask")}
    return {**ids, "pixel_values": pixels[None]}


def recipe(checkpoint: Checkpoint) -> Recipe:
    """How PerceptionLM takes images and prompts and writes boxes; see `Family.recipe`."""
    parsed = parse(PerceptionLMConfig, checkpoint.config)
    images, videos, side = checkpoint.processor("image"), checkpoint.processor("video"), _tile_side(checkpoint)
    image = image_processor.resize(images | {"size": side}, side)
    tiled = images.get("vision_input_type", "thumb+tile") == "thumb+tile"
    if checkpoint.chat_template() is None:
        raise CheckpointError(f"{checkpoint.folder} has no {contract.CHAT_TEMPLATE}; save it there with AutoProcessor")
    checkpoint.expect_token(IMAGE_TOKEN, parsed.image_token_id)
    checkpoint.expect_token(VIDEO_TOKEN, parsed.video_token_id)
    return Recipe(
        examples=("Describe the picture.", "How many circles are there?"),
        image=manifest.Tiles(side, images.integer("max_num_tiles", DEFAULT_TILES), image.pixels) if tiled else image,
        video=manifest.Video(videos.integer("num_frames", DEFAULT_FRAMES), image_processor.resize(videos, side)),
        prompt=manifest.ChatPrompt(
            special_tokens=checkpoint.special_tokens(),
            image=IMAGE_TOKEN,
            image_token_id=parsed.image_token_id,
            video=VIDEO_TOKEN,
            video_token_id=parsed.video_token_id,
        ),
        embedding=manifest.Embedding(scale=1.0),
        max_positions=parsed.text_config.max_position_embeddings,
        eos_token_id=parsed.text_config.eos_token_id,
    )


def _tile_side(checkpoint: Checkpoint) -> int:
    return checkpoint.processor("image").integer("tile_size", DEFAULT_TILE)
