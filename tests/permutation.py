"""A checkpoint whose hidden units stand in another order: the same function, whose sums are rounded otherwise."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_vlm.export  # noqa: F401 (makes torchvision importable, which transformers imports)
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

#: The units along the axes of each weight, by the end of its module's name; "" are units that keep their order.
UNITS: dict[str, tuple[str, ...]] = {
    r"attn\.q_proj": ("query", "residual"),
    r"attn\.k_proj": ("key", "residual"),
    r"attn\.v_proj": ("value", "residual"),
    r"attn\.qkv": ("query, key, value", "residual"),
    r"attn\.(o_proj|out_proj|proj)": ("residual", "attended"),
    r"attn\.inner_attn_ln": ("attended",),
    r"(gate_proj|up_proj|fc1)": ("inner", "residual"),
    r"(down_proj|fc2)": ("residual", "inner"),
    r"ffn_layernorm": ("inner",),
    r"attn\.[qk]_norm": ("",),
    r"((?<!ffn_layer)(?<![qk]_)(?<!emb_)norm(\d|_pre)?|gamma_\d)": ("residual",),
    r"(patch_embedding|patch_embed\.proj|class_embedding)": ("residual",),
    r"(embed_tokens|lm_head|position_embedding|latent_query)": ("", "residual"),
    r"(cls_token|pos_embed)": ("", "", "residual"),
    r"projector\.linear": ("text", "vision"),
    r"projector\.mm_soft_emb_norm": ("vision",),
    r"projector\.mm_input_projection_weight": ("vision", "text"),
    r"projector\.linear_1": ("projector", "features"),
    r"projector\.linear_2": ("text", "projector"),
    r"projection\.dense": ("text", "vision"),
    r"modality_projection\.proj": ("text", "shuffled"),
}


@torch.no_grad()
def permuted(checkpoint: Path, output: Path, seed: int) -> dict[str, np.ndarray]:
    """Write the twin of a checkpoint, all that can be permuted in it permuted.

    Where rotary embeddings turn queries and keys, their numbers keep their order within a head; where sinusoidal
    positions are added, the residual stream keeps its order.

    Returns:
        The order in which the twin gives the last axis of a stage; stages that are not named are the same.
    """
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    random, orders = np.random.default_rng(seed), {"": None}
    for name, weight in model.named_parameters():
        for axis, units in enumerate(_units(name)[: weight.ndim]):
            label = _label(name, units, sinusoidal=model.config.model_type == "kosmos-2")
            if label.endswith(ATTENTION) and label not in orders:
                orders |= _attention(model, name.rpartition(".")[0].rpartition(".")[0], random)
            elif label in REPEATED:
                parts = range(0, weight.shape[axis], len(orders["vision"]))
                orders[label] = np.concatenate([first + orders["vision"] for first in parts])
            elif label not in orders:
                orders[label] = random.permutation(weight.shape[axis])
            if orders[label] is not None:
                weight.copy_(weight.index_select(axis, torch.from_numpy(orders[label])))
    model.save_pretrained(output)
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(output)
    features = "features" if "features" in orders else "vision"
    stages = {"vision_features": features, "image_embeds": "text"}
    return {stage: orders[label] for stage, label in stages.items() if label in orders}


#: The vision units several times: of some patches, or of some layers, one after the other.
REPEATED = ("shuffled", "features")
ATTENTION = ("query", "key", "value", "attended")


def _units(name: str) -> tuple[str, ...]:
    module = re.sub(r"\.(weight|bias)$", "", name)
    found = [units for end, units in UNITS.items() if re.search(rf"{end}$", module)]
    assert len(found) == 1, f"{name}: {found}"
    return found[0]


def _label(name: str, units: str, sinusoidal: bool) -> str:
    """Which order units have: one for each residual stream, one for each layer's inner units and heads."""
    if units == "residual":
        units = "vision" if "vision" in name else "text"
    if units in ("", "vision", "projector", *REPEATED):
        return units
    if units == "text":
        return "" if sinusoidal else units
    return f"{name.rpartition('.')[0].rpartition('.')[0]}.{units}"


def _attention(model: torch.nn.Module, layer: str, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Orders of an attention's units: groups of heads, heads within a group, numbers within a head."""
    module = model.get_submodule(layer)
    size, fused = module.head_dim, hasattr(module, "qkv")
    heads = module.num_heads if fused else module.q_proj.out_features // size
    groups = heads if fused else module.k_proj.out_features // size
    turned = any(part in layer for part in ("language_model", "model.text_model", "timm"))
    alike = [np.arange(size) if turned else random.permutation(size) for _ in range(groups)]
    valued = [random.permutation(size) for _ in range(groups)]
    order = random.permutation(groups)
    heads_of = {group: group * (heads // groups) + random.permutation(heads // groups) for group in order}
    made = {
        "key": np.concatenate([group * size + alike[group] for group in order]),
        "value": np.concatenate([group * size + valued[group] for group in order]),
        "query": np.concatenate([head * size + alike[group] for group in order for head in heads_of[group]]),
        "attended": np.concatenate([head * size + valued[group] for group in order for head in heads_of[group]]),
    }
    parts = zip((0, 1, 2), (made["query"], made["key"], made["value"]))
    made["query, key, value"] = np.concatenate([heads * size * index + part for index, part in parts])
    return {f"{layer}.{units}": order for units, order in made.items()}
