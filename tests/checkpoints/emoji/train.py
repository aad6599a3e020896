"""Train the tiny PaliGemma 2 checkpoint in this folder, print its held-out accuracy and save it.

    python tests/checkpoints/emoji/train.py [--seeing-steps N] [--steps N] [--hard-steps N] [--output FOLDER]

First the vision tower learns, by a head that is thrown away, what each patch shows, then the model learns to answer.
Needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import emoji_scenes as emoji  # noqa: E402
import paligemma_training as paligemma  # noqa: E402
import torch  # noqa: E402
import training  # noqa: E402
from seeing import PATCH_SIZE, SIDE, Batch, PatchHead, batches, hardest, some, waves  # noqa: E402
from torch.nn import functional  # noqa: E402
from transformers import Gemma2Config, PaliGemmaForConditionalGeneration, PaliGemmaProcessor  # noqa: E402

SHAPES = HERE.parent / "paligemma2"
SEEN, ANSWERED = 64, 24  #: pictures a step of either stage
WARM_UP = 20  #: steps of rising rates
NEW = 0.25  #: deviation of embeddings that the other checkpoint does not have, as that of those that it uses
TEXT = Gemma2Config(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    query_pre_attn_scalar=32,
    max_position_embeddings=512,
    sliding_window=128,
)


@torch.no_grad()
def start_from_shapes(model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor) -> None:
    """Take what fits from the checkpoint that knows shapes: it can look, count and list boxes, of other things."""
    known = PaliGemmaForConditionalGeneration.from_pretrained(SHAPES, dtype=torch.float32)
    found = dict(known.named_parameters())
    for name, parameter in model.named_parameters():
        if "embed" not in name:
            parameter.copy_(found[name])
    theirs, ours = (one.get_input_embeddings().weight for one in (known, model))
    ours.normal_(0, NEW).add_(theirs.median(0).values)  # what the rows of all tokens share
    words = PaliGemmaProcessor.from_pretrained(SHAPES).tokenizer.get_vocab()
    for word, place in processor.tokenizer.get_vocab().items():
        if word in words and not word.startswith("<loc"):
            ours[place] = theirs[words[word]]


@torch.no_grad()
def start_from_patches(model: PaliGemmaForConditionalGeneration, pixels: torch.Tensor) -> None:
    """The patch embedding starts as the principal components of patches, evened out: colours, then edges."""
    patches = functional.unfold(pixels, PATCH_SIZE, stride=PATCH_SIZE).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    _, scales, components = torch.linalg.svd((patches - mean) / len(patches) ** 0.5, full_matrices=False)
    embedding = model.model.vision_tower.embeddings.patch_embedding
    width = embedding.out_channels
    rows = 0.5 * components[:width] / (scales[:width, None] + 0.1 * scales[:width].mean())
    turned = torch.linalg.qr(torch.randn(width, width))[0] @ rows
    embedding.weight.copy_(turned.view_as(embedding.weight))
    embedding.bias.copy_(-turned @ mean)


@torch.no_grad()
def start_from_waves(model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor) -> None:
    """What tells a place starts as waves over the picture, so that places near each other start alike."""
    places = model.model.vision_tower.embeddings.position_embedding.weight
    width = places.shape[1]
    sides = waves((torch.arange(SIDE) + 0.5) / SIDE, SIDE / 2, width // 4)
    places.copy_(0.3 * torch.cat([sides.repeat_interleave(SIDE, 0), sides.repeat(SIDE, 1)], 1))
    tokens = model.get_input_embeddings().weight
    first = processor.tokenizer.convert_tokens_to_ids("<loc0000>")
    told = waves(torch.arange(1024) / 1023)
    turn = torch.linalg.qr(torch.randn(width, told.shape[1]))[0].T
    tokens[first : first + 1024] = tokens.median(0).values + 1.2 * told @ turn


def optimise(
    groups: dict[float, list[torch.nn.Parameter]],
    steps: int,
    data: Iterator[Batch],
    loss: Callable[[Batch], training.Losses],
) -> None:
    """Muon for matrices, AdamW for the rest, rates that rise, then fall as a cosine; half a batch a thread."""
    started, worked = time.monotonic(), time.process_time()
    matrices = [[one for one in group if one.ndim == 2 and max(one.shape) < 512] for group in groups.values()]
    kept = {id(one) for group in matrices for one in group}
    others = [[one for one in group if id(one) not in kept] for group in groups.values()]
    optimisers = [
        torch.optim.Muon(
            [{"params": group, "lr": rate} for rate, group in zip(groups, matrices)],
            weight_decay=0.02,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [{"params": group, "lr": rate} for rate, group in zip(groups, others)], betas=(0.9, 0.98), weight_decay=0.02
        ),
    ]
    rates = [
        torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        for optimiser in optimisers
    ]
    everything = [parameter for group in groups.values() for parameter in group]

    def gradients(half: Batch) -> tuple[training.Losses, tuple[torch.Tensor | None, ...]]:
        losses = loss(half)
        whole = sum(value for value in losses.values() if value.requires_grad)
        return losses, torch.autograd.grad(whole, everything, allow_unused=True)

    with ThreadPoolExecutor(2) as threads:
        for step, batch in enumerate(data):
            (losses, ours), (_, theirs) = threads.map(gradients, batch.halves())
            for parameter, one, other in zip(everything, ours, theirs):
                parameter.grad = None if one is None or other is None else (one + other) / 2
            torch.nn.utils.clip_grad_norm_(everything, 1.0)
            for optimiser, rate in zip(optimisers, rates):
                optimiser.step()
                rate.step()
            if step % 100 == 0 or step == steps - 1:
                values = "  ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
                spent = f"{time.monotonic() - started:.0f} s, {time.process_time() - worked:.0f} s of CPU"
                print(f"step {step:5d}  {values}  {spent}", flush=True)


def by_length(rows: list[tuple[training.Row, int]], parts: int = 3) -> list[list[tuple[training.Row, int]]]:
    """Short rows and long rows apart: less padding. Each comes with the place of its picture in the batch."""
    ordered = sorted(rows, key=lambda pair: sum(map(len, pair[0])))
    return [ordered[part * len(ordered) // parts : (part + 1) * len(ordered) // parts] for part in range(parts)]


def train(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    seeing_steps: int,
    steps: int,
    hard_steps: int,
) -> None:
    """First the vision tower alone learns to see, then all of the model to answer, and then the hardest questions."""
    head = PatchHead(model.config.vision_config.hidden_size)

    def see(batch: Batch) -> training.Losses:
        return head.losses(model.get_image_features(batch.pixels).last_hidden_state, batch.patches)

    def answer(batch: Batch) -> training.Losses:
        vision = model.get_image_features(batch.pixels)
        rows = paligemma.encode(processor, batch.asked)
        asked = [(row, place) for place, some in enumerate(rows) for row in some]
        answers = [paligemma.answer_loss(model, vision.pooler_output, half) for half in by_length(asked)]
        tokens = sum(len(row[1]) for row, _ in asked)
        return {"answers": sum(answers) / tokens, **head.losses(vision.last_hidden_state, batch.patches)}

    eyes = [*model.model.vision_tower.parameters(), *head.parameters()]
    tongue = [*model.model.multi_modal_projector.parameters(), *model.model.language_model.parameters()]
    model.train()
    with ProcessPoolExecutor(1) as pool:
        start_from_shapes(model, processor)
        start_from_patches(model, torch.cat([batch.pixels for batch in batches(pool, 900_000, SEEN, 6, None)]))
        start_from_waves(model, processor)
        optimise({3e-3: eyes}, seeing_steps, batches(pool, 0, SEEN, seeing_steps, None), see)
        optimise({1e-3: eyes, 3e-3: tongue}, steps, batches(pool, 500_000, ANSWERED, steps, some), answer)
        optimise({4e-4: eyes, 2e-3: tongue}, hard_steps, batches(pool, 650_000, ANSWERED, hard_steps, hardest), answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeing-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--hard-steps", type=int, default=2500)
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    asked = [question for seed in range(1_500) for question in emoji.questions(emoji.scene(seed))]
    texts = (text for question in asked for text in (question.prompt, question.answer))
    processor = paligemma.build_processor(texts, SIDE, PATCH_SIZE, vocabulary=540)
    model = paligemma.build_model(processor, TEXT, SIDE, patch_size=PATCH_SIZE)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(processor.tokenizer)} tokens", flush=True)
    started, worked = time.monotonic(), time.process_time()
    train(model, processor, options.seeing_steps, options.steps, options.hard_steps)
    spent = (time.monotonic() - started) / 60, (time.process_time() - worked) / 60
    print(f"trained in {spent[0]:.1f} minutes, {spent[1]:.1f} minutes of CPU")
    paligemma.save(model, processor, options.output)
    saved = PaliGemmaForConditionalGeneration.from_pretrained(options.output, dtype=torch.float32)
    scenes = [emoji.scene(seed) for seed in range(emoji.HELD_OUT, emoji.HELD_OUT + 200)]
    asked = [(emoji.draw(scene), emoji.questions(scene)) for scene in scenes]
    right: dict[str, list[bool]] = {}
    for scene, (_, questions), answers in zip(scenes, asked, paligemma.evaluate(saved, processor, asked)):
        for question, answer in zip(questions, answers):
            right.setdefault(question.task, []).append(emoji.is_right(question, answer, scene))
    training.report(right)


if __name__ == "__main__":
    main()
