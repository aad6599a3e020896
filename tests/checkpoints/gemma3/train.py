"""Train the tiny Gemma 3 checkpoint in this folder, print its held-out accuracy and save it.

    python tests/checkpoints/gemma3/train.py [--seeing-steps N] [--steps N] [--output FOLDER]

It begins with the layers of ../paligemma2, of its vision tower and of its text model. Needs torch, transformers,
torchvision and tokenizers.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import conversations  # noqa: E402
import shapes  # noqa: E402
import training  # noqa: E402
from transformers import (  # noqa: E402
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
)

IMAGE_SIZE, PATCH, TOKENS = 56, 7, 16
SIDE, TOKENS_SIDE = IMAGE_SIZE // PATCH, int(TOKENS**0.5)
PAD, EOS, BOS = range(3)
TURN, TURN_END = "<start_of_turn>", "<end_of_turn>"
START, IMAGE, END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(before='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.before = (message['content'] if message['content'] is string"
    " else message['content'][0]['text']) + '\n\n' %}{% else %}"
    "{{ '" + TURN + "' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' + ns.before }}"
    "{% set ns.before = '' %}{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '" + START + "' if part['type'] == 'image' else part['text'] | trim }}{% endfor %}{% endif %}"
    "{{ '" + TURN_END + "\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + TURN + "model\n' }}{% endif %}"
)


def build_processor() -> Gemma3Processor:
    """The real processor over a small Gemma tokenizer: special tokens and bytes first, those of images last."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n", "\n\n"]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=first, show_progress=False)
    asked = [question for seed in range(2_000) for question in shapes.chat_questions(shapes.scene(seed))]
    trained.train_from_iterator([text for q in asked for text in (q.prompt, q.answer, "user", "model")], trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = GemmaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        extra_special_tokens={"boi_token": START, "eoi_token": END, "image_token": IMAGE},
    )
    tokenizer.add_tokens([TURN, TURN_END], special_tokens=True)
    images = Gemma3ImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return Gemma3Processor(images, tokenizer, chat_template=TEMPLATE, image_seq_length=TOKENS)


def build_model(processor: Gemma3Processor) -> Gemma3ForConditionalGeneration:
    """Gemma 3 with all its parts, made small: averaged patches, sliding and full layers, grouped heads."""
    tokenizer = processor.tokenizer
    text = {
        "vocab_size": 64 * math.ceil(len(tokenizer) / 64),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "max_position_embeddings": 1024,
        "sliding_window": 24,
        "sliding_window_pattern": 2,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 304,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "vision_use_head": False,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=TOKENS,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        eos_token_id=[EOS, tokenizer.convert_tokens_to_ids(TURN_END)],
        pad_token_id=PAD,
        bos_token_id=BOS,
    )
    model = Gemma3ForConditionalGeneration(config)
    training.start_from(model.model.vision_tower, "paligemma2", "vision_tower.")
    training.start_from(model.model.language_model, "paligemma2", "language_model.model.")
    words = "language_model.model.embed_tokens.weight"
    training.start_from_words(model.get_input_embeddings(), tokenizer, "paligemma2", words)
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 128**-0.5)
    return model


def build() -> conversations.Chat:
    processor = build_processor()
    model = build_model(processor)

    def converse(asked: Sequence[shapes.Question]) -> conversations.LABELLED:
        first = f"<bos>{TURN}user\n{processor.full_image_sequence}"
        starts = [first, *[f"\n{TURN}user\n"] * (len(asked) - 1)]
        return conversations.turns(
            processor.tokenizer,
            [
                (f"{start}{q.prompt}{TURN_END}\n{TURN}model\n", f"{q.answer}{TURN_END}")
                for start, q in zip(starts, asked)
            ],
        )

    return conversations.Chat(
        model,
        processor,
        conversations.Cut(IMAGE_SIZE, SIDE, TOKENS_SIDE, resampling=Image.Resampling.BILINEAR),
        tower=model.model.vision_tower,
        projector=model.model.multi_modal_projector,
        see=lambda pixels: model.model.vision_tower(pixels).last_hidden_state,
        converse=converse,
        marks_images=True,
    )


if __name__ == "__main__":
    conversations.main(__doc__, HERE, build, seeing_steps=1500, steps=2200, text_rate=2e-3)
