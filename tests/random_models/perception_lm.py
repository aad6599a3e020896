"""PerceptionLM of small and odd configurations."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import CHECKPOINTS
from transformers import (
    AutoProcessor,
    PerceptionLMConfig,
    PerceptionLMForConditionalGeneration,
)

from .weights import save


def perception_lm(
    folder: Path,
    *,
    seed: int,
    files: Path = CHECKPOINTS / "perception_lm",
    tile: int = 28,
    patch: int = 14,
    pooling: int = 1,
    class_token: bool = True,
    tiles: int = 4,
    mode: str = "thumb+tile",
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    head_dim: int = 16,
    vision_heads: int = 2,
    depth: int = 2,
    tied: bool = True,
    vocab: int = 512,
    scaled: bool = True,
    positions: int = 512,
) -> Path:
    """PerceptionLM, with the processor in `files`."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(files)
    for part in (processor.image_processor, processor.video_processor):
        part.size = {"height": tile, "width": tile}
    processor.image_processor.tile_size, processor.image_processor.max_num_tiles = tile, tiles
    processor.image_processor.vision_input_type = mode
    processor.patch_size, processor.pooling_ratio = patch, pooling
    side, tokenizer = tile // patch, processor.tokenizer
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if scaled:
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        }
    config = PerceptionLMConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_lang_large_patch14_448",
            "do_pooling": True,
            "model_args": {
                "embed_dim": 16 * vision_heads,
                "depth": depth,
                "num_heads": vision_heads,
                "mlp_ratio": 2.5,
                "img_size": [tile, tile],
                "patch_size": patch,
                "ref_feat_shape": [side, side],
                "init_values": 0.1,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "class_token": class_token,
            },
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
            "rope_parameters": rope,
            "tie_word_embeddings": tied,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_use_cls_token=class_token,
        projector_pooling_ratio=pooling,
        tie_word_embeddings=tied,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )
    return save(folder, PerceptionLMForConditionalGeneration(config), processor, seed)
