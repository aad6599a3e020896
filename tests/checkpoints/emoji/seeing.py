"""What the vision tower learns from before the model learns to answer: pictures, and what each patch of them shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import emoji_scenes as emoji
import numpy as np
import torch
from shapes import Question
from torch.nn import functional
from training import Losses

SIDE, PATCH_SIZE = 6, 16  #: patches a side of an image, pixels a side of a patch
Ask = Callable[[emoji.Scene], list[Question]]
AHEAD = 8  #: batches that are drawn beside the training


@dataclass
class Batch:
    """Pixel values (pictures, 3, size, size), patch targets (pictures, patches, 6), questions about each picture."""

    pixels: torch.Tensor
    patches: torch.Tensor
    asked: list[list[Question]]

    def mirrored(self) -> Batch:
        grid = self.patches.unflatten(1, (SIDE, SIDE)).flip(2).flatten(1, 2)
        kind, middle, top, left, bottom, right = grid.split(1, -1)
        here = (kind > 0).float()
        patches = torch.cat([kind, middle, top, here - right, bottom, here - left], -1)
        return Batch(self.pixels.flip(3), patches, self.asked)

    def halves(self) -> list[Batch]:
        middle = len(self.asked) // 2
        parts = (slice(0, middle), slice(middle, None))
        return [Batch(self.pixels[part], self.patches[part], self.asked[part]) for part in parts]


def patch_targets(scene: emoji.Scene) -> np.ndarray:
    """What each patch shows: (patches, 6).

    The kind (0: nothing) and the box of the thing that covers most of the patch, and whether its middle is in there.
    """
    edges = np.arange(SIDE + 1) / SIDE
    targets = np.zeros((SIDE, SIDE, 6), np.float32)
    most = np.full((SIDE, SIDE), 0.15 / SIDE**2)  # less of a patch counts as nothing
    shown = [
        (1 + emoji.NAMES.index(thing.name), 0, thing.top, thing.left, thing.bottom, thing.right)
        for thing in scene.things
    ]
    for row in shown:
        top, left, bottom, right = row[2:]
        down = np.clip(np.minimum(edges[1:], bottom) - np.maximum(edges[:-1], top), 0, None)
        across = np.clip(np.minimum(edges[1:], right) - np.maximum(edges[:-1], left), 0, None)
        covers = np.outer(down, across)
        targets[covers > most] = row
        most = np.maximum(most, covers)
    for row in shown:
        top, left, bottom, right = row[2:]
        targets[int((top + bottom) / 2 * SIDE), int((left + right) / 2 * SIDE)] = (row[0], 1, *row[2:])
    return targets.reshape(-1, 6)


def drawn(seeds: range, ask: Ask | None) -> tuple[np.ndarray, np.ndarray, list[list[Question]]]:
    scenes = [emoji.scene(seed) for seed in seeds]
    size = SIDE * PATCH_SIZE
    pixels = np.stack([np.asarray(emoji.draw(scene, size, size)) for scene in scenes])
    return (
        pixels,
        np.stack([patch_targets(scene) for scene in scenes]),
        [ask(scene) if ask else [] for scene in scenes],
    )


def some(scene: emoji.Scene) -> list[Question]:
    """Three of the questions about a scene."""
    asked = emoji.questions(scene)
    return [asked[place] for place in np.random.default_rng([scene.seed, 3]).permutation(len(asked))[:3]]


def hardest(scene: emoji.Scene) -> list[Question]:
    """The caption, the boxes of two kinds, and one other question."""
    caption, *others = emoji.questions(scene)
    two = next(question for question in others if question.task == "detect two")
    others.remove(two)
    return [caption, two, others[int(np.random.default_rng([scene.seed, 4]).integers(len(others)))]]


def batches(pool: ProcessPoolExecutor, first: int, pictures: int, steps: int, ask: Ask | None) -> Iterator[Batch]:
    """Scenes from the seed `first` on; each once with questions, or twice without: as it is, and mirrored."""
    draws = steps if ask else -(-steps // 2)
    starts = iter(range(first, first + draws * pictures, pictures))
    waiting = [pool.submit(drawn, range(start, start + pictures), ask) for start, _ in zip(starts, range(AHEAD))]
    while waiting:
        pixels, patches, asked = waiting.pop(0).result()
        if (start := next(starts, None)) is not None:
            waiting.append(pool.submit(drawn, range(start, start + pictures), ask))
        batch = Batch(
            torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(patches), asked
        )
        yield batch
        if ask is None:
            yield batch.mirrored()


def waves(places: torch.Tensor, fastest: float = 8.0, number: int = 6) -> torch.Tensor:
    """Sines and cosines of half a wave up to `fastest` waves over 0..1: (..., 2 * number), alike for places near."""
    turns = 2 * math.pi * places[..., None] * torch.logspace(-math.log10(2), math.log10(fastest), number)
    return torch.cat([turns.sin(), turns.cos()], -1)


class PatchHead(torch.nn.Module):
    """Says what each patch shows. It teaches the tower to see and is thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kinds = 1 + len(emoji.NAMES)
        self.linear = torch.nn.Linear(width, self.kinds + 5)

    def losses(self, features: torch.Tensor, targets: torch.Tensor) -> Losses:
        """`features` (pictures, patches, width), `targets` (pictures, patches, 6)."""
        kinds, middle, boxes = self.linear(features).split((self.kinds, 1, 4), -1)
        kind = targets[..., 0].long()
        here = targets[..., 1] > 0
        with torch.no_grad():
            right = (kinds.argmax(-1) == kind)[here].float().mean()
        return {
            "kinds": functional.cross_entropy(kinds.flatten(0, 1), kind.flatten()),
            "middles": functional.binary_cross_entropy_with_logits(middle[..., 0], targets[..., 1]),
            "boxes": 4 * (boxes - targets[..., 2:])[kind > 0].abs().mean(),
            "right": right,
        }
