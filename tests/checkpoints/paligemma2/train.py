"""Train the tiny PaliGemma 2 checkpoint in this folder, print its held-out accuracy and save it.

    python tests/checkpoints/paligemma2/train.py [--steps N] [--output FOLDER]

Takes about a quarter of an hour on two cores and needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    GemmaTokenizer,
    GenerationConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipVisionConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import shapes  # noqa: E402

IMAGE_SIZE, PATCH_SIZE = 56, 14
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
SCENES, BATCH, ASKED = 40_000, 24, 3
WARM_UP = 200


def build_processor() -> PaliGemmaProcessor:
    """The real processor over a small Gemma tokenizer: special tokens and bytes first, `<loc>` and `<seg>` last."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n"]
    sentences = [
        text for seed in range(2_000) for q in shapes.questions(shapes.scene(seed)) for text in (q.prompt, q.answer)
    ]
    plain = [" ".join(word for word in text.split() if "<loc" not in word) for text in sentences]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=first, show_progress=False)
    trained.train_from_iterator([*plain, "0123456789"], trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = GemmaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", normalized=False, special=True)]})
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return PaliGemmaProcessor(SiglipImageProcessorPil(size=size, image_seq_length=IMAGE_TOKENS), tokenizer)


def build_model(processor: PaliGemmaProcessor) -> PaliGemmaForConditionalGeneration:
    """PaliGemma 2 with all its parts, made small: grouped heads, alternating windows, both kinds of soft-capping."""
    vision = SiglipVisionConfig(
        hidden_size=128, intermediate_size=304, num_hidden_layers=4, num_attention_heads=4,
        image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, vision_use_head=False,
    )  # fmt: skip
    text = Gemma2Config(
        vocab_size=64 * math.ceil(len(processor.tokenizer) / 64), hidden_size=128, intermediate_size=256,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32,
        max_position_embeddings=512, sliding_window=24,
    )  # fmt: skip
    config = PaliGemmaConfig(
        vision_config=vision, text_config=text, projection_dim=128, hidden_size=128,
        image_token_index=processor.image_token_id, vocab_size=text.vocab_size,
        bos_token_id=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = PaliGemmaForConditionalGeneration(config)
    for layer in (model.model.multi_modal_projector, *model.model.language_model.layers):
        for weight in layer.parameters():
            if weight.ndim == 2:  # transformers' 0.02 is meant for layers that are twenty times as wide
                torch.nn.init.normal_(weight, 0, weight.shape[1] ** -0.5)
    return model


Row = tuple[list[int], list[int]]  # prefix ids, answer ids
Losses = dict[str, torch.Tensor]


def example(seed: int) -> tuple[np.ndarray, np.ndarray, list[shapes.Question]]:
    """The scene of a seed as the image processor sees it after resizing, (size, size, 3) uint8, what its patches show
    (patches, 5) and its questions."""
    scene = shapes.scene(seed)
    drawn = shapes.draw(scene, *[(112, 168, 224)[seed % 3]] * 2)
    return np.asarray(drawn.resize((IMAGE_SIZE, IMAGE_SIZE), 3)), patch_targets(scene), shapes.questions(scene)


def patch_targets(scene: shapes.Scene) -> np.ndarray:
    """For each patch the kind (0: nothing) and the box, in 0..1, of the thing that covers most of it."""
    cells = np.full((shapes.GRID, shapes.GRID), -1)
    for index, thing in enumerate(scene.things):
        cells[thing.top : thing.bottom, thing.left : thing.right] = index
    side, targets = IMAGE_SIZE // PATCH_SIZE, []
    for patch in cells.reshape(side, shapes.GRID // side, side, -1).swapaxes(1, 2).reshape(side * side, -1):
        covered = np.bincount(patch[patch >= 0], minlength=1)
        if not covered.any():
            targets.append((0, 0, 0, 0, 0))
            continue
        thing = scene.things[covered.argmax()]
        kind = 1 + list(shapes.COLOURS).index(thing.colour) * len(shapes.SHAPES) + shapes.SHAPES.index(thing.shape)
        targets.append((kind, *(edge / shapes.GRID for edge in (thing.top, thing.left, thing.bottom, thing.right))))
    return np.array(targets, np.float32)


class PatchHead(torch.nn.Module):
    """Says what each patch shows. It teaches the vision tower to see in minutes and is thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kinds = 1 + len(shapes.COLOURS) * len(shapes.SHAPES)
        self.linear = torch.nn.Linear(width, self.kinds + 4)

    def loss(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`features` (pictures, patches, width), `targets` (pictures, patches, 5)."""
        predicted = self.linear(features)
        kind = targets[..., 0].long()
        wrong = torch.nn.functional.cross_entropy(predicted[..., : self.kinds].flatten(0, 1), kind.flatten())
        off = (predicted[..., self.kinds :] - targets[..., 1:])[kind > 0].abs().mean()
        return wrong + 4 * off


def encode(processor: PaliGemmaProcessor, asked: list[list[shapes.Question]]) -> list[list[Row]]:
    """Prefix and answer ids of the questions about each scene."""
    tokenizer = processor.tokenizer
    texts = [text for some in asked for q in some for text in (f"{q.prompt}\n", f"{q.answer}{tokenizer.eos_token}")]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    start = [processor.image_token_id] * IMAGE_TOKENS + [tokenizer.bos_token_id]
    return [[(start + next(ids), next(ids)) for _ in some] for some in asked]


def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
    length = max(len(prefix) + len(answer) for prefix, answer in rows)
    ids, kinds, labels = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(3))
    labels.fill_(-100)
    kinds.fill_(1)
    for row, (prefix, answer) in enumerate(rows):
        end = len(prefix) + len(answer)
        ids[row, :end] = torch.tensor(prefix + answer)
        kinds[row, : len(prefix)] = 0
        labels[row, len(prefix) : end] = torch.tensor(answer)
    return {"input_ids": ids, "token_type_ids": kinds, "labels": labels}


@dataclass
class Pictures:
    """All training scenes: pixels (scenes, size, size, 3), patch targets (scenes, patches, 5), encoded questions."""

    pixels: np.ndarray
    patches: np.ndarray
    rows: list[list[Row]]

    @classmethod
    def draw(cls, processor: PaliGemmaProcessor, scenes: int) -> Pictures:
        with ProcessPoolExecutor(2) as pool:
            pixels, patches, asked = zip(*pool.map(example, range(scenes), chunksize=256))
        return cls(np.stack(pixels), np.stack(patches), encode(processor, list(asked)))

    def normalised(self, chosen: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.pixels[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1


def optimise(groups: dict[float, list[torch.nn.Parameter]], steps: int, loss: Callable[[], Losses]) -> None:
    """AdamW over the sum of the losses, with a learning rate for each group that rises, then falls as a cosine."""
    started = time.monotonic()
    settings = [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
    optimiser = torch.optim.AdamW(settings, betas=(0.9, 0.98), weight_decay=0.02)
    everything = [parameter for parameters in groups.values() for parameter in parameters]
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for step in range(steps):
        losses = loss()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(everything, 1.0)
        optimiser.step()
        rate.step()
        optimiser.zero_grad()
        if step % 200 == 0 or step == steps - 1:
            values = "  ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
            print(f"step {step:5d}  {values}  {time.monotonic() - started:.0f} s", flush=True)


def answer_loss(
    model: PaliGemmaForConditionalGeneration, image_embeds: torch.Tensor, asked: list[tuple[Row, int]]
) -> torch.Tensor:
    """The summed loss of the answers' tokens; each row comes with the place of its picture in `image_embeds`."""
    batch = collate([row for row, _ in asked])
    images = {"image": BaseModelOutputWithPooling(pooler_output=image_embeds[[place for _, place in asked]])}
    targets = batch.pop("labels")[:, 1:]
    kept = torch.nn.functional.pad(targets >= 0, (0, 1))  # the LM head sees the positions before an answer's token
    logits = model(**batch, mm_encoder_outputs=images, use_cache=False, logits_to_keep=kept).logits
    return torch.nn.functional.cross_entropy(logits, targets[targets >= 0], reduction="sum")


def train(model: PaliGemmaForConditionalGeneration, pictures: Pictures, seeing_steps: int, steps: int) -> None:
    """First the vision tower alone learns to see, then all of the model learns to answer."""
    random = np.random.default_rng(0)
    head = PatchHead(model.config.vision_config.hidden_size)

    def seeing() -> Losses:
        chosen = random.integers(0, len(pictures.rows), 4 * BATCH)
        features = model.get_image_features(pictures.normalised(chosen)).last_hidden_state
        return {"patches": head.loss(features, torch.from_numpy(pictures.patches[chosen]))}

    def answering() -> Losses:
        chosen = random.integers(0, len(pictures.rows), BATCH)
        vision = model.get_image_features(pictures.normalised(chosen))
        asked = [(row, place) for place, seed in enumerate(chosen) for row in some(pictures.rows[seed])]
        asked.sort(key=lambda pair: sum(map(len, pair[0])))  # short and long rows apart: less padding
        halves = asked[: len(asked) // 2], asked[len(asked) // 2 :]
        answers = [answer_loss(model, vision.pooler_output, half) for half in halves]
        tokens = sum(len(row[1]) for row, _ in asked)
        return {
            "answers": sum(answers) / tokens,
            "patches": head.loss(vision.last_hidden_state, torch.from_numpy(pictures.patches[chosen])),
        }

    def some(rows: list[Row]) -> list[Row]:
        return [rows[question] for question in random.permutation(len(rows))[:ASKED]]

    model.train()
    eyes = [*model.model.vision_tower.parameters(), *head.parameters()]
    tongue = [*model.model.multi_modal_projector.parameters(), *model.model.language_model.parameters()]
    optimise({1.6e-3: eyes}, seeing_steps, seeing)
    optimise({4e-4: eyes, 4e-3: tongue}, steps, answering)  # fast eyes would forget what they have learnt


@torch.inference_mode()
def evaluate(
    model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, pictures: int
) -> dict[str, float]:
    """The share of held-out questions answered right, per task."""
    model.eval()
    right: dict[str, list[bool]] = {}
    for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + pictures):
        scene = shapes.scene(seed)
        asked = shapes.questions(scene)
        inputs = processor(
            images=[[shapes.draw(scene)]] * len(asked), text=["<image>" + q.prompt for q in asked],
            return_tensors="pt", padding=True,
        )  # fmt: skip
        inputs.pop("labels", None)
        answers = model.generate(**inputs, max_new_tokens=48, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for question, text in zip(asked, processor.batch_decode(answers, skip_special_tokens=True)):
            right.setdefault(question.task, []).append(shapes.is_right(question, text))
    return {task: float(np.mean(results)) for task, results in right.items()}


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
    pictures = Pictures.draw(processor, SCENES)
    print(f"{SCENES} pictures drawn in {time.monotonic() - started:.0f} s", flush=True)
    train(model, pictures, options.seeing_steps, options.steps)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes")
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=1, pad_token_id=0, max_new_tokens=64, cache_implementation=None
    )
    model.save_pretrained(options.output)
    processor.save_pretrained(options.output)
    saved = PaliGemmaForConditionalGeneration.from_pretrained(options.output, dtype=torch.float32)
    for task, share in evaluate(saved, processor, 200).items():
        print(f"{task:10s} {share:.1%} of held-out answers right")


if __name__ == "__main__":
    main()
