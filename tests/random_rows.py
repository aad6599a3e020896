"""The random models that are compared with transformers: a table for each family, a row for each model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from random_models import colpali, gemma3, kosmos2, llava, paligemma, perception_lm, smolvlm
from transformers import GemmaConfig

Row = tuple[Callable[..., Path], dict[str, Any]]

#: One row a model: what makes it, and how it differs from what the function makes otherwise. A row that has a seed of
#: its own would else have two beams, one kept and one dropped, whose scores differ by less than 1e-4.
PALIGEMMA: dict[str, Row] = {
    "smallest": (paligemma, {"image_size": 28, "layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16}),
    "no groups": (paligemma, {"image_size": 42, "heads": 3, "kv_heads": 3, "hidden": 48}),
    "one key head": (paligemma, {"image_size": 56, "heads": 5, "kv_heads": 1, "hidden": 40, "layers": 3}),
    "wide heads": (paligemma, {"seed": 55, "image_size": 28, "heads": 2, "kv_heads": 1, "head_dim": 64, "layers": 3}),
    "window shorter than the prefix": (paligemma, {"image_size": 84, "layers": 4, "sliding_window": 8}),
    "window that ends during the answer": (paligemma, {"image_size": 28, "layers": 3, "sliding_window": 20}),
    "window of two": (paligemma, {"image_size": 28, "sliding_window": 2}),
    "large picture": (paligemma, {"image_size": 112, "heads": 6, "kv_heads": 3, "hidden": 24, "vision_heads": 3}),
    "224 pixels": (paligemma, {"seed": 56, "image_size": 224, "positions": 1024, "sliding_window": 4096}),
    "448 pixels": (paligemma, {"image_size": 448, "positions": 2048, "sliding_window": 4096}),
    "896 pixels": (paligemma, {"image_size": 896, "positions": 8192, "sliding_window": 4096, "heads": 2}),
    "no soft-capping": (paligemma, {"image_size": 28, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "strong soft-capping": (
        paligemma,
        {"image_size": 42, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 10.0},
    ),
    "head of its own": (paligemma, {"image_size": 28, "tied": False, "vocab": 1531}),
    "odd vocabulary": (paligemma, {"image_size": 28, "vocab": 1777, "query_pre_attn_scalar": 100}),
    "many layers": (paligemma, {"image_size": 28, "layers": 8, "sliding_window": 8}),
    "layers without a pattern": (
        paligemma,
        {
            "image_size": 28,
            "layers": 6,
            "sliding_window": 6,
            "layer_types": [f"{kind}_attention" for kind in ["full", "full", "sliding", "full", "sliding", "sliding"]],
        },
    ),
    "flag that no mask reads": (paligemma, {"image_size": 28, "use_bidirectional_attention": False}),
    "Gemma, one key head": (paligemma, {"text": GemmaConfig, "image_size": 42, "kv_heads": 1}),
    "Gemma, groups": (
        paligemma,
        {"text": GemmaConfig, "image_size": 28, "heads": 6, "hidden": 48, "head_dim": 32, "layers": 3},
    ),
    "Gemma, head of its own": (paligemma, {"text": GemmaConfig, "image_size": 56, "tied": False, "vocab": 1531}),
}
PERCEPTION_LM: dict[str, Row] = {
    "smallest": (perception_lm, {"layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16, "vision_heads": 1, "depth": 1}),
    "pooling": (perception_lm, {"tile": 56, "pooling": 2, "heads": 6, "kv_heads": 3, "hidden": 48}),
    "no class token": (perception_lm, {"class_token": False, "tiles": 6, "vision_heads": 3, "depth": 3}),
    "many layers": (perception_lm, {"layers": 6, "depth": 7}),
    "one tile": (perception_lm, {"mode": "vanilla", "tile": 42, "patch": 7, "pooling": 3, "kv_heads": 1}),
    "head of its own": (perception_lm, {"tied": False, "vocab": 397, "scaled": False, "layers": 3}),
    "pooling that leaves a rest": (perception_lm, {"tile": 42, "patch": 14, "pooling": 2, "head_dim": 32, "tiles": 1}),
}
KOSMOS2: dict[str, Row] = {
    "smallest": (kosmos2, {"layers": 1, "heads": 1, "hidden": 16, "vision_heads": 1, "latents": 2}),
    "positions interpolated": (kosmos2, {"picture": (56, 42), "latents": 7}),
    "positions interpolated, smaller": (kosmos2, {"image_size": 56, "picture": (28, 28), "hidden": 48, "heads": 6}),
    "embeddings not scaled": (kosmos2, {"scale_embedding": False, "activation_function": "relu", "layers": 3}),
    "head of its own": (kosmos2, {"tied": False, "vocab": 1177, "image_size": 42, "latents": 20}),
}
GEMMA3: dict[str, Row] = {
    "smallest": (gemma3, {"side": 2, "layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16, "pattern": 1}),
    "window shorter than an image": (gemma3, {"side": 8, "window": 5}),
    "window of two": (gemma3, {"window": 2, "hidden": 48, "heads": 6, "kv_heads": 3}),
    "window that ends during the answer": (gemma3, {"window": 40, "kv_heads": 1, "layers": 4, "pattern": 2}),
    "no window": (gemma3, {"window": 512, "positions": 1024, "head_dim": 32}),
    "sliding layers alone": (gemma3, {"layers": 2, "pattern": 6, "side": 6, "pooling": 3}),
    "many layers": (gemma3, {"layers": 13, "pattern": 6, "window": 20}),
    "rotary scaling": (gemma3, {"rope": {"rope_type": "linear", "factor": 8.0}, "layers": 6}),
    "pooling that leaves a rest": (gemma3, {"side": 5, "pooling": 2, "vision_heads": 3}),
    "head of its own": (gemma3, {"tied": False, "vocab": 397, "attention_bias": True}),
    "soft-capping that is not used": (gemma3, {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "crops of long images": (gemma3, {"crops": True, "window": 40, "positions": 1024}),
    "448 pixels": (gemma3, {"side": 32, "pooling": 4, "window": 40, "positions": 1024}),
}
LLAVA: dict[str, Row] = {
    "smallest": (llava, {"layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16, "vision_heads": 1, "depth": 2}),
    "no groups": (llava, {"image_size": 56, "kv_heads": 4, "depth": 5, "layers": 4}),
    "features of several layers": (llava, {"layer": [-2, 1, -1], "strategy": "full", "depth": 4, "bias": False}),
    "Mistral, a crop of less": (llava, {"text": "mistral", "image_size": 42, "shortest_edge": 61, "heads": 6}),
    "SigLIP and Qwen 2": (
        llava,
        {
            "tower": "siglip_vision_model",
            "strategy": "full",
            "layer": -1,
            "text": "qwen2",
            "tied": True,
            "starts": False,
        },
    ),
}
COLPALI: dict[str, Row] = {
    "smallest": (colpali, {"image_size": 28, "layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16, "width": 5}),
    "Gemma, one key head": (colpali, {"text": GemmaConfig, "image_size": 56, "kv_heads": 1, "layers": 3}),
    "window shorter than a page": (colpali, {"image_size": 84, "layers": 4, "sliding_window": 8, "width": 128}),
    "prefixes of its own": (
        colpali,
        {"image_size": 42, "prefixes": {"query_prefix": "Query: ", "visual_prompt_prefix": "A page:"}},
    ),
    "448 pixels": (colpali, {"text": GemmaConfig, "image_size": 448, "positions": 2048, "heads": 2, "kv_heads": 1}),
}
SMOLVLM: dict[str, Row] = {
    "smallest": (smolvlm, {"layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16, "vision_heads": 1, "depth": 1}),
    "Idefics3": (smolvlm, {"idefics": True, "heads": 6, "kv_heads": 3, "hidden": 48}),
    "grids of up to three by three": (smolvlm, {"longest_edge": 84, "depth": 5, "layers": 5}),
    "tiles with a rest": (smolvlm, {"tile": 64, "longest_edge": 100, "vision_heads": 3}),
    "images are not split": (smolvlm, {"splits": False, "tile": 56, "longest_edge": 80, "kv_heads": 1}),
    "one tile holds every image": (smolvlm, {"tile": 56, "patch": 7, "scale": 4, "longest_edge": 56}),
    "positions that rounding moves": (smolvlm, {"tile": 50, "patch": 2, "scale": 5, "longest_edge": 90}),
    "positions of larger images": (smolvlm, {"tile": 56, "image_size": 98, "longest_edge": 100, "idefics": True}),
    "head of its own": (smolvlm, {"tied": False, "vocab": 397, "head_dim": 32}),
}
