"""Questions about held-out scenes to a loaded bundle, and whether its answers are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import emoji_scenes
import numpy as np
import shapes
from onnx_vlm.runtime import VLM, Generation
from PIL import Image

Judged = Iterator[tuple[str, Generation, bool]]  # task, answer, whether it is right


def by_questions(vlm: VLM, seed: int) -> Judged:
    scene = shapes.scene(seed)
    asked = shapes.questions(scene)
    for question, answer in zip(asked, vlm.generate([q.prompt for q in asked], [shapes.draw(scene)] * len(asked))):
        yield question.task, answer, shapes.is_right(question, answer.text)


def by_emoji(vlm: VLM, seed: int) -> Judged:
    scene = emoji_scenes.scene(seed)
    asked, image = emoji_scenes.questions(scene), emoji_scenes.draw(scene)
    for question, answer in zip(asked, vlm.generate([q.prompt for q in asked], [image] * len(asked))):
        text = vlm.pipeline.prompts.decode(answer.token_ids)
        yield question.task, answer, emoji_scenes.is_right(question, text, scene)


def by_chat(vlm: VLM, seed: int) -> Judged:
    """Questions one by one; an answer may begin with the space that stands before words."""
    scene = shapes.scene(seed)
    asked = shapes.chat_questions(scene)
    for question, answer in zip(asked, vlm.generate([q.prompt for q in asked], [shapes.draw(scene)] * len(asked))):
        yield question.task, answer, answer.text.removeprefix(" ") == question.answer


def by_chat_and_clip(vlm: VLM, seed: int) -> Judged:
    yield from by_chat(vlm, seed)
    frames, question = shapes.clip(seed)
    clip = np.stack([np.asarray(shapes.draw(frame, 112, 112)) for frame in frames[::3]])
    answer = vlm.generate(question.prompt, videos=clip)
    yield question.task, answer, answer.text == question.answer


def by_grounding(vlm: VLM, seed: int) -> Judged:
    scene = shapes.scene(seed)
    asked = shapes.grounded_questions(scene)
    for question, answer in zip(asked, vlm.generate([q.prompt for q in asked], [shapes.draw(scene)] * len(asked))):
        tagged = vlm.pipeline.prompts.decode(answer.token_ids)  # the text of an answer has no tags
        yield question.task, answer, shapes.is_right_grounded(question, tagged)


#: how the trained checkpoint of each family is asked
FAMILIES: dict[str, Callable[[VLM, int], Judged]] = {
    "paligemma": by_questions,
    "paligemma2": by_questions,
    "perception_lm": by_chat_and_clip,
    "kosmos2": by_grounding,
    "smolvlm": by_chat,
    "llava": by_chat,
    "gemma3": by_chat,
}
CHECKPOINTS = {**FAMILIES, "emoji": by_emoji}


def ask(name: str, vlm: VLM, pictures: int) -> list[tuple[str, Generation, bool]]:
    """All questions about that many held-out pictures."""
    seeds = range(shapes.HELD_OUT, shapes.HELD_OUT + pictures)
    return [judged for seed in seeds for judged in CHECKPOINTS[name](vlm, seed)]


def shares(judged: list[tuple[str, Generation, bool]]) -> dict[str, float]:
    """The share of right answers a task."""
    tasks = dict.fromkeys(task for task, _, _ in judged)
    return {task: float(np.mean([right for one, _, right in judged if one == task])) for task in tasks}


def page_sets(sets: int, pages: int = 32) -> Iterator[tuple[list[str], list[Image.Image]]]:
    """Sets of held-out scenes whose captions differ: the captions, and the pages."""
    for number in range(sets):
        scenes: dict[str, shapes.Scene] = {}
        for seed in range(shapes.HELD_OUT + 500 * number, shapes.HELD_OUT + 500 * (number + 1)):
            scene = shapes.scene(seed)
            if len(scenes) < pages:
                scenes.setdefault(shapes.caption(scene), scene)
        yield list(scenes), [shapes.draw(scene) for scene in scenes.values()]
