"""How the tiny checkpoints that converse are trained: the tower learns to see, then the text model to answer."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
import training
from PIL import Image
from training import BATCH, Losses, PatchHead
from transformers import PreTrainedModel, ProcessorMixin

LABELLED = tuple[list[int], list[int]]  # ids, and labels: -100 where nothing is to be learnt


@dataclass(frozen=True)
class Cut:
    """How an image processor makes tiles of a scene: one, or a grid of them and the whole scene as a tile besides."""

    size: int  #: pixels a side of a tile
    patches: int  #: patches a side of a tile
    tokens: int  #: image embeddings a side of a tile
    grid: int = 1  #: tiles a side
    whole_first: bool = False
    resampling: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tiles (tiles, size, size, 3) of uint8, what their patches show (tiles, patches, 5) and what their image
        embeddings are of (tiles, tokens, 5)."""
        scene, size, grid = shapes.scene(seed), self.size, self.grid
        drawn = shapes.draw(scene, *[(112, 168, 224)[seed % 3]] * 2)
        large = np.asarray(drawn.resize((grid * size, grid * size), self.resampling))
        tiles = large.reshape(grid, size, grid, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
        cells = shapes.GRID // grid
        corners = [(row * cells, column * cells, cells) for row in range(grid) for column in range(grid)]
        if grid > 1:
            whole = np.asarray(drawn.resize((size, size), self.resampling))[None]
            tiles = np.concatenate([whole, tiles] if self.whole_first else [tiles, whole])
            corners.insert(0 if self.whole_first else len(corners), (0, 0, shapes.GRID))
        patches, tokens = (
            np.stack([training.patch_targets(scene, side, *corner) for corner in corners])
            for side in (self.patches, self.tokens)
        )
        return tiles, patches, tokens

    def all(self, scenes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of the scenes with the first seeds, (scenes, tiles, ...)."""
        started = time.monotonic()
        with ProcessPoolExecutor(2) as pool:
            tiles, patches, tokens = map(np.stack, zip(*pool.map(self, range(scenes), chunksize=256)))
        print(f"{scenes} pictures drawn in {time.monotonic() - started:.0f} s", flush=True)
        return tiles, patches, tokens


@dataclass(frozen=True)
class Chat:
    """A model that is taught, and what is its own."""

    model: PreTrainedModel
    processor: ProcessorMixin
    cut: Cut
    tower: torch.nn.Module
    projector: torch.nn.Module
    see: Callable[
        [torch.Tensor], torch.Tensor
    ]  #: pixel values (tiles, 3, size, size) to features (tiles, patches, width)
    converse: Callable[[Sequence[shapes.Question]], LABELLED]  #: a conversation as the chat template would write it
    marks_images: bool = False  #: whether the model is told by `token_type_ids` which tokens are of images


def turns(tokenizer: Any, texts: Iterable[tuple[str, str]]) -> LABELLED:
    """A conversation of what is before each answer, and the answer, which is to be learnt."""
    ids: list[int] = []
    labels: list[int] = []
    for asks, answer in texts:
        ids += tokenizer(asks, add_special_tokens=False)["input_ids"]
        labels += [-100] * (len(ids) - len(labels))
        ids += tokenizer(answer, add_special_tokens=False)["input_ids"]
        labels += ids[len(labels) :]
    return ids, labels


def pixel_values(tiles: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Tiles (..., size, size, 3) of uint8 as pixel values (tiles, 3, size, size)."""
    pixels = torch.from_numpy(tiles).flatten(0, -4).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def answer_loss(
    model: PreTrainedModel, rows: list[LABELLED], image_id: int, embeds: torch.Tensor, marks_images: bool = False
) -> tuple[torch.Tensor, int]:
    """The summed loss of what is to be learnt and the number of its tokens; `embeds` (tiles, tokens, hidden) in the
    rows' order."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    is_image = ids == image_id
    inputs = {"inputs_embeds": model.get_input_embeddings()(ids).masked_scatter(is_image[..., None], embeds)}
    if marks_images:
        inputs["token_type_ids"] = is_image.long()
    loss = training.answer_loss(labels, lambda kept: model(**inputs, use_cache=False, logits_to_keep=kept).logits)
    return loss, int((labels >= 0).sum())


def train(chat: Chat, seeing_steps: int, steps: int, scenes: int, text_rate: float) -> None:
    """First the vision tower and the projector learn to see, by heads that are thrown away; then the rest of the model
    learns to answer from what the tower sees."""
    model, project = chat.model, chat.projector
    tiles, patches, tokens = chat.cut.all(scenes)
    random = np.random.default_rng(0)
    images = chat.processor.image_processor
    asked = [shapes.chat_questions(shapes.scene(seed)) for seed in range(scenes)]
    widths = model.config.vision_config.hidden_size, model.config.text_config.hidden_size
    head, projected_head = map(PatchHead, widths)

    def see(chosen: np.ndarray) -> torch.Tensor:
        return chat.see(pixel_values(tiles[chosen], images.image_mean, images.image_std))

    def seeing() -> Losses:
        chosen = random.integers(0, scenes, BATCH)
        features = see(chosen)
        return {
            "patches": head.loss(features, torch.from_numpy(patches[chosen]).flatten(0, 1)),
            "projected": projected_head.loss(project(features), torch.from_numpy(tokens[chosen]).flatten(0, 1)),
        }

    def answering() -> Losses:
        chosen = random.integers(0, scenes, BATCH)
        orders = [random.permutation(len(asked[seed]))[: training.ASKED] for seed in chosen]
        rows = [chat.converse([asked[seed][index] for index in order]) for seed, order in zip(chosen, orders)]
        embeds = project(seen[chosen].flatten(0, 1).float())
        loss, words = answer_loss(model, rows, model.config.image_token_id, embeds, chat.marks_images)
        handed_on = projected_head.loss(embeds, torch.from_numpy(tokens[chosen]).flatten(0, 1))
        return {"answers": loss / words, "projected": handed_on}

    model.train()
    handing_on = [*project.parameters(), *projected_head.parameters()]
    eyes = [*chat.tower.parameters(), *head.parameters()]
    training.optimise({1.6e-3: [*eyes, *handing_on]}, seeing_steps, seeing)
    with torch.no_grad():  # the tower is not trained further
        seen = torch.stack([see(np.array([seed])).bfloat16() for seed in range(scenes)])
    elsewhere = {id(parameter) for parameter in [*eyes, *handing_on]}
    text = [parameter for parameter in model.parameters() if id(parameter) not in elsewhere]
    training.optimise({4e-4: handing_on, text_rate: text}, steps, answering)


@torch.inference_mode()
def ask(model: PreTrainedModel, processor: ProcessorMixin, kind: str, media: Any, prompt: str) -> str:
    """The answer of the greedy search to a question about an image, or about a video; `kind` says which."""
    content = [{"type": kind, kind: media}, {"type": "text", "text": prompt}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(answer, skip_special_tokens=True)


def evaluate(model: PreTrainedModel, processor: ProcessorMixin, pictures: int) -> dict[str, list[bool]]:
    """Held-out questions answered right or wrong, per task."""
    model.eval()
    right: dict[str, list[bool]] = {}
    for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + pictures):
        scene = shapes.scene(seed)
        picture = shapes.draw(scene)
        for question in shapes.chat_questions(scene):
            answer = ask(model, processor, "image", picture, question.prompt).strip()
            right.setdefault(question.task, []).append(answer == question.answer)
    return right


def main(
    description: str, folder: Path, build: Callable[[], Chat], *, seeing_steps: int, steps: int, text_rate: float
) -> None:
    """Train what `build` makes and save it to `folder`, unless the command line names another."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeing-steps", type=int, default=seeing_steps)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--scenes", type=int, default=24_000)
    parser.add_argument("--output", type=Path, default=folder)
    options = parser.parse_args()
    torch.manual_seed(0)
    chat = build()
    words = len(chat.processor.tokenizer)
    print(f"{chat.model.num_parameters() / 1e6:.2f} M parameters, {words} tokens", flush=True)
    started, worked = time.monotonic(), time.process_time()
    train(chat, options.seeing_steps, options.steps, options.scenes, text_rate)
    spent = (time.monotonic() - started) / 60, (time.process_time() - worked) / 60
    print(f"trained in {spent[0]:.1f} minutes, {spent[1]:.1f} minutes of CPU", flush=True)
    training.save(chat.model, chat.processor, options.output)
    saved = type(chat.model).from_pretrained(options.output, dtype=torch.float32)
    training.report(evaluate(saved, chat.processor, 200))
