"""What random checkpoints share: weights whose answers differ, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

#: The standard deviation of the logits. With much less all tokens are about as likely, and no beam is the best: scores
#: differ by no more than rounding. With this the chosen tokens have a log-probability near -1.
SPREAD = 4.0
LAST_NORMS = ("language_model.norm", "text_model.model.layer_norm", "model.text_model.norm")  #: the ends of their names


def save(folder: Path, model: PreTrainedModel, processor: Any, seed: int) -> Path:
    """Write a checkpoint with weights that tell something, every other one in shards."""
    telling_weights(model)
    model.save_pretrained(folder, max_shard_size="200KB" if seed % 2 else "5GB")
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def telling_weights(model: torch.nn.Module) -> None:
    """Small embeddings and large layers, and a last norm that makes the logits differ by `SPREAD`.

    With the usual initialisation a tiny model repeats its last token, and does not know which token is better.
    """
    for name, weight in model.named_parameters():
        if "embed_tokens" in name:
            weight.normal_(0, 0.003)
        elif weight.ndim > 1 and not any(part in name for part in ("position_embedding", "pos_embed", "cls_token")):
            weight.normal_(0, 2 / weight[0].numel() ** 0.5)
        elif weight.ndim == 1:
            weight.add_(torch.randn_like(weight) * 0.1)
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        embeddings.weight[model.config.get_text_config().pad_token_id] = 0  # no real model says <pad>
    (norm,) = (module for name, module in model.named_modules() if name.endswith(LAST_NORMS))
    head = model.get_output_embeddings().weight
    scale = SPREAD / float(head.std() * head.shape[1] ** 0.5)
    shift = 1 if "Gemma" in type(norm).__name__ else 0  # Gemma multiplies by 1 + weight
    norm.weight.copy_((norm.weight + shift) * scale - shift)
