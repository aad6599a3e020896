"""Train the tiny Gemma 3 checkpoint in this folder, print its held-out accuracy and save it.

    python tests/checkpoints/gemma3/train.py [--seeing-steps N] [--steps N] [--output FOLDER]

Needs torch, transformers, torchvision and tokenizers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import shapes  # noqa: E402
import training  # noqa: E402
from training import BATCH, Losses, PatchHead, Pictures  # noqa: E402
from transformers import (  # noqa: E402
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
    GenerationConfig,
)

IMAGE_SIZE, PATCH, TOKENS = 56, 7, 16
SIDE, TOKENS_SIDE = IMAGE_SIZE // PATCH, int(TOKENS**0.5)
SCENES = 10_000
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
        "hidden_size": 96,
        "intermediate_size": 256,
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
    for part in (*model.model.language_model.layers, model.model.vision_tower.encoder):
        training.spread(part)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 128**-0.5)
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 96**-0.5)
    return model


def conversation(processor: Gemma3Processor, asked: list[shapes.Question]) -> tuple[list[int], list[bool]]:
    """Ids of a conversation about a picture, and which of them are answers; as the chat template would write it."""
    tokenizer, ids, answers = processor.tokenizer, [], []
    before = f"<bos>{TURN}user\n{processor.full_image_sequence}"
    for question in asked:
        asks = f"{before}{question.prompt}{TURN_END}\n{TURN}model\n"
        ids += tokenizer(asks, add_special_tokens=False)["input_ids"]
        answers += [False] * (len(ids) - len(answers))
        ids += tokenizer(f"{question.answer}{TURN_END}", add_special_tokens=False)["input_ids"]
        answers += [True] * (len(ids) - len(answers))
        before = f"\n{TURN}user\n"
    return ids, answers


def train(model: Gemma3ForConditionalGeneration, processor: Gemma3Processor, seeing_steps: int, steps: int) -> None:
    """First the vision tower learns to see, then the rest of the model learns to answer from what it sees."""
    pictures = Pictures.draw(IMAGE_SIZE, SIDE, shapes.chat_questions, SCENES)
    pooled = np.stack([training.patch_targets(shapes.scene(seed), TOKENS_SIDE) for seed in range(SCENES)])
    random = np.random.default_rng(0)
    projector, tower = model.model.multi_modal_projector, model.model.vision_tower
    head, pooled_head = (PatchHead(config.hidden_size) for config in (tower.config, model.config.text_config))
    half = [0.5] * 3

    def seeing() -> Losses:
        chosen = random.integers(0, SCENES, BATCH)
        features = tower(pictures.normalised(chosen, half, half)).last_hidden_state
        return {
            "patches": head.loss(features, pictures.targets(chosen)),
            "pooled": pooled_head.loss(projector(features), torch.from_numpy(pooled[chosen])),
        }

    def answering() -> Losses:
        chosen = random.integers(0, SCENES, BATCH)
        rows = [
            conversation(processor, [some[i] for i in random.permutation(len(some))[: training.ASKED]])
            for some in (pictures.asked[index] for index in chosen)
        ]
        embeds = projector(seen[chosen].float())
        handed_on = pooled_head.loss(embeds, torch.from_numpy(pooled[chosen]))
        ids, labels = training.padded([(ids, []) for ids, _ in rows], PAD)
        for target, given, (row, answers) in zip(labels, ids, rows):
            target[: len(row)] = torch.where(torch.tensor(answers), given[: len(row)], -100)
        is_image = ids == processor.tokenizer.image_token_id
        inputs = model.get_input_embeddings()(ids).masked_scatter(is_image[..., None], embeds)
        loss = training.answer_loss(
            labels,
            lambda kept: (
                model(inputs_embeds=inputs, token_type_ids=is_image.long(), use_cache=False, logits_to_keep=kept).logits
            ),
        )
        return {"answers": loss / (labels >= 0).sum(), "pooled": handed_on}

    model.train()
    heads = [*head.parameters(), *pooled_head.parameters()]
    training.optimise({1.6e-3: [*tower.parameters(), *projector.parameters(), *heads]}, seeing_steps, seeing)
    with torch.no_grad():  # the tower is not trained further
        parts = np.array_split(np.arange(SCENES), SCENES // 100)
        seen = torch.cat([tower(pictures.normalised(part, half, half)).last_hidden_state.bfloat16() for part in parts])
    handing_on = [*projector.parameters(), *pooled_head.parameters()]
    training.optimise({4e-4: handing_on, 4e-3: [*model.model.language_model.parameters()]}, steps, answering)


@torch.inference_mode()
def evaluate(model: Gemma3ForConditionalGeneration, processor: Gemma3Processor, pictures: int) -> dict[str, list[bool]]:
    """Held-out questions answered right or wrong, per task."""
    model.eval()
    right: dict[str, list[bool]] = {}
    for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + pictures):
        scene = shapes.scene(seed)
        for question in shapes.chat_questions(scene):
            content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(text=text, images=[shapes.draw(scene)], return_tensors="pt", add_special_tokens=False)
            answer = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            text = processor.tokenizer.decode(answer, skip_special_tokens=True)
            right.setdefault(question.task, []).append(text == question.answer)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeing-steps", type=int, default=700)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    torch.manual_seed(0)
    processor = build_processor()
    model = build_model(processor)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(processor.tokenizer)} tokens", flush=True)
    started = time.monotonic()
    train(model, processor, options.seeing_steps, options.steps)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS,
        eos_token_id=[EOS, processor.tokenizer.convert_tokens_to_ids(TURN_END)],
        pad_token_id=PAD,
        max_new_tokens=64,
        cache_implementation=None,
    )
    model.save_pretrained(options.output)
    processor.save_pretrained(options.output)
    saved = Gemma3ForConditionalGeneration.from_pretrained(options.output, dtype=torch.float32)
    training.report(evaluate(saved, processor, 200))


if __name__ == "__main__":
    main()
