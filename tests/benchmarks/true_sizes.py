"""Published dimensions of models, and whose processor each takes: what `real_size.py` makes random checkpoints of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 11520,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    },
}
PE_LARGE = {
    "model_type": "timm_wrapper",
    "architecture": "vit_pe_lang_large_patch14_448",
    "do_pooling": True,
    "model_args": {
        "embed_dim": 1024,
        "depth": 23,
        "img_size": [448, 448],
        "global_pool": "",
        "use_post_transformer_norm": False,
        "init_values": 0.1,
        "ref_feat_shape": [32, 32],
    },
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "image_size": 224,
    "patch_size": 14,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "vision_use_head": False,
}


def gemma(kind: str, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "model_type": "paligemma",
        "image_token_index": 257152,
        "projection_dim": hidden,
        "vision_config": SIGLIP,
        "text_config": {
            "model_type": kind,
            "vocab_size": 257216,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 256,
        },
    }


def llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **more,
    }


def smolvlm(text: dict[str, Any], vision: dict[str, Any], scale: int) -> dict[str, Any]:
    text |= {"vocab_size": 49280, "max_position_embeddings": 8192, "bos_token_id": 349, "eos_token_id": 353}
    return {
        "model_type": "idefics3",
        "scale_factor": scale,
        "image_token_id": 352,
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": vision,
    }


def tiles(side: int, tokens: int) -> dict[str, Any]:
    """The settings of Idefics3's processor for whole pictures in one tile."""
    images = {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_image_splitting": False,
        "max_image_size": {"longest_edge": side},
        "size": {"longest_edge": 4 * side},
    }
    return {"processor_class": "Idefics3Processor", "image_seq_len": tokens, "image_processor": images}


def squares(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


@dataclass(frozen=True)
class TrueSize:
    """A model.

    Attributes:
        processor: a folder of processor files, in the folder that `real_size.py` is told, or in tests/checkpoints.
        config: what is in config.json.
        settings: what is different in processor_config.json.
    """

    processor: str
    config: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)


PALIGEMMA = gemma("gemma", 2048, 16384, 18, 8, 1)
SMALL_TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
MODELS: dict[str, TrueSize] = {
    "PerceptionLM-1B": TrueSize(
        "perception-lm-1b",
        {
            "model_type": "perception_lm",
            "projector_pooling_ratio": 2,
            "vision_use_cls_token": True,
            "image_token_id": 128002,
            "video_token_id": 128003,
            "text_config": LLAMA_1B,
            "vision_config": PE_LARGE,
        },
    ),
    "SmolVLM-256M": TrueSize(
        "smolvlm", smolvlm(llama(576, 1536, 30, 9, 3, rope_theta=100000.0), SMALL_TOWER, 4), tiles(512, 64)
    ),
    "SmolVLM-500M": TrueSize(
        "smolvlm", smolvlm(llama(960, 2560, 32, 15, 5, rope_theta=100000.0), SMALL_TOWER, 4), tiles(512, 64)
    ),
    "SmolVLM-2.2B": TrueSize(
        "smolvlm",
        smolvlm(llama(2048, 8192, 24, 32, 32, rope_theta=273768.0), SIGLIP | {"image_size": 384}, 3),
        tiles(384, 81),
    ),
    "KOSMOS-2": TrueSize("kosmos-2-patch14-224", {"model_type": "kosmos-2"}),
    "PaliGemma-3B-224": TrueSize("paligemma-3b-224", PALIGEMMA),
    "PaliGemma-2-3B-224": TrueSize("paligemma-3b-224", gemma("gemma2", 2304, 9216, 26, 8, 4)),
    "PaliGemma-2-10B-224": TrueSize("paligemma-3b-224", gemma("gemma2", 3584, 14336, 42, 16, 8)),
    "ColPali-3B-448": TrueSize(
        "paligemma-3b-224",
        {
            "model_type": "colpali",
            "embedding_dim": 128,
            "vlm_config": PALIGEMMA | {"vision_config": SIGLIP | {"image_size": 448}},
        },
        {"processor_class": "ColPaliProcessor", "image_processor": squares(448) | {"image_seq_length": 1024}},
    ),
    "Gemma-3-4B": TrueSize(
        "gemma3",
        {
            "model_type": "gemma3",
            "mm_tokens_per_image": 256,
            "image_token_index": 377,
            "boi_token_index": 375,
            "eoi_token_index": 376,
            "vision_config": SIGLIP | {"image_size": 896},
            "text_config": {
                "model_type": "gemma3_text",
                "vocab_size": 262208,
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "sliding_window": 1024,
                "query_pre_attn_scalar": 256,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
        },
        {"image_seq_length": 256, "image_processor": squares(896)},
    ),
    "LLaVA-1.5-7B": TrueSize(
        "llava",
        {
            "model_type": "llava",
            "image_token_index": 460,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": False,
            "text_config": llama(4096, 11008, 32, 32, 32, vocab_size=32064, max_position_embeddings=4096),
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
        },
        {"image_processor": {"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336}}},
    ),
}
