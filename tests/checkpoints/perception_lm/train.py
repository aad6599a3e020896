"""Train the tiny PerceptionLM checkpoint in this folder, print its held-out accuracy and save it.

    python tests/checkpoints/perception_lm/train.py [--steps N] [--output FOLDER]
    python tests/checkpoints/perception_lm/train.py --practise --steps 1200

The second run goes on from the checkpoint that the first has saved and practises naming colours.

Takes about a quarter of an hour on two cores and needs torch, transformers, timm, torchvision and tokenizers.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import conversations  # noqa: E402
import shapes  # noqa: E402
import training  # noqa: E402
from training import BATCH, Losses, PatchHead  # noqa: E402
from transformers import (  # noqa: E402
    PerceptionLMConfig,
    PerceptionLMForConditionalGeneration,
    PerceptionLMImageProcessor,
    PerceptionLMProcessor,
    PerceptionLMVideoProcessor,
    PreTrainedTokenizerFast,
)

TILE, PATCH, POOLING = 56, 14, 2
SIDE = TILE // PATCH
TILE_TOKENS = (SIDE // POOLING) ** 2
SCENES, CLIPS, CLIPS_A_BATCH, SAMPLED = 24_000, 6_000, 8, 4
SYSTEM = "You see shapes."
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|image|>",
    "<|video|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '" + SYSTEM + "' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' + system + '<|eot_id|>' }}"
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<|image|>{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}<|video|>{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] | trim }}{% endfor %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# How Llama 3's tokenizer cuts text before merging.
PIECES = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"""
)


def build_processor() -> PerceptionLMProcessor:
    """The real processor over a small byte-level tokenizer."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    questions = [q for seed in range(2_000) for q in (*shapes.chat_questions(shapes.scene(seed)), shapes.clip(seed)[1])]
    sentences = [text for q in questions for text in (q.prompt, q.answer, "system\n\n", "user\n\n", "assistant\n\n")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([*sentences, SYSTEM, "0123456789"], trainer)
    trained.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
        extra_special_tokens={"image_token": "<|image|>", "video_token": "<|video|>"},
    )
    size = {"height": TILE, "width": TILE}
    stats = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = PerceptionLMImageProcessor(tile_size=TILE, max_num_tiles=4, size=size, **stats)
    videos = PerceptionLMVideoProcessor(size=size, **stats)
    return PerceptionLMProcessor(
        videos, images, tokenizer, patch_size=PATCH, pooling_ratio=POOLING, chat_template=TEMPLATE
    )


def build_model(processor: PerceptionLMProcessor) -> PerceptionLMForConditionalGeneration:
    """PerceptionLM with all its parts, made small: a class token, pooling, Llama 3's rotary scaling."""
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_lang_large_patch14_448",
        "do_pooling": True,
        "model_args": {
            "embed_dim": 128,
            "depth": 4,
            "num_heads": 4,
            "mlp_ratio": 2.375,
            "img_size": [TILE, TILE],
            "patch_size": PATCH,
            "ref_feat_shape": [SIDE, SIDE],
            "init_values": 0.1,
            "global_pool": "",
            "use_post_transformer_norm": False,
        },
    }
    tokenizer = processor.tokenizer
    text = {
        "model_type": "llama",
        "vocab_size": 64 * math.ceil(len(tokenizer) / 64),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    }
    config = PerceptionLMConfig(
        vision_config=vision,
        text_config=text,
        vision_use_cls_token=True,
        projector_pooling_ratio=POOLING,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )
    model = PerceptionLMForConditionalGeneration(config)
    for layer in (model.model.multi_modal_projector, *model.model.language_model.layers):
        training.spread(layer)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 128**-0.5)
        for name, weight in model.model.vision_tower.named_parameters():
            if "gamma" in name:  # timm's 0.1 is meant for deep towers
                weight.fill_(1)
            elif weight.ndim == 2:
                weight.normal_(0, 0.7 * weight.shape[1] ** -0.5)
    return model


def conversation(processor: PerceptionLMProcessor, media: str, asked: list[shapes.Question]) -> conversations.LABELLED:
    """A conversation about some media; as the chat template would write it."""
    system = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
    user, answers = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
    starts = [f"{system}{user}{media}", *[user] * (len(asked) - 1)]
    return conversations.turns(
        processor.tokenizer,
        [(f"{start}{q.prompt}<|eot_id|>{answers}", f"{q.answer}<|eot_id|>") for start, q in zip(starts, asked)],
    )


def sampled(seed: int) -> np.ndarray:
    """The frames of a clip that are looked at, (frames, size, size, 3) of uint8."""
    frames, _ = shapes.clip(seed)
    chosen = [frames[index * shapes.FRAMES // SAMPLED] for index in range(SAMPLED)]
    return np.stack([np.asarray(shapes.draw(frame, 112, 112).resize((TILE, TILE), 3)) for frame in chosen])


def train(
    model: PerceptionLMForConditionalGeneration,
    processor: PerceptionLMProcessor,
    seeing_steps: int,
    steps: int,
    practise: bool,
) -> None:
    """First the vision tower learns to see, then the rest of the model learns to answer from what it sees; or a trained
    model practises."""
    started = time.monotonic()
    cut = conversations.Cut(TILE, SIDE, SIDE // POOLING, grid=2, whole_first=True)
    tiles, patches, pooled = cut.all(SCENES)
    with ProcessPoolExecutor(2) as pool:
        clips = np.stack(list(pool.map(sampled, range(CLIPS), chunksize=256)))
    print(f"{CLIPS} clips drawn in {time.monotonic() - started:.0f} s", flush=True)
    random = np.random.default_rng(0)
    project = model.model.multi_modal_projector
    head = PatchHead(model.config.vision_config.model_args["embed_dim"])
    pooled_head = PatchHead(model.config.text_config.hidden_size)  # teaches the projector to hand on what was seen
    image, video = "<|image|>" * 5 * TILE_TOKENS, "<|video|>" * SAMPLED * TILE_TOKENS

    def see(pixels: np.ndarray) -> torch.Tensor:
        values = conversations.pixel_values(pixels, [0.5] * 3, [0.5] * 3)
        return model.model.vision_tower(values).last_hidden_state[:, 1:]

    @torch.no_grad()
    def remember(pixels: np.ndarray) -> torch.Tensor:
        """What the tower sees in each picture or clip, (pictures, tiles, patches, width): it is not trained further."""
        return torch.stack([see(some).bfloat16() for some in pixels])

    def seeing() -> Losses:
        chosen = random.integers(0, SCENES, BATCH)
        features = see(tiles[chosen])
        return {
            "patches": head.loss(features, torch.from_numpy(patches[chosen]).flatten(0, 1)),
            "pooled": pooled_head.loss(project(features), torch.from_numpy(pooled[chosen]).flatten(0, 1)),
        }

    def answering() -> Losses:
        chosen = random.integers(0, SCENES, BATCH)
        rows = []
        for seed in chosen:
            questions = shapes.chat_questions(shapes.scene(int(seed)))
            asked = [questions[index] for index in random.permutation(len(questions))[: training.ASKED]]
            if practise:  # the question that is hardest to learn, always, and first more often than not
                asked = [questions[-1], *(one for one in asked if one is not questions[-1])][: training.ASKED]
            rows.append(conversation(processor, image, asked))
        embeds = project(pictures_seen[chosen].flatten(0, 1).float())
        handed_on = pooled_head.loss(embeds, torch.from_numpy(pooled[chosen]).flatten(0, 1))
        still, words = conversations.answer_loss(model, rows, processor.image_token_id, embeds)
        chosen = random.integers(0, CLIPS, CLIPS_A_BATCH)
        rows = [conversation(processor, video, [shapes.clip(int(seed))[1]]) for seed in chosen]
        embeds = project(clips_seen[chosen].flatten(0, 1).float())
        moving, more = conversations.answer_loss(model, rows, processor.video_token_id, embeds)
        return {"pictures": still / words, "clips": moving / more, "pooled": handed_on}

    model.train()
    heads = [*head.parameters(), *pooled_head.parameters()]
    eyes = [*model.model.vision_tower.parameters(), *project.parameters(), *heads]
    if not practise:
        training.optimise({1.6e-3: eyes}, seeing_steps, seeing)
    pictures_seen, clips_seen = remember(tiles), remember(clips)
    tongue = [*model.model.language_model.parameters()]
    if practise:
        training.optimise({1.5e-3: tongue}, steps, answering)
    else:
        training.optimise({4e-4: [*project.parameters(), *pooled_head.parameters()], 4e-3: tongue}, steps, answering)


def evaluate(
    model: PerceptionLMForConditionalGeneration, processor: PerceptionLMProcessor, pictures: int
) -> dict[str, list[bool]]:
    """Held-out questions about pictures and clips answered right or wrong, per task."""
    right = conversations.evaluate(model, processor, pictures)
    for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + pictures):
        frames, question = shapes.clip(seed)
        chosen = [frames[index * shapes.FRAMES // SAMPLED] for index in range(SAMPLED)]
        film = np.stack([np.asarray(shapes.draw(frame, 112, 112)) for frame in chosen])
        answer = conversations.ask(model, processor, "video", film, question.prompt)
        right.setdefault(question.task, []).append(answer == question.answer)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeing-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=4200)
    parser.add_argument("--practise", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.practise:
        processor = PerceptionLMProcessor.from_pretrained(options.output)
        model = PerceptionLMForConditionalGeneration.from_pretrained(options.output, dtype=torch.float32)
    else:
        processor = build_processor()
        model = build_model(processor)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(processor.tokenizer)} tokens", flush=True)
    started = time.monotonic()
    train(model, processor, options.seeing_steps, options.steps, options.practise)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes")
    training.save(model, processor, options.output)
    saved = PerceptionLMForConditionalGeneration.from_pretrained(options.output, dtype=torch.float32)
    training.report(evaluate(saved, processor, 200))


if __name__ == "__main__":
    main()
