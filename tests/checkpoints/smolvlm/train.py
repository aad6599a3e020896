"""Train the tiny SmolVLM checkpoint in this folder, print its held-out accuracy and save it.

    python tests/checkpoints/smolvlm/train.py [--seeing-steps N] [--steps N] [--output FOLDER]

It begins with the vision tower of ../paligemma and the text model of ../perception_lm. Needs torch, transformers,
torchvision, tokenizers and num2words.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import conversations  # noqa: E402
import shapes  # noqa: E402
import training  # noqa: E402
from transformers import (  # noqa: E402
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

TILE, PATCH, SCALE, GRID = 56, 14, 2, 2
SIDE = TILE // PATCH
TILE_TOKENS = (SIDE // SCALE) ** 2
START, END, AROUND, IMAGE = "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"
CELLS = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
SPECIAL = ("<|endoftext|>", START, "<|im_end|>", AROUND, IMAGE, END, "<global-img>", *CELLS)
TEMPLATE = (
    START + "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '" + IMAGE + "' }}{% endfor %}"
    "{{ '" + END + "\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def build_processor() -> SmolVLMProcessor:
    """The real processor over a small byte-level tokenizer."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained.decoder = decoders.ByteLevel()
    questions = [question for seed in range(2_000) for question in shapes.chat_questions(shapes.scene(seed))]
    sentences = [
        text for q in questions for text in (f"User:{q.prompt}", f"User: {q.prompt}", f"Assistant: {q.answer}")
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=460, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([*sentences, "System: \n\n"], trainer)
    trained.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token=START,
        eos_token=END,
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={
            "fake_image_token": AROUND,
            "image_token": IMAGE,
            "end_of_utterance_token": END,
            "global_image_token": "<global-img>",
        },
    )
    sizes = {"size": {"longest_edge": GRID * TILE}, "max_image_size": {"longest_edge": TILE}}
    return SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes),
        tokenizer,
        SmolVLMVideoProcessor(**sizes, num_frames=8, fps=1),
        image_seq_len=TILE_TOKENS,
        chat_template=TEMPLATE,
    )


def build_model(processor: SmolVLMProcessor) -> SmolVLMForConditionalGeneration:
    """SmolVLM with all its parts, made small: a SigLIP tower, a projector that shuffles pixels, Llama text."""
    tokenizer = processor.tokenizer
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 304,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 64 * math.ceil(len(tokenizer) / 64),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "tie_word_embeddings": True,
            **ids,
        },
        scale_factor=SCALE,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=True,
        **ids,
    )
    model = SmolVLMForConditionalGeneration(config)
    training.spread(model.model.connector)
    training.start_from(model.model.vision_model, "paligemma", "vision_tower.")
    training.start_from(model.model.text_model, "perception_lm", "model.language_model.")
    words = "model.language_model.embed_tokens.weight"
    training.start_from_words(model.get_input_embeddings(), tokenizer, "perception_lm", words)
    return model


def build() -> conversations.Chat:
    processor = build_processor()
    model = build_model(processor)
    tokens = IMAGE * TILE_TOKENS
    cells = [[f"{AROUND}<row_{row + 1}_col_{column + 1}>{tokens}" for column in range(GRID)] for row in range(GRID)]
    image = "".join("".join(row) + "\n" for row in cells) + f"\n{AROUND}<global-img>{tokens}{AROUND}"

    def converse(asked: Sequence[shapes.Question]) -> conversations.LABELLED:
        starts = [f"{START}User:{image}", *["\nUser: "] * (len(asked) - 1)]
        return conversations.turns(
            processor.tokenizer,
            [(f"{start}{q.prompt}{END}\nAssistant:", f" {q.answer}{END}") for start, q in zip(starts, asked)],
        )

    return conversations.Chat(
        model,
        processor,
        conversations.Cut(TILE, SIDE, SIDE // SCALE, GRID, resampling=Image.Resampling.LANCZOS),
        tower=model.model.vision_model,
        projector=model.model.connector,
        see=lambda pixels: model.model.vision_model(pixels).last_hidden_state,
        converse=converse,
    )


if __name__ == "__main__":
    conversations.main(__doc__, HERE, build, seeing_steps=2000, steps=4400, text_rate=2e-3)
