"""Train the tiny LLaVA checkpoint in this folder, print its held-out accuracy and save it.

    python tests/checkpoints/llava/train.py [--seeing-steps N] [--steps N] [--output FOLDER]

It begins with the vision tower of ../kosmos2 and the text model of ../perception_lm. Needs torch, transformers,
torchvision and tokenizers.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import conversations  # noqa: E402
import shapes  # noqa: E402
import training  # noqa: E402
from transformers import (  # noqa: E402
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor  # noqa: E402

IMAGE_SIZE, PATCH_SIZE = 56, 14
SIDE = IMAGE_SIZE // PATCH_SIZE
UNK, BOS, EOS = range(3)
TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] != 'system' %}{{- message['role'] | upper + ': ' }}{%- endif %}"
    "{%- for part in message['content'] if part['type'] == 'image' %}{{- '<image>\n' }}{%- endfor %}"
    "{%- if message['content'] is string %}{{- message['content'] + ' ' }}{%- else %}"
    "{%- for part in message['content'] if part['type'] == 'text' %}{{- part['text'] + ' ' }}{%- endfor %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"
)


def build_processor() -> LlavaProcessor:
    """The real processor over a small Llama tokenizer: special tokens and bytes first, `<image>` and `<pad>` last."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    asked = [question for seed in range(2_000) for question in shapes.chat_questions(shapes.scene(seed))]
    sentences = [f"USER: {question.prompt} ASSISTANT: {question.answer}" for question in asked]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=first, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([*sentences, "0 1 2 3 4 5 6 7 8 9"], trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = LlamaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        pad_token="<pad>",
        add_bos_token=True,
        extra_special_tokens={"image_token": "<image>"},
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """LLaVA 1.5 with all its parts, made small: the features are those of the tower's last layer but one."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 304,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "projection_dim": 32,
    }
    text = {
        "model_type": "llama",
        "vocab_size": 64 * math.ceil(len(processor.tokenizer) / 64),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "rms_norm_eps": 1e-5,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": processor.tokenizer.pad_token_id,
    }
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_token_index=processor.image_token_id,
        image_seq_length=SIDE**2,
    )
    model = LlavaForConditionalGeneration(config)
    training.spread(model.model.multi_modal_projector)
    training.start_from(model.model.vision_tower, "kosmos2", "vision_model.model.")
    training.start_from(model.model.language_model, "perception_lm", "model.language_model.")
    words = "model.language_model.embed_tokens.weight"
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        training.start_from_words(embeddings, processor.tokenizer, "perception_lm", words)
    return model


def converse(processor: LlavaProcessor, asked: Sequence[shapes.Question]) -> conversations.LABELLED:
    """A conversation whose answers learn to end, though the template writes no end between turns."""
    tokenizer, ids, labels = processor.tokenizer, [], []
    for question in asked:
        picture = "" if ids else "<image>" * SIDE**2 + "\n"
        text = f"{' ' if ids else ''}USER: {picture}{question.prompt} ASSISTANT:"
        turn = tokenizer(text, add_special_tokens=not ids)["input_ids"]
        answer = tokenizer(f" {question.answer}", add_special_tokens=False)["input_ids"]
        labels += [EOS if ids else -100, *[-100] * (len(turn) - 1), *answer]
        ids += turn + answer
    return [*ids, EOS], [*labels, EOS]


def build() -> conversations.Chat:
    processor = build_processor()
    model = build_model(processor)
    return conversations.Chat(
        model,
        processor,
        conversations.Cut(IMAGE_SIZE, SIDE, SIDE),
        tower=model.model.vision_tower,
        projector=model.model.multi_modal_projector,
        see=lambda pixels: model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:],
        converse=partial(converse, processor),
    )


if __name__ == "__main__":
    conversations.main(__doc__, HERE, build, seeing_steps=1500, steps=2400, text_rate=2e-3)
