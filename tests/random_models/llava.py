"""LLaVA of small and odd configurations."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from helpers import CHECKPOINTS
from transformers import (
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor

from .weights import save


def llama_tokenizer(starts: bool = True) -> LlamaTokenizer:
    """Llama's tokenizer with the words of the tiny PaliGemma 2, which are of the same kind."""
    words = json.loads((CHECKPOINTS / "paligemma2" / "tokenizer.json").read_text())["model"]
    return LlamaTokenizer(
        vocab=words["vocab"],
        merges=[tuple(merge) for merge in words["merges"]],
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        add_bos_token=starts,
        extra_special_tokens={"image_token": "<image>"},
    )


def llava(
    folder: Path,
    *,
    seed: int,
    tower: str = "clip_vision_model",
    image_size: int = 28,
    shortest_edge: int | None = None,
    strategy: str = "default",
    layer: int | list[int] = -2,
    depth: int = 3,
    vision_heads: int = 2,
    text: str = "llama",
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    tied: bool = False,
    bias: bool = True,
    starts: bool = True,
    vocab: int = 512,
    positions: int = 512,
) -> Path:
    """LLaVA, with a Llama tokenizer that begins texts with a token if `starts`."""
    torch.manual_seed(seed)
    square = {"height": image_size, "width": image_size}
    images = CLIPImageProcessor(size={"shortest_edge": shortest_edge or image_size}, crop_size=square)
    processor = LlavaProcessor(
        images if tower == "clip_vision_model" else SiglipImageProcessor(size=square),
        llama_tokenizer(starts),
        patch_size=14,
        vision_feature_select_strategy=strategy,
        chat_template=(CHECKPOINTS / "llava" / "chat_template.jinja").read_text(),
        num_additional_image_tokens=int(tower == "clip_vision_model"),
    )
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config={
            "model_type": tower,
            "hidden_size": 24 * vision_heads,
            "intermediate_size": 67,
            "num_hidden_layers": depth,
            "num_attention_heads": vision_heads,
            "image_size": image_size,
            "patch_size": 14,
            **({"projection_dim": 16} if tower == "clip_vision_model" else {"vision_use_head": False}),
        },
        text_config={
            "model_type": text,
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": 83,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 16,
            "max_position_embeddings": positions,
            "tie_word_embeddings": tied,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **({"sliding_window": None} if text == "mistral" else {}),
        },
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        multimodal_projector_bias=bias,
        image_token_index=processor.image_token_id,
        image_seq_length=(image_size // 14) ** 2,
        tie_word_embeddings=tied,
    )
    return save(folder, LlavaForConditionalGeneration(config), processor, seed)
