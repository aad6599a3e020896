"""Synthetic pictures of coloured shapes with captions, boxes and counts, to train and test tiny checkpoints on.

Needs NumPy and Pillow only. Everything is drawn from a `numpy.random.Generator`, so a seed gives the same pictures
everywhere; training uses seeds below `HELD_OUT`, tests use seeds from there on.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

HELD_OUT = 1_000_000  #: the first seed that no checkpoint was trained on
GRID = 28  #: boxes lie on a grid of this many cells a side
COLOURS = {
    "red": (214, 48, 49),
    "green": (39, 160, 75),
    "blue": (41, 98, 214),
    "yellow": (245, 205, 40),
}
SHAPES = ("circle", "square", "triangle")


@dataclass(frozen=True)
class Thing:
    """One shape; its box in grid cells, the far edge excluded."""

    colour: str
    shape: str
    top: int
    left: int
    bottom: int
    right: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    def crowds(self, other: Thing) -> bool:
        """Whether the two are closer than two cells, or too level for their order from top to bottom to be plain."""
        apart = max(other.left - self.right, self.left - other.right, other.top - self.bottom, self.top - other.bottom)
        return apart < 2 or abs(self.top - other.top) < 3


@dataclass(frozen=True)
class Scene:
    """Things that do not crowd each other, from top to bottom, over a background."""

    things: tuple[Thing, ...]
    background: tuple[int, int, int]
    seed: int

    def found(self, name: str) -> list[Thing]:
        return [thing for thing in self.things if thing.name == name]

    def count(self, shape: str) -> int:
        return sum(thing.shape == shape for thing in self.things)


def scene(seed: int) -> Scene:
    """The scene of a seed: one or two things, sometimes several of one kind."""
    random = np.random.default_rng(seed)
    shade = int(random.integers(225, 250)) if random.random() < 0.75 else int(random.integers(25, 60))
    background = tuple(int(np.clip(shade + random.integers(-8, 9), 0, 255)) for _ in range(3))
    things: list[Thing] = []
    wanted = 1 if random.random() < 0.4 else 2
    for _ in range(40):
        if len(things) == wanted:
            break
        if things and random.random() < 0.3:
            colour, shape = things[-1].colour, things[-1].shape
        else:
            colour, shape = str(random.choice(list(COLOURS))), str(random.choice(SHAPES))
        height = int(random.integers(6, 13))
        width = int(np.clip(height + random.integers(-1, 2), 6, 12))
        top, left = int(random.integers(0, GRID - height + 1)), int(random.integers(0, GRID - width + 1))
        thing = Thing(colour, shape, top, left, top + height, left + width)
        if not any(thing.crowds(other) for other in things):
            things.append(thing)
    things.sort(key=lambda thing: thing.top)
    return Scene(tuple(things), background, seed)


def draw(scene: Scene, width: int = 336, height: int = 336) -> Image.Image:
    """The scene as an RGB picture of `width` x `height` pixels, drawn at twice that size and reduced."""
    random = np.random.default_rng([scene.seed, 1])
    large = 2
    picture = Image.new("RGB", (width * large, height * large), scene.background)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        jitter = random.integers(-14, 15, 3)
        fill = tuple(int(np.clip(channel + j, 0, 255)) for channel, j in zip(COLOURS[thing.colour], jitter))
        across, down = width * large / GRID, height * large / GRID
        left, right = thing.left * across, thing.right * across - 1
        top, bottom = thing.top * down, thing.bottom * down - 1
        if thing.shape == "circle":
            pen.ellipse((left, top, right, bottom), fill)
        elif thing.shape == "square":
            pen.rectangle((left, top, right, bottom), fill)
        else:
            pen.polygon(((left + right) / 2, top, right, bottom, left, bottom), fill)
    return picture.reduce(large)


def caption(scene: Scene) -> str:
    """What is in the scene, kinds in alphabetical order: "a blue square, 2 red circles and a yellow triangle"."""
    kinds = sorted(Counter(thing.name for thing in scene.things).items())
    parts = [f"a {name}" if number == 1 else f"{number} {name}s" for name, number in kinds]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def location(thing: Thing) -> str:
    """The box as four PaliGemma tokens: ymin, xmin, ymax, xmax in 1024 bins."""
    edges = (thing.top, thing.left, thing.bottom, thing.right)
    return "".join(f"<loc{min(edge * 1024 // GRID, 1023):04d}>" for edge in edges)


def detection(scene: Scene, name: str) -> str:
    """The answer to "detect NAME": boxes and labels, separated by " ; "; empty where nothing is found."""
    return " ; ".join(f"{location(thing)} {name}" for thing in scene.found(name))


@dataclass(frozen=True)
class Question:
    """A prompt and the answer that the scene gives."""

    task: str
    prompt: str
    answer: str


def questions(scene: Scene) -> list[Question]:
    """Five questions: the caption, two things, a thing that may not be there, and a count."""
    random = np.random.default_rng([scene.seed, 2])
    present = sorted({thing.name for thing in scene.things})
    every = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    sought = [str(random.choice(present)), str(random.choice(present)), str(random.choice(every))]
    counted = str(random.choice(SHAPES))
    return [
        Question("caption", "caption", caption(scene)),
        *(Question("detect", f"detect {name}", detection(scene, name)) for name in sought),
        Question("count", f"how many {counted}s", str(scene.count(counted))),
    ]


def is_right(question: Question, text: str) -> bool:
    """Captions and counts to the letter; boxes in number, order and label, each with an IoU of at least a half."""
    if not question.task.startswith("detect"):
        return text == question.answer
    given, true = _boxes(text), _boxes(question.answer)
    return len(given) == len(true) and all(a[0] == b[0] and _iou(a[1], b[1]) >= 0.5 for a, b in zip(given, true))


def _boxes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Labels and boxes of a detection; a text that is none gives one box without extent."""
    parts = [part for part in text.split(" ; ") if part]
    found = [re.fullmatch(r"((?:<loc\d{4}>){4}) (.+)", part) for part in parts]
    if not all(found):
        return [(text, (0, 0, 0, 0))]
    return [(match[2], tuple(map(int, re.findall(r"\d{4}", match[1])))) for match in found]


def _iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Intersection over union of two boxes (ymin, xmin, ymax, xmax)."""
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, height) * max(0, width)
    whole = sum(max(0, box[2] - box[0]) * max(0, box[3] - box[1]) for box in (a, b)) - shared
    return shared / whole if whole else 0.0


def patches(thing: Thing) -> str:
    """The box as two KOSMOS-2 tokens: its upper left and its lower right patch on a grid of 32 x 32."""
    top, left = thing.top * 32 // GRID, thing.left * 32 // GRID
    bottom, right = -(-thing.bottom * 32 // GRID) - 1, -(-thing.right * 32 // GRID) - 1
    return f"<patch_index_{top * 32 + left:04d}><patch_index_{bottom * 32 + right:04d}>"


def objects(things: list[Thing]) -> str:
    return f"<object>{'</delimiter_of_multi_objects/>'.join(map(patches, things))}</object>"


def grounded_questions(scene: Scene) -> list[Question]:
    """Six prompts to complete: two captions, the boxes of a phrase, the names of what is in two boxes, a count."""
    random = np.random.default_rng([scene.seed, 3])
    kinds = sorted(Counter(thing.name for thing in scene.things).items())
    parts = [
        f"<phrase> {f'a {name}' if number == 1 else f'{number} {name}s'}</phrase>{objects(scene.found(name))}"
        for name, number in kinds
    ]
    sought, number = kinds[int(random.integers(len(kinds)))]
    boxed = [scene.things[int(index)] for index in random.permutation(2) % len(scene.things)]
    counted = str(random.choice(SHAPES))
    return [
        Question("grounded", "<grounding> An image of", " and".join(parts)),
        Question("caption", "An image of", f" {caption(scene)}"),
        Question(
            "phrase",
            f"<grounding><phrase> {'the' if number == 1 else f'{number}'} {sought}{'s' * (number > 1)}</phrase>",
            objects(scene.found(sought)),
        ),
        *(Question("box", f"<grounding><phrase> it</phrase>{objects([one])} is", f" a {one.name}") for one in boxed),
        Question("count", f"Question: how many {counted}s? Answer:", f" {scene.count(counted)}"),
    ]


def is_right_grounded(question: Question, text: str) -> bool:
    """Words and tags to the letter, spaces aside; boxes in number and order, each with an IoU of at least a half."""
    given, true = (re.sub(r"<patch_index_\d+>|\s", "", answer) for answer in (text, question.answer))
    ours, theirs = (_patch_boxes(answer) for answer in (text, question.answer))
    return given == true and len(ours) == len(theirs) and all(_iou(a, b) >= 0.5 for a, b in zip(ours, theirs))


def _patch_boxes(text: str) -> list[tuple[int, ...]]:
    found = [int(number) for number in re.findall(r"<patch_index_(\d+)>", text)]
    return [(a // 32, a % 32, b // 32 + 1, b % 32 + 1) for a, b in zip(found[::2], found[1::2])]


WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  #: rows and columns a step
FRAMES = 12  #: of a clip


def chat_questions(scene: Scene) -> list[Question]:
    """Four questions in words: what there is, two counts, which colour a shape has."""
    random = np.random.default_rng([scene.seed, 4])
    counted = [str(shape) for shape in random.permutation(SHAPES)[:2]]
    coloured = scene.things[int(random.integers(len(scene.things)))].shape
    colours = sorted({thing.colour for thing in scene.things if thing.shape == coloured})
    return [
        Question("describe", "Describe the picture.", caption(scene)),
        *(Question("count", f"How many {shape}s are there?", str(scene.count(shape))) for shape in counted),
        Question("colour", f"Which colour has the {coloured}?", " and ".join(colours)),
    ]


def clip(seed: int) -> tuple[list[Scene], Question]:
    """`FRAMES` scenes of one thing that moves evenly in one of four directions, and what happens in them."""
    random = np.random.default_rng([seed, 5])
    colour, shape, way = (str(random.choice(list(some))) for some in (COLOURS, SHAPES, WAYS))
    size, travel = int(random.integers(6, 11)), int(random.integers(8, 17))
    down, across = (step * travel for step in WAYS[way])
    top, left = (
        int(random.integers(max(0, -move), min(GRID - size, GRID - size - move) + 1)) for move in (down, across)
    )
    background = scene(seed).background
    frames = []
    for step in np.linspace(0, 1, FRAMES):
        y, x = top + round(step * down), left + round(step * across)
        frames.append(Scene((Thing(colour, shape, y, x, y + size, x + size),), background, seed))
    return frames, Question("video", "What happens?", f"a {colour} {shape} moves {way}")
