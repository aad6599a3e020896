"""KOSMOS-2 of small and odd configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import CHECKPOINTS
from transformers import (
    AutoProcessor,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
)

from .weights import save


def kosmos2(
    folder: Path,
    *,
    seed: int,
    files: Path = CHECKPOINTS / "kosmos2",
    image_size: int = 28,
    picture: tuple[int, int] | None = None,
    latents: int = 5,
    layers: int = 2,
    heads: int = 4,
    hidden: int = 32,
    vision_heads: int = 2,
    tied: bool = True,
    vocab: int = 1216,
    **text: Any,
) -> Path:
    """KOSMOS-2, with the processor in `files`, which makes pictures of `picture` (height, width)."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(files)
    height, width = picture or (image_size, image_size)
    processor.image_processor.size = processor.image_processor.crop_size = {"height": height, "width": width}
    config = Kosmos2Config(
        text_config={
            "vocab_size": vocab,
            "embed_dim": hidden,
            "ffn_dim": 83,
            "layers": layers,
            "attention_heads": heads,
            "max_position_embeddings": 256,
            "dropout": 0.0,
            "tie_word_embeddings": tied,
            **text,
        },
        vision_config={
            "hidden_size": 24 * vision_heads,
            "intermediate_size": 67,
            "num_hidden_layers": 2,
            "num_attention_heads": vision_heads,
            "image_size": image_size,
            "patch_size": 14,
        },
        latent_query_num=latents,
        tie_word_embeddings=tied,
    )
    return save(folder, Kosmos2ForConditionalGeneration(config), processor, seed)
