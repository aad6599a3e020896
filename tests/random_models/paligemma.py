"""PaliGemma, PaliGemma 2 and ColPali of small and odd configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import CHECKPOINTS
from transformers import (
    AutoProcessor,
    ColPaliConfig,
    ColPaliForRetrieval,
    ColPaliProcessor,
    Gemma2Config,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from .weights import save


def paligemma(
    folder: Path,
    *,
    seed: int,
    image_size: int,
    files: Path = CHECKPOINTS / "paligemma2",
    text: type = Gemma2Config,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    head_dim: int = 16,
    vision_heads: int = 2,
    tied: bool = True,
    vocab: int = 1536,
    positions: int = 256,
    **more: Any,
) -> Path:
    """PaliGemma (1 or 2 as `text` has it), with the processor in `files`."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(files)
    processor.image_processor.size = {"height": image_size, "width": image_size}
    processor.image_processor.image_seq_length = (image_size // 14) ** 2
    vision = SiglipVisionConfig(
        hidden_size=24 * vision_heads,
        intermediate_size=67,
        num_hidden_layers=2,
        num_attention_heads=vision_heads,
        image_size=image_size,
        patch_size=14,
        vision_use_head=False,
    )
    if text is Gemma2Config:
        more = {"query_pre_attn_scalar": head_dim} | more
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=83,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=positions,
            tie_word_embeddings=tied,
            **more,
        ),
        projection_dim=hidden,
        hidden_size=hidden,
        vocab_size=vocab,
        image_token_index=processor.image_token_id,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    return save(folder, PaliGemmaForConditionalGeneration(config), processor, seed)


def colpali(folder: Path, *, seed: int, width: int = 16, prefixes: dict[str, str] | None = None, **more: Any) -> Path:
    """ColPali on a `paligemma` with these options, with vectors of `width` numbers and the processor's prefixes."""
    paligemma(folder, seed=seed, **more)
    inside = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    parts = AutoProcessor.from_pretrained(folder)
    model = ColPaliForRetrieval(ColPaliConfig(vlm_config=inside.config, embedding_dim=width))
    model.vlm = inside.model
    torch.nn.init.normal_(model.embedding_proj_layer.weight)
    for path in folder.iterdir():
        path.unlink()
    model.save_pretrained(folder)
    ColPaliProcessor(parts.image_processor, parts.tokenizer, **prefixes or {}).save_pretrained(folder)
    return folder
