"""Gemma 3 of small and odd configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import CHECKPOINTS
from transformers import (
    AutoProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from .weights import save


def gemma3(
    folder: Path,
    *,
    seed: int,
    files: Path = CHECKPOINTS / "gemma3",
    side: int = 4,
    pooling: int = 2,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    head_dim: int = 16,
    vision_heads: int = 2,
    tied: bool = True,
    vocab: int = 448,
    positions: int = 256,
    window: int = 8,
    pattern: int = 3,
    rope: dict[str, Any] | None = None,
    crops: bool = False,
    **text: Any,
) -> Path:
    """Gemma 3, with the processor in `files`, on images of side x side patches; every `pattern`th layer is full."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(files)
    size, tokens = 14 * side, (side // pooling) ** 2
    processor.image_processor.size = {"height": size, "width": size}
    if crops:
        processor.image_processor.do_pan_and_scan = True
        processor.image_processor.pan_and_scan_min_crop_size = 20
        processor.image_processor.pan_and_scan_max_num_crops = 3
        processor.image_processor.pan_and_scan_min_ratio_to_activate = 1.3
    tokenizer = processor.tokenizer
    processor = type(processor)(
        processor.image_processor, tokenizer, chat_template=processor.chat_template, image_seq_length=tokens
    )
    full = {"rope_type": "default", "rope_theta": 1e6} | (rope or {})
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = Gemma3Config(
        text_config={
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": 83,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "query_pre_attn_scalar": head_dim,
            "max_position_embeddings": positions,
            "sliding_window": window,
            "sliding_window_pattern": pattern,
            "rope_parameters": {
                "full_attention": full,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "tie_word_embeddings": tied,
            **ids,
            **text,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 24 * vision_heads,
            "intermediate_size": 67,
            "num_hidden_layers": 2,
            "num_attention_heads": vision_heads,
            "image_size": size,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=tokens,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=tied,
        **ids,
    )
    return save(folder, Gemma3ForConditionalGeneration(config), processor, seed)
