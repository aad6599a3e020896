"""Train the tiny PaliGemma checkpoint in this folder, print its held-out accuracy and save it.

    python tests/checkpoints/paligemma/train.py [--steps N] [--output FOLDER]

Takes about a quarter of an hour on two cores and needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import paligemma_training  # noqa: E402
from transformers import GemmaConfig  # noqa: E402

#: One key head, as Gemma 2B has.
TEXT = GemmaConfig(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=512,
)

if __name__ == "__main__":
    paligemma_training.main(__doc__, TEXT, HERE)
