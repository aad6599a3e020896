"""SmolVLM and Idefics3 of small and odd configurations."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import CHECKPOINTS
from transformers import (
    AutoProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from .weights import save


def smolvlm(
    folder: Path,
    *,
    seed: int,
    files: Path = CHECKPOINTS / "smolvlm",
    idefics: bool = False,
    tile: int = 28,
    image_size: int | None = None,
    patch: int = 14,
    scale: int = 2,
    longest_edge: int = 56,
    splits: bool = True,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    head_dim: int = 16,
    vision_heads: int = 2,
    depth: int = 2,
    tied: bool = True,
    vocab: int = 448,
    positions: int = 1024,
) -> Path:
    """SmolVLM, or Idefics3 with the same shapes, with the processor in `files`. Its tower has positions for images of
    `image_size`, which is that of the tiles if None."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(files)
    sizes = {"size": {"longest_edge": longest_edge}, "max_image_size": {"longest_edge": tile}}
    if idefics:
        processor = Idefics3Processor(
            Idefics3ImageProcessor(**sizes), processor.tokenizer, chat_template=processor.chat_template
        )
    for part in (processor.image_processor, None if idefics else processor.video_processor):
        for name, value in sizes.items():
            setattr(part, name, value) if part else None
    processor.image_processor.do_image_splitting = splits
    processor.image_seq_len = (tile // patch // scale) ** 2
    tokenizer = processor.tokenizer
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    kind, make = (
        (Idefics3Config, Idefics3ForConditionalGeneration)
        if idefics
        else (SmolVLMConfig, SmolVLMForConditionalGeneration)
    )
    config = kind(
        vision_config={
            "hidden_size": 16 * vision_heads,
            "intermediate_size": 67,
            "num_hidden_layers": depth,
            "num_attention_heads": vision_heads,
            "image_size": image_size or tile,
            "patch_size": patch,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": 83,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": positions,
            "tie_word_embeddings": tied,
            **ids,
        },
        scale_factor=scale,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=tied,
        **ids,
    )
    return save(folder, make(config), processor, seed)
