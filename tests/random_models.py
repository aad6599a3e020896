"""Random checkpoints of small and odd configurations, whose answers change with every picture, prompt and position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import CHECKPOINT
from transformers import (
    AutoProcessor,
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

#: One row a model; what a row leaves out is as in `paligemma`.
MODELS: dict[str, dict[str, Any]] = {
    "2: smallest": {"image_size": 28, "layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16},
    "2: no groups": {"image_size": 42, "heads": 3, "kv_heads": 3, "hidden": 48},
    "2: one key head": {"image_size": 56, "heads": 5, "kv_heads": 1, "hidden": 40, "layers": 3},
    "2: wide heads": {"image_size": 28, "heads": 2, "kv_heads": 1, "head_dim": 64, "layers": 3},
    "2: window shorter than the prefix": {"image_size": 84, "layers": 4, "sliding_window": 8},
    "2: window that ends during the answer": {"image_size": 28, "layers": 3, "sliding_window": 20},
    "2: window of two": {"image_size": 28, "sliding_window": 2},
    "2: large picture": {"image_size": 112, "heads": 6, "kv_heads": 3, "hidden": 24, "vision_heads": 3},
    "2: no soft-capping": {"image_size": 28, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "2: strong soft-capping": {"image_size": 42, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "2: head of its own": {"image_size": 28, "tied": False, "vocab": 1531},
    "2: odd vocabulary": {"image_size": 28, "vocab": 1777, "query_pre_attn_scalar": 100},
    "2: flag that no mask reads": {"image_size": 28, "use_bidirectional_attention": False},
    "1: one key head": {"text": GemmaConfig, "image_size": 42, "kv_heads": 1},
    "1: groups": {"text": GemmaConfig, "image_size": 28, "heads": 6, "hidden": 48, "head_dim": 32, "layers": 3},
    "1: head of its own": {"text": GemmaConfig, "image_size": 56, "tied": False, "vocab": 1531},
}


def paligemma(
    folder: Path, *, seed: int, image_size: int, text: type = Gemma2Config, layers: int = 2, heads: int = 4,
    kv_heads: int = 2, hidden: int = 32, head_dim: int = 16, vision_heads: int = 2, tied: bool = True,
    vocab: int = 1536, **more: Any,
) -> Path:  # fmt: skip
    """Write a random PaliGemma (1 or 2 as `text` has it) with the processor of the trained one."""
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    processor.image_processor.size = {"height": image_size, "width": image_size}
    processor.image_processor.image_seq_length = (image_size // 14) ** 2
    vision = SiglipVisionConfig(
        hidden_size=24 * vision_heads, intermediate_size=67, num_hidden_layers=2, num_attention_heads=vision_heads,
        image_size=image_size, patch_size=14, vision_use_head=False,
    )  # fmt: skip
    if text is Gemma2Config:
        more = {"query_pre_attn_scalar": head_dim} | more
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text(
            vocab_size=vocab, hidden_size=hidden, intermediate_size=83, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, max_position_embeddings=256,
            tie_word_embeddings=tied, **more,
        ),
        projection_dim=hidden, hidden_size=hidden, vocab_size=vocab, image_token_index=processor.image_token_id,
        bos_token_id=2, eos_token_id=1, pad_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = PaliGemmaForConditionalGeneration(config)
    telling_weights(model)
    model.save_pretrained(folder, max_shard_size="200KB" if seed % 2 else "5GB")
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def telling_weights(model: torch.nn.Module) -> None:
    """Small embeddings and large layers: with the usual initialisation a tiny model repeats its last token."""
    for name, weight in model.named_parameters():
        if "embed_tokens" in name:
            weight.normal_(0, 0.003)
        elif weight.ndim > 1 and "position_embedding" not in name:
            weight.normal_(0, 2 / weight[0].numel() ** 0.5)
        elif weight.ndim == 1:
            weight.add_(torch.randn_like(weight) * 0.1)
