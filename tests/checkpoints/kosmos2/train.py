"""Train the tiny KOSMOS-2 checkpoint in this folder, print its held-out accuracy and save it.

    python tests/checkpoints/kosmos2/train.py [--steps N] [--output FOLDER]

Takes about a quarter of an hour on two cores and needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import shapes  # noqa: E402
import training  # noqa: E402
from training import BATCH, Losses, PatchHead, Pictures, Row  # noqa: E402
from transformers import (  # noqa: E402
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
    XLMRobertaTokenizer,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor  # noqa: E402

IMAGE_SIZE, PATCH_SIZE, IMAGE_TOKENS = 56, 14, 16
SIDE = IMAGE_SIZE // PATCH_SIZE
BOS, PAD, EOS, UNK = range(4)


def build_processor() -> Kosmos2Processor:
    """The real processor over a small Unigram tokenizer of words and characters: tags and patches come last."""
    sentences = [
        re.sub(r"<[^>]*>", " ", q.prompt + q.answer)
        for seed in range(2_000)
        for q in shapes.grounded_questions(shapes.scene(seed))
    ]
    words = Counter(f"▁{word}" for sentence in sentences for word in re.findall(r"\w+", sentence))
    pieces = [(word, math.log(count / words.total())) for word, count in words.most_common()]
    pieces += [(character, -20.0) for character in ("▁", *map(chr, range(33, 127)))]
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = XLMRobertaTokenizer(vocab=[*special, *pieces, ("<mask>", 0.0)])
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return Kosmos2Processor(CLIPImageProcessor(size=size, crop_size=size), tokenizer)


def build_model(processor: Kosmos2Processor) -> Kosmos2ForConditionalGeneration:
    """KOSMOS-2 with all its parts, made small."""
    vision = {
        "hidden_size": 128,
        "intermediate_size": 304,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    text = {
        "vocab_size": 64 * math.ceil(len(processor.tokenizer) / 64),
        "embed_dim": 128,
        "ffn_dim": 304,
        "layers": 4,
        "attention_heads": 4,
        "max_position_embeddings": 512,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    config = Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=IMAGE_TOKENS)
    config._attn_implementation = "eager"
    model = Kosmos2ForConditionalGeneration(config)
    decoder, projection = model.text_model.model, model.image_to_text_projection
    for layer in (*decoder.layers, projection.x_attn):
        training.spread(layer)
    with torch.no_grad():
        projection.dense.weight.normal_(0, 1)  # it takes vectors of length 1
        projection.x_attn.out_proj.weight.mul_(128**-0.5)  # what it gives is multiplied by that, as embeddings are
        decoder.embed_tokens.weight.normal_(0, 128**-0.5)
        decoder.embed_tokens.weight[processor.tokenizer.convert_tokens_to_ids("<patch_index_0000>") :][:1024] = places()
    return model


def places() -> torch.Tensor:
    """Embeddings of the 32 x 32 patches that are alike where patches are near each other, (1024, 128).

    Cosines of random waves, some as long as the picture, which say where a patch is, some short, which tell neighbours.
    """
    cells = torch.cartesian_prod(torch.arange(32.0), torch.arange(32.0))
    waves = torch.randn(2, 128) * torch.logspace(-1.3, -0.2, 128)
    return torch.cos(cells @ waves + torch.rand(128) * 2 * math.pi) * (2 / 128) ** 0.5


def encode(processor: Kosmos2Processor, asked: list[list[shapes.Question]]) -> list[list[Row]]:
    """Prompt and answer ids of the questions about each scene, the picture's places in front."""
    tokenizer = processor.tokenizer
    texts = [text for some in asked for q in some for text in (q.prompt, q.answer)]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    image, end = tokenizer.convert_tokens_to_ids(["<image>", "</image>"])
    start = [BOS, image, *range(UNK + 1, UNK + 1 + IMAGE_TOKENS), end]
    return [[(start + next(ids), [*next(ids), EOS]) for _ in some] for some in asked]


def answer_loss(
    model: Kosmos2ForConditionalGeneration, image_embeds: torch.Tensor, asked: list[tuple[Row, int]]
) -> torch.Tensor:
    ids, labels = training.padded([row for row, _ in asked], PAD)
    mask = torch.zeros_like(ids)
    mask[:, 2 : 2 + IMAGE_TOKENS] = 1
    embeds = image_embeds[[place for _, place in asked]]
    return training.answer_loss(
        labels,
        lambda kept: (
            model.text_model(
                input_ids=ids,
                image_embeds=embeds,
                image_embeds_position_mask=mask,
                use_cache=False,
                logits_to_keep=kept,
            ).logits
        ),
    )


def train(model: Kosmos2ForConditionalGeneration, processor: Kosmos2Processor, seeing_steps: int, steps: int) -> None:
    """First the vision tower alone learns to see, then all of the model learns to answer."""
    random = np.random.default_rng(0)
    pictures = Pictures.draw(IMAGE_SIZE, SIDE, shapes.grounded_questions)
    rows = encode(processor, pictures.asked)
    head = PatchHead(model.config.vision_config.hidden_size)
    # As many latents as patches: a second head teaches the resampler to hand each patch on.
    latent_head = PatchHead(model.config.text_config.embed_dim)

    def see(chosen: np.ndarray) -> torch.Tensor:
        stats = processor.image_processor
        pixels = pictures.normalised(chosen, stats.image_mean, stats.image_std)
        return model.vision_model.model.post_layernorm(model.vision_model(pixels).last_hidden_state)

    def project(features: torch.Tensor) -> torch.Tensor:
        return model.image_to_text_projection(torch.nn.functional.normalize(features, dim=-1))[0]

    def seen(features: torch.Tensor, embeds: torch.Tensor, chosen: np.ndarray) -> Losses:
        targets = pictures.targets(chosen)
        scaled = embeds * model.text_model.model.embed_scale
        return {"patches": head.loss(features[:, 1:], targets), "latents": latent_head.loss(scaled, targets)}

    def seeing() -> Losses:
        chosen = random.integers(0, len(rows), 4 * BATCH)
        features = see(chosen)
        return seen(features, project(features), chosen)

    def answering() -> Losses:
        chosen = random.integers(0, len(rows), BATCH)
        features = see(chosen)
        embeds = project(features)
        asked = [(row, place) for place, seed in enumerate(chosen) for row in training.some(random, rows[seed], 4)]
        answers = [answer_loss(model, embeds, half) for half in training.in_halves(asked)]
        tokens = sum(len(row[1]) for row, _ in asked)
        return {"answers": sum(answers) / tokens, **seen(features, embeds, chosen)}

    model.train()
    heads = [*head.parameters(), *latent_head.parameters()]
    eyes = [*model.vision_model.parameters(), *model.image_to_text_projection.parameters(), *heads]
    training.optimise({1.6e-3: eyes}, seeing_steps, seeing)
    training.optimise(
        {4e-4: eyes, 4e-3: [*model.text_model.parameters()]}, steps, answering
    )  # fast eyes would forget what they have learnt


@torch.inference_mode()
def evaluate(
    model: Kosmos2ForConditionalGeneration, processor: Kosmos2Processor, pictures: int
) -> dict[str, list[bool]]:
    """Held-out questions answered right or wrong, per task; one by one, since padding shifts positions here."""
    model.eval()
    right: dict[str, list[bool]] = {}
    for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + pictures):
        scene = shapes.scene(seed)
        picture = shapes.draw(scene)
        for question in shapes.grounded_questions(scene):
            inputs = processor(images=picture, text=question.prompt, num_image_tokens=IMAGE_TOKENS, return_tensors="pt")
            answer = model.generate(**inputs, max_new_tokens=48, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            text = processor.tokenizer.decode(answer, skip_special_tokens=True)
            right.setdefault(question.task, []).append(shapes.is_right_grounded(question, text))
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeing-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    torch.manual_seed(0)
    processor = build_processor()
    model = build_model(processor)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(processor.tokenizer)} tokens", flush=True)
    started = time.monotonic()
    train(model, processor, options.seeing_steps, options.steps)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes")
    training.save(model, processor, options.output)
    saved = Kosmos2ForConditionalGeneration.from_pretrained(options.output, dtype=torch.float32)
    training.report(evaluate(saved, processor, 200))


if __name__ == "__main__":
    main()
