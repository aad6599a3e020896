"""What the scripts that train the tiny checkpoints share: drawn scenes, a head that teaches to see, the optimiser."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_vlm.export  # noqa: F401 (makes torchvision importable, which transformers imports)
import shapes
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, ProcessorMixin

HERE = Path(__file__).parent
SCENES, BATCH, ASKED = 40_000, 24, 3
WARM_UP = 200
Losses = dict[str, torch.Tensor]
Row = tuple[list[int], list[int]]  # prompt ids, answer ids


def patch_targets(scene: shapes.Scene, side: int, top: int = 0, left: int = 0, cells: int = shapes.GRID) -> np.ndarray:
    """What each of side x side patches shows of the scene, or of a crop of `cells` grid cells a side: (patches, 5).

    The kind (0: nothing) and the box, in 0..1 of the crop, of the thing that covers most of the patch.
    """
    covers = np.full((cells, cells), -1)
    for index, thing in enumerate(scene.things):
        covers[
            max(0, thing.top - top) : max(0, thing.bottom - top), max(0, thing.left - left) : max(0, thing.right - left)
        ] = index
    covers = covers.repeat(2, 0).repeat(2, 1)  # so that more sides divide it
    targets = []
    for patch in covers.reshape(side, 2 * cells // side, side, -1).swapaxes(1, 2).reshape(side * side, -1):
        covered = np.bincount(patch[patch >= 0], minlength=1)
        if not covered.any():
            targets.append((0, 0, 0, 0, 0))
            continue
        thing = scene.things[covered.argmax()]
        kind = 1 + list(shapes.COLOURS).index(thing.colour) * len(shapes.SHAPES) + shapes.SHAPES.index(thing.shape)
        edges = (thing.top - top, thing.left - left, thing.bottom - top, thing.right - left)
        targets.append((kind, *(np.clip(edge / cells, 0, 1) for edge in edges)))
    return np.array(targets, np.float32)


class PatchHead(torch.nn.Module):
    """Says what each patch shows. It teaches a vision tower to see in minutes and is thrown away after training."""

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


@dataclass
class Pictures:
    """Training scenes: pixels (scenes, size, size, 3) of uint8, patch targets (scenes, patches, 5), their questions."""

    pixels: np.ndarray
    patches: np.ndarray
    asked: list[list[shapes.Question]]

    @classmethod
    def draw(
        cls, size: int, side: int, questions: Callable[[shapes.Scene], list[shapes.Question]], scenes: int = SCENES
    ) -> Pictures:
        """Scenes resized to `size` pixels, their targets for side x side patches."""
        started = time.monotonic()
        with ProcessPoolExecutor(2) as pool:
            drawn = pool.map(partial(_example, size=size, side=side), range(scenes), chunksize=256)
            pixels, patches = map(np.stack, zip(*drawn))
        print(f"{scenes} pictures drawn in {time.monotonic() - started:.0f} s", flush=True)
        return cls(pixels, patches, [questions(shapes.scene(seed)) for seed in range(scenes)])

    def normalised(self, chosen: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
        """Pixel values (pictures, 3, size, size) of the chosen scenes."""
        pixels = torch.from_numpy(self.pixels[chosen]).permute(0, 3, 1, 2).float() / 255
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    def targets(self, chosen: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.patches[chosen])


def _example(seed: int, size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    scene = shapes.scene(seed)
    drawn = shapes.draw(scene, *[(112, 168, 224)[seed % 3]] * 2)
    return np.asarray(drawn.resize((size, size), 3)), patch_targets(scene, side)


def some(random: np.random.Generator, rows: list[Row], number: int = ASKED) -> list[Row]:
    """Some of the questions about one scene."""
    return [rows[question] for question in random.permutation(len(rows))[:number]]


def in_halves(rows: list[tuple[Row, int]]) -> tuple[list[tuple[Row, int]], list[tuple[Row, int]]]:
    """Short rows and long rows apart: less padding. Each comes with the place of its picture in the batch."""
    ordered = sorted(rows, key=lambda pair: sum(map(len, pair[0])))
    return ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]


def padded(rows: list[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, (rows, longest); labels are -100 where there is no answer."""
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, labels = torch.full((len(rows), length), pad), torch.full((len(rows), length), -100)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def answer_loss(labels: torch.Tensor, logits: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The summed loss of the answers' tokens. `logits` is asked for the positions (rows, longest) before those only."""
    targets = labels[:, 1:]
    kept = torch.nn.functional.pad(targets >= 0, (0, 1))
    return torch.nn.functional.cross_entropy(logits(kept), targets[targets >= 0], reduction="sum")


def spread(module: torch.nn.Module) -> None:
    """Start matrices at 1/sqrt(fan_in): transformers' 0.02 is meant for layers that are twenty times as wide."""
    for weight in module.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, 0, weight.shape[1] ** -0.5)


@torch.no_grad()
def start_from(module: torch.nn.Module, checkpoint: str, prefix: str) -> None:
    """Copy the weights of a trained checkpoint under `prefix` that have a name and a shape of the module's."""
    own = module.state_dict()
    for name, weight in load_file(HERE / checkpoint / "model.safetensors").items():
        name = name.removeprefix(prefix) if name.startswith(prefix) else ""
        if name in own and own[name].shape == weight.shape:
            own[name].copy_(weight)


@torch.no_grad()
def start_from_words(embeddings: torch.nn.Embedding, tokenizer: Any, checkpoint: str, name: str) -> None:
    """Copy the embeddings of tokens that a trained checkpoint knows; let the others be as large as those."""
    known = load_file(HERE / checkpoint / "model.safetensors")[name].float()
    embeddings.weight.normal_(0, float(known.std()))
    theirs = AutoTokenizer.from_pretrained(HERE / checkpoint).get_vocab()
    theirs = {word.replace("Ġ", "▁"): index for word, index in theirs.items()}
    for word, index in tokenizer.get_vocab().items():
        if (place := theirs.get(word.replace("Ġ", "▁"))) is not None:
            embeddings.weight[index] = known[place]


def save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write the checkpoint, all parameters in bfloat16; it ends answers as its config says."""
    model, text = model.to(torch.bfloat16), model.config.get_text_config()
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=getattr(model.config, "eos_token_id", None) or text.eos_token_id,
        pad_token_id=text.pad_token_id,
        max_new_tokens=64,
        cache_implementation=None,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


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


def report(right: dict[str, list[bool]]) -> None:
    """The share of held-out questions answered right, per task."""
    for task, results in right.items():
        print(f"{task:10s} {np.mean(results):.1%} of {len(results)} held-out answers right")
