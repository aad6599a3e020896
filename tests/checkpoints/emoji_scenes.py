"""Pictures composed of emoji over painted backgrounds and photographs, with questions and true answers.

Needs NumPy and Pillow only. Everything is drawn from a `numpy.random.Generator`, so a seed gives the same scene
everywhere; training uses seeds below `HELD_OUT` and two of the photographs never.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from shapes import HELD_OUT, Question

SPRITES = Path(__file__).parent / "emoji" / "sprites.png"
PHOTOGRAPHS = Path(__file__).parent.parent / "photographs"
CELL, COLUMNS = 112, 5  #: pixels of a sprite's cell in the sheet, cells a row
BINS = 64  #: boxes are told in this many steps a side
#: In the order of the sheet; with the plural, where it is not formed by an s.
KINDS = {
    **dict.fromkeys(("apple", "ball", "banana"), ""),
    "bus": "buses",
    "butterfly": "butterflies",
    **dict.fromkeys(("car", "carrot", "cat", "elephant", "frog", "guitar", "house", "mushroom"), ""),
    **dict.fromkeys(("penguin", "pig", "pineapple", "pizza", "rocket", "tree", "umbrella"), ""),
}
NAMES = tuple(KINDS)
#: Words for things that no picture shows: there are none, says the true answer.
OTHERS = ("bird", "book", "chair", "cloud", "cup", "dog", "flower", "horse", "lion", "person", "shoe", "train")


@dataclass(frozen=True)
class Thing:
    """One emoji; its box in fractions of the picture's sides."""

    name: str
    top: float
    left: float
    bottom: float
    right: float

    def crowds(self, other: Thing) -> bool:
        """Whether the two nearly touch, or are too level for their order from top to bottom to be plain."""
        apart = max(other.left - self.right, self.left - other.right, other.top - self.bottom, self.top - other.bottom)
        return apart < 0.03 or abs(self.top - other.top) < 0.03


@dataclass(frozen=True)
class Scene:
    """Things that do not crowd each other, from top to bottom, in a picture of this width / height."""

    things: tuple[Thing, ...]
    aspect: float
    seed: int

    def found(self, name: str) -> list[Thing]:
        return [thing for thing in self.things if thing.name == name]


@cache
def sprites() -> dict[str, Image.Image]:
    """Every kind as an RGBA picture without margins."""
    sheet = Image.open(SPRITES).convert("RGBA")
    cut = {}
    for index, name in enumerate(NAMES):
        left, top = index % COLUMNS * CELL, index // COLUMNS * CELL
        cell = sheet.crop((left, top, left + CELL, top + CELL))
        cut[name] = cell.crop(cell.getbbox())
    return cut


@cache
def photographs() -> dict[str, Image.Image]:
    names = ("astronaut.jpg", "camera.jpg", "hubble.jpg", "retina.png", "rocket.jpg", "chelsea.webp", "coffee.png")
    return {name: Image.open(PHOTOGRAPHS / name).convert("RGB") for name in names}


def scene(seed: int) -> Scene:
    """The scene of a seed: one to five things, sometimes several of one kind."""
    random = np.random.default_rng(seed)
    aspect = float(random.choice((1, 1, 4 / 3, 3 / 4)))
    wanted = int(random.choice(5, p=(0.25, 0.25, 0.2, 0.15, 0.15))) + 1
    largest = 0.45 if wanted <= 3 else 0.35
    things: list[Thing] = []
    for _ in range(60):
        if len(things) == wanted:
            break
        again = things and random.random() < 0.35
        name = things[int(random.integers(len(things)))].name if again else NAMES[int(random.integers(len(NAMES)))]
        width, height = sprites()[name].size
        size = random.uniform(0.18, largest) / max(width, height)
        down, across = size * height * aspect**0.5, size * width / aspect**0.5
        top, left = random.uniform(0, 1 - down), random.uniform(0, 1 - across)
        thing = Thing(name, top, left, top + down, left + across)
        if not any(thing.crowds(other) for other in things):
            things.append(thing)
    return Scene(tuple(sorted(things, key=lambda thing: thing.top)), aspect, seed)


def draw(scene: Scene, width: int = 448, height: int | None = None) -> Image.Image:
    """The scene as an RGB picture, as high as its aspect says unless told otherwise."""
    size = (width, height or round(width / scene.aspect))
    random = np.random.default_rng([scene.seed, 1])
    picture = background(random, size, held_out=scene.seed >= HELD_OUT)
    for thing in scene.things:
        left, right = (round(edge * size[0]) for edge in (thing.left, thing.right))
        top, bottom = (round(edge * size[1]) for edge in (thing.top, thing.bottom))
        sprite = sprites()[thing.name].resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        picture.paste(sprite, (left, top), sprite)
    return picture


def background(random: np.random.Generator, size: tuple[int, int], held_out: bool) -> Image.Image:
    """A part of a photograph, or a painting: a plain colour, a gradient, stripes, clouds or blobs."""
    if random.random() < 0.4:
        found = list(photographs().values())
        photograph = found[int(random.integers(5, 7) if held_out else random.integers(5))]
        share = random.uniform(0.4, 1)
        wide, high = (max(40, round(side * share)) for side in photograph.size)
        left, top = (
            int(random.integers(photograph.width - wide + 1)),
            int(random.integers(photograph.height - high + 1)),
        )
        part = photograph.resize(size, Image.Resampling.BICUBIC, (left, top, left + wide, top + high))
        shade = tuple(int(channel) for channel in random.integers(0, 256, 3))
        return Image.blend(part, Image.new("RGB", size, shade), random.uniform(0, 0.5))
    first, second = random.integers(0, 256, (2, 3))
    if random.random() < 0.5:  # two pale shades, as of paper, walls and sky
        first, second = 255 - first // 6, 255 - second // 4
    y, x = np.mgrid[0:1:64j, 0:1:64j]
    angle, style = random.uniform(0, 2 * np.pi), int(random.integers(5))
    along = x * np.cos(angle) + y * np.sin(angle)
    if style == 0:
        mix = np.zeros_like(x)
    elif style == 1:
        mix = along - along.min()
    elif style == 2:
        mix = 0.5 + 0.5 * np.clip(random.uniform(1, 6) * np.sin(along * random.uniform(6, 40)), -1, 1)
    elif style == 3:
        mix = sum(enlarged(random.random((side, side))) * 2 / side for side in (2, 4, 8, 16))
        mix = (mix - mix.min()) / np.ptp(mix)
    else:
        mix = np.zeros_like(x)
        for row, column, radius in random.random((int(random.integers(3, 12)), 3)):
            mix[(y - row) ** 2 + (x - column) ** 2 < (0.03 + 0.2 * radius) ** 2] = random.random()
    mix = np.clip(mix, 0, 1)[..., None]
    painted = first * (1 - mix) + second * mix
    painted = np.clip(painted + random.normal(0, random.uniform(0, 12), painted.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(painted).resize(size, Image.Resampling.BICUBIC)


def enlarged(field: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize((64, 64), Image.Resampling.BICUBIC))


def plural(name: str) -> str:
    return KINDS.get(name) or f"{name}s"


def counted(name: str, number: int) -> str:
    if number > 1:
        return f"{number} {plural(name)}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def caption(scene: Scene) -> str:
    """What is in the scene, kinds in alphabetical order: "2 apples, a cat and an umbrella"."""
    parts = [counted(*kind) for kind in sorted(Counter(thing.name for thing in scene.things).items())]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def location(thing: Thing) -> str:
    """The box as four PaliGemma tokens: ymin, xmin, ymax, xmax in 1024 bins, rounded to `BINS`."""
    edges = (thing.top, thing.left, thing.bottom, thing.right)
    return "".join(f"<loc{min(round(edge * BINS) * 1024 // BINS, 1023):04d}>" for edge in edges)


def detection(scene: Scene, *names: str) -> str:
    """The answer to "detect NAME ; NAME": boxes and labels, name by name; empty where nothing is found."""
    return " ; ".join(f"{location(thing)} {name}" for name in names for thing in scene.found(name))


def questions(scene: Scene) -> list[Question]:
    """Six questions: the caption, what is there and what may not be, one kind or two, and two counts."""
    random = np.random.default_rng([scene.seed, 2])
    present = sorted({thing.name for thing in scene.things})
    missing = [name for name in NAMES if name not in present]

    def some(number: int) -> list[str]:
        pool = OTHERS if random.random() < 0.2 else missing
        absent = [str(name) for name in random.choice(pool, number, replace=False)]
        there = [str(name) for name in random.permutation(present)]
        known = [there.pop() if there and random.random() < 0.7 else absent.pop() for _ in range(number)]
        return known

    sought = [[str(random.choice(present))], some(1), some(2)]
    numbers = [str(random.choice(present)), *some(1)]
    return [
        Question("caption", "caption", caption(scene)),
        *(
            Question(
                "detect" if len(names) == 1 else "detect two", f"detect {' ; '.join(names)}", detection(scene, *names)
            )
            for names in sought
        ),
        *(Question("count", f"how many {plural(name)}", str(len(scene.found(name)))) for name in numbers),
    ]


def is_right(question: Question, text: str, scene: Scene) -> bool:
    """Captions and counts to the letter; every thing sought has one box, of its label and an IoU of at least a half."""
    if not question.task.startswith("detect"):
        return text == question.answer
    parts = [part for part in text.split(" ; ") if part]
    found = [re.fullmatch(r"((?:<loc\d{4}>){4}) (.+)", part) for part in parts]
    names = question.prompt.removeprefix("detect ").split(" ; ")
    left = [thing for thing in scene.things if thing.name in names]
    if not all(found) or len(found) != len(left):
        return False
    for match in found:
        edges = tuple(int(edge) / 1024 for edge in re.findall(r"\d{4}", match[1]))
        meant = next((thing for thing in left if thing.name == match[2] and iou(edges, thing) >= 0.5), None)
        if meant is None:
            return False
        left.remove(meant)
    return True


def iou(box: tuple[float, ...], thing: Thing) -> float:
    """Intersection over union of a box (ymin, xmin, ymax, xmax) and a thing's."""
    top, left, bottom, right = box
    height, width = min(bottom, thing.bottom) - max(top, thing.top), min(right, thing.right) - max(left, thing.left)
    shared = max(0, height) * max(0, width)
    areas = (bottom - top) * (right - left) + (thing.bottom - thing.top) * (thing.right - thing.left)
    return shared / (areas - shared)
