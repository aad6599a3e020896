"""How the tiny PaliGemma checkpoints are trained; the scripts in their folders say which text model they have."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import shapes
import torch
import training
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from training import BATCH, Losses, PatchHead, Pictures, Row
from transformers import (
    GemmaTokenizer,
    GenerationConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedConfig,
    SiglipVisionConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

PATCH_SIZE = 14
SIDE = 4  #: patches a side of an image of shapes
IMAGE_SIZE = SIDE * PATCH_SIZE


def build_processor(
    sentences: Iterable[str], side: int = SIDE, patch_size: int = PATCH_SIZE, vocabulary: int = 400
) -> PaliGemmaProcessor:
    """The real processor over a small Gemma tokenizer: special tokens and bytes first, `<loc>` and `<seg>` last.

    Args:
        sentences: what the tokenizer learns its words from.
        side: patches a side of an image.
        patch_size: pixels a side of a patch.
        vocabulary: tokens besides `<image>`, `<loc>` and `<seg>`.
    """
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n"]
    plain = [" ".join(word for word in text.split() if "<loc" not in word) for text in sentences]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=first, show_progress=False)
    trained.train_from_iterator([*plain, "0123456789"], trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = GemmaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", normalized=False, special=True)]})
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    size = side * patch_size
    images = SiglipImageProcessorPil(size={"height": size, "width": size}, image_seq_length=side**2)
    return PaliGemmaProcessor(images, tokenizer)


def build_model(
    processor: PaliGemmaProcessor,
    text: PreTrainedConfig,
    side: int = SIDE,
    layers: int = 4,
    patch_size: int = PATCH_SIZE,
) -> PaliGemmaForConditionalGeneration:
    """PaliGemma with all its parts, made small; its tower has `layers` and sees `side` x `side` patches."""
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=304,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=patch_size * side,
        patch_size=patch_size,
        vision_use_head=False,
    )
    text.vocab_size = 64 * math.ceil(len(processor.tokenizer) / 64)
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=128,
        hidden_size=128,
        image_token_index=processor.image_token_id,
        vocab_size=text.vocab_size,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    config._attn_implementation = "eager"
    model = PaliGemmaForConditionalGeneration(config)
    for layer in (model.model.multi_modal_projector, *model.model.language_model.layers):
        training.spread(layer)
    return model


def encode(processor: PaliGemmaProcessor, asked: list[list[shapes.Question]]) -> list[list[Row]]:
    """Prefix and answer ids of the questions about each scene."""
    tokenizer = processor.tokenizer
    texts = [text for some in asked for q in some for text in (f"{q.prompt}\n", f"{q.answer}{tokenizer.eos_token}")]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    start = [processor.image_token_id] * processor.image_seq_length + [tokenizer.bos_token_id]
    return [[(start + next(ids), next(ids)) for _ in some] for some in asked]


def answer_loss(
    model: PaliGemmaForConditionalGeneration, image_embeds: torch.Tensor, asked: list[tuple[Row, int]]
) -> torch.Tensor:
    ids, labels = training.padded([row for row, _ in asked], 0)
    kinds = torch.ones_like(ids)
    for kind, ((prefix, _), _) in zip(kinds, asked):
        kind[: len(prefix)] = 0
    images = {"image": BaseModelOutputWithPooling(pooler_output=image_embeds[[place for _, place in asked]])}
    return training.answer_loss(
        labels,
        lambda kept: (
            model(
                input_ids=ids, token_type_ids=kinds, mm_encoder_outputs=images, use_cache=False, logits_to_keep=kept
            ).logits
        ),
    )


def train(
    model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, seeing_steps: int, steps: int
) -> None:
    """First the vision tower alone learns to see, then all of the model learns to answer."""
    random = np.random.default_rng(0)
    pictures = Pictures.draw(IMAGE_SIZE, SIDE, shapes.questions)
    rows = encode(processor, pictures.asked)
    head = PatchHead(model.config.vision_config.hidden_size)

    def see(chosen: np.ndarray) -> BaseModelOutputWithPooling:
        return model.get_image_features(pictures.normalised(chosen, [0.5] * 3, [0.5] * 3))

    def seeing() -> Losses:
        chosen = random.integers(0, len(rows), 4 * BATCH)
        return {"patches": head.loss(see(chosen).last_hidden_state, pictures.targets(chosen))}

    def answering() -> Losses:
        chosen = random.integers(0, len(rows), BATCH)
        vision = see(chosen)
        asked = [(row, place) for place, seed in enumerate(chosen) for row in training.some(random, rows[seed])]
        answers = [answer_loss(model, vision.pooler_output, half) for half in training.in_halves(asked)]
        tokens = sum(len(row[1]) for row, _ in asked)
        return {
            "answers": sum(answers) / tokens,
            "patches": head.loss(vision.last_hidden_state, pictures.targets(chosen)),
        }

    model.train()
    eyes = [*model.model.vision_tower.parameters(), *head.parameters()]
    tongue = [*model.model.multi_modal_projector.parameters(), *model.model.language_model.parameters()]
    training.optimise({1.6e-3: eyes}, seeing_steps, seeing)
    training.optimise({4e-4: eyes, 4e-3: tongue}, steps, answering)  # fast eyes would forget what they have learnt


@torch.inference_mode()
def evaluate(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    asked: Iterable[tuple[Image.Image, list[shapes.Question]]],
) -> Iterator[list[str]]:
    """The answers to all questions about each image."""
    model.eval()
    for image, questions in asked:
        inputs = processor(
            images=[[image]] * len(questions),
            text=["<image>" + q.prompt for q in questions],
            return_tensors="pt",
            padding=True,
        )
        inputs.pop("labels", None)
        answers = model.generate(**inputs, max_new_tokens=64, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        yield processor.batch_decode(answers, skip_special_tokens=True)


def save(model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, folder: Path) -> None:
    """Write the checkpoint, all parameters in bfloat16."""
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=1, pad_token_id=0, max_new_tokens=64, cache_implementation=None
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main(description: str, text: PreTrainedConfig, folder: Path) -> None:
    """Train with this text configuration and save to `folder`, unless the command line names another."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeing-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--output", type=Path, default=folder)
    options = parser.parse_args()
    torch.manual_seed(0)
    asked = (question for seed in range(2_000) for question in shapes.questions(shapes.scene(seed)))
    processor = build_processor(text for question in asked for text in (question.prompt, question.answer))
    model = build_model(processor, text)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(processor.tokenizer)} tokens", flush=True)
    started = time.monotonic()
    train(model, processor, options.seeing_steps, options.steps)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes")
    save(model, processor, options.output)
    saved = PaliGemmaForConditionalGeneration.from_pretrained(options.output, dtype=torch.float32)
    scenes = [shapes.scene(seed) for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + 200)]
    asked = [(shapes.draw(scene), shapes.questions(scene)) for scene in scenes]
    right: dict[str, list[bool]] = {}
    for (_, questions), answers in zip(asked, evaluate(saved, processor, asked)):
        for question, answer in zip(questions, answers):
            right.setdefault(question.task, []).append(shapes.is_right(question, answer))
    training.report(right)
