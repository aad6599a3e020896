"""Idefics3, SmolVLM and SmolVLM2: SigLIP towers on a grid of tiles, a projector that shuffles pixels, a Llama decoder.

Parity notes. Tiles are always whole, so the tower's mask of patches masks nothing and its positions are the same in
every tile. They are looked up by the fraction of a side where a patch begins, in float32: with some numbers of patches
(19 a side, 25, ...) rounding gives neighbours the same position. SmolVLM and Idefics3 differ in names alone.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from num2words import num2words
from PIL import Image
from transformers import (
    AutoProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm import processing_smolvlm

from ...graphs import CheckpointError, contract, manifest
from ..checkpoint import image_processor
from ..checkpoint.checkpoint import Checkpoint, parse
from ..checkpoint.settings import Settings
from ..tracing.decoder import RotaryDecoder
from ..tracing.patching import replaced, with_real_tensors
from .registry import ModelParts, Recipe

CLASSES = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
}
IMAGE_TOKEN, VIDEO_MARK, AROUND = "<image>", "<video>", "<fake_token_around_image>"
NAMES = manifest.TileNames(
    tile=AROUND + "<row_{row}_col_{column}>",
    row_end="\n",
    grid_end="\n",
    whole=AROUND + "<global-img>",
    end=AROUND,
)
DEFAULT_TILE, LANCZOS = 364, 1
LONGEST_EDGE = 4096  #: the image processor resizes images again that are larger than this
SKIPPED_SECONDS = 1  #: of a long video at either end, as the video processor's `sample_frames` has it
HAS_VIDEO = (
    "{%- set _media = namespace(video=false) %}{%- for message in messages if message['content'] is not string %}"
    "{%- for part in message['content'] if part['type'] == 'video' %}{%- set _media.video = true %}{%- endfor %}"
    "{%- endfor %}{%- if _media.video %}"
)


class VisionEncoder(torch.nn.Module):
    """The tower and its last norm, on whole tiles.

    Args:
        tower: transformers' tower.
        position_ids: (patches,) of int64, the positions that the tower gives the patches of a whole tile.
    """

    def __init__(self, tower: torch.nn.Module, position_ids: np.ndarray) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("position_ids", torch.tensor(position_ids))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_exporting():
            return self.tower(pixel_values).last_hidden_state
        with replaced(self.tower.embeddings, forward=self._embed):
            return self.tower(pixel_values).last_hidden_state

    def _embed(self, pixel_values: torch.Tensor, patch_attention_mask: torch.Tensor) -> torch.Tensor:
        """The embeddings of patches, with positions that are known instead of computed from the mask."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        return patches + embeddings.position_embedding(self.position_ids)


@torch.inference_mode()
def _position_ids(embeddings: type[torch.nn.Module], vision: PreTrainedConfig, tile: int) -> np.ndarray:
    """The positions (patches,) that a tower's embeddings give the patches of a whole tile, as they compute them."""
    config = type(vision)(hidden_size=1, image_size=vision.image_size, patch_size=vision.patch_size)
    numbering = embeddings(config)  # each patch becomes the number of its position
    for weight in numbering.patch_embedding.parameters():
        weight.zero_()
    numbering.position_embedding.weight.copy_(torch.arange(numbering.num_positions)[:, None])
    side = tile // vision.patch_size
    values = numbering(torch.zeros(1, 3, tile, tile), torch.ones(1, side, side, dtype=torch.bool))
    return values.flatten().long().numpy()


def build(checkpoint: Checkpoint) -> ModelParts:
    """The model of a checkpoint's config.json and its three parts; see `Family.build`."""
    parsed, model_class = _parsed(checkpoint)
    text, vision, tile = parsed.text_config, parsed.vision_config, _tile_side(checkpoint)
    model = model_class(parsed)
    model.tie_weights()
    decoder = RotaryDecoder(model.model.text_model, model.lm_head, causal=True, first_position=0)
    side = tile // vision.patch_size
    _check_tile(checkpoint, side, parsed.scale_factor)
    positions = with_real_tensors(partial(_position_ids, type(model.model.vision_model.embeddings), vision, tile))
    patches, tokens = side**2, (side // parsed.scale_factor) ** 2
    return ModelParts(
        model=model,
        modules={
            contract.VISION_ENCODER: VisionEncoder(model.model.vision_model, positions),
            contract.PROJECTOR: model.model.connector,
            contract.DECODER: decoder,
        },
        graphs={
            contract.VISION_ENCODER: contract.vision_encoder(tile, tile, patches, vision.hidden_size),
            contract.PROJECTOR: contract.projector(patches, vision.hidden_size, tokens, text.hidden_size),
            contract.DECODER: decoder.spec,
        },
        embed_tokens=model.get_input_embeddings().weight,
        constants={"position_ids": positions, **decoder.constants()},
    )


def _parsed(checkpoint: Checkpoint) -> tuple[Idefics3Config | SmolVLMConfig, type[PreTrainedModel]]:
    config_class, model_class = CLASSES[checkpoint.config["model_type"]]
    return parse(config_class, checkpoint.config), model_class


def _check_tile(checkpoint: Checkpoint, side: int, scale: int) -> None:
    """Raise a CheckpointError if a tile of `side` x `side` patches has not the tokens that its placeholders are for."""
    placeholders = checkpoint.json("processor_config.json").integer("image_seq_len", 169)
    if not side or side % scale or (side // scale) ** 2 != placeholders:
        raise CheckpointError(
            f"a tile has {side} x {side} patches, which a scale_factor of {scale} makes"
            f" {(side / scale) ** 2:g} tokens, but {placeholders} placeholders in a prompt; see scale_factor and"
            " vision_config in config.json, max_image_size and image_seq_len in the processor's settings"
        )


def source_inputs(
    checkpoint: Checkpoint, model: PreTrainedModel, image: Image.Image, prompt: str
) -> dict[str, torch.Tensor]:
    """The inputs of the model's `generate`; see `Family.source_inputs`."""
    processor = AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=False)
    images, tile = processor.image_processor, _tile_side(checkpoint)
    if images.do_image_splitting:
        images.size = {"longest_edge": min(images.size["longest_edge"], int(contract.PROOF_EDGE * tile))}
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return dict(processor(text=text, images=[image], add_special_tokens=False, return_tensors="pt"))


def recipe(checkpoint: Checkpoint) -> Recipe:
    """How these models take images and prompts; see `Family.recipe`."""
    parsed, _ = _parsed(checkpoint)
    text = parsed.text_config
    template, video = checkpoint.chat_template(), _video(checkpoint)
    if template is None:
        raise CheckpointError(f"{checkpoint.folder} has no {contract.CHAT_TEMPLATE}; save it there with AutoProcessor")
    checkpoint.expect_token(IMAGE_TOKEN, parsed.image_token_id)
    return Recipe(
        examples=("Describe the image.", "How many circles are there?"),
        image=_image(checkpoint.processor("image"), _tile_side(checkpoint)),
        prompt=manifest.ChatPrompt(
            special_tokens=checkpoint.special_tokens(),
            image=IMAGE_TOKEN,
            image_token_id=parsed.image_token_id,
            tiles=NAMES,
            video=VIDEO_MARK if video else None,
            frames=_frame_texts(video.frames) if video else None,
            system="parts",
        ),
        video=video,
        chat_template=_either(processing_smolvlm.DEFAULT_CHAT_TEMPLATE, template) if video else None,
        embedding=manifest.Embedding(scale=1.0),
        max_positions=text.max_position_embeddings,
        eos_token_id=text.eos_token_id,
    )


def _image(settings: Settings, tile: int) -> manifest.Grid | manifest.Resize:
    """The recipe of the image processor, with the values that its class has for settings that are left out."""
    size = settings.section("size") or settings | {"longest_edge": 4 * DEFAULT_TILE}
    if "longest_edge" not in size:
        settings.refuse("size", "a longest_edge; no other sizes are supported")
    longest = size.integer("longest_edge", 4 * DEFAULT_TILE)
    if longest > LONGEST_EDGE:
        size.refuse("longest_edge", f"{LONGEST_EDGE} at most")
    pixels = image_processor.pixels(settings | {"resample": settings.get("resample", LANCZOS)}, (0.5,) * 3, (0.5,) * 3)
    if settings.flag("do_image_splitting", True):
        return manifest.Grid(tile, longest, pixels)
    return manifest.Resize(tile, tile, pixels, longest)


def _video(checkpoint: Checkpoint) -> manifest.Video | None:
    """The recipe of the video processor, None where there is none that says how many frames to take."""
    settings = checkpoint.processor("video") or checkpoint.processor("image")
    older = settings.section("video_sampling")
    frames, rate = older.get("max_frames", settings.get("num_frames")), older.get("fps", settings.get("fps"))
    if checkpoint.config["model_type"] != "smolvlm" or frames is None or rate is None:
        return None
    settings |= {"num_frames": frames, "fps": rate, "size": older.get("video_size", settings.get("size"))}
    tile = settings.section("max_image_size").integer("longest_edge", DEFAULT_TILE)
    if tile != _tile_side(checkpoint):
        settings.refuse("max_image_size", f"a longest_edge of {_tile_side(checkpoint)}, as images have it")
    longest = min(settings.section("size").integer("longest_edge", 4 * DEFAULT_TILE), LONGEST_EDGE)
    pixels = image_processor.pixels(settings | {"resample": settings.get("resample", LANCZOS)}, (0.5,) * 3, (0.5,) * 3)
    return manifest.Video(
        frames=settings.integer("num_frames", 1),
        tile=manifest.Resize(tile, tile, pixels, longest),
        rate=settings.number("fps", 1),
        margin=SKIPPED_SECONDS,
    )


def _either(of_videos: str, of_others: str) -> str:
    """A template that writes conversations with a video by the first, as transformers does, and others by the second.

    A newline behind a block is none of the text, and one at the end of a template neither.
    """
    first, second = (template.removesuffix("\n") for template in (of_videos, of_others))
    return f"{HAS_VIDEO}\n{first}{{% else %}}\n{second}{{% endif %}}"


def _frame_texts(frames: int) -> manifest.FrameTexts:
    """The texts around at most so many frames, as transformers' processor has them."""
    return manifest.FrameTexts(
        intro=processing_smolvlm.DEFAULT_VIDEO_INTRO.format(frame_count="{frames}", video_duration="{duration}"),
        frame=processing_smolvlm.FRAME_TIMESTAMP_MESSAGE.format(timestamp="{time}"),
        end=processing_smolvlm.DEFAULT_MEDIA_OUTTRO,
        numbers=tuple(num2words(number) for number in range(1, frames + 1)),
    )


def _tile_side(checkpoint: Checkpoint) -> int:
    return checkpoint.processor("image").section("max_image_size").integer("longest_edge", DEFAULT_TILE)
