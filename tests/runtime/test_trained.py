"""How often the trained checkpoints are right on pictures and clips they were not trained on, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import shapes
from onnx_vlm.runtime import VLM, load

PICTURES = 200


def by_questions(vlm: VLM, seed: int) -> Iterator[tuple[str, bool]]:
    scene = shapes.scene(seed)
    asked = shapes.questions(scene)
    for question, answer in zip(asked, vlm.generate([q.prompt for q in asked], [shapes.draw(scene)] * len(asked))):
        yield question.task, shapes.is_right(question, answer.text)


def by_conversation(vlm: VLM, seed: int) -> Iterator[tuple[str, bool]]:
    """Questions one by one, and a clip."""
    scene = shapes.scene(seed)
    asked = shapes.chat_questions(scene)
    for question, answer in zip(asked, vlm.generate([q.prompt for q in asked], [shapes.draw(scene)] * len(asked))):
        yield question.task, answer.text == question.answer
    frames, question = shapes.clip(seed)
    clip = np.stack([np.asarray(shapes.draw(frame, 112, 112)) for frame in frames[::3]])
    yield question.task, vlm.generate(question.prompt, videos=clip).text == question.answer


def by_grounding(vlm: VLM, seed: int) -> Iterator[tuple[str, bool]]:
    scene = shapes.scene(seed)
    asked = shapes.grounded_questions(scene)
    for question, answer in zip(asked, vlm.generate([q.prompt for q in asked], [shapes.draw(scene)] * len(asked))):
        tagged = vlm._prompts.decode(answer.token_ids)  # the text of an answer has no tags
        yield question.task, shapes.is_right_grounded(question, tagged)


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("paligemma", by_questions),
        ("paligemma2", by_questions),
        ("perception_lm", by_conversation),
        ("kosmos2", by_grounding),
    ],
)
def test_held_out_pictures_are_answered(
    bundles: Callable[[str], Path], name: str, ask: Callable, figure: Callable[[str], None]
):
    """At least 95 % right of each task; a box is right if it covers the true one by half or more (IoU)."""
    vlm = load(bundles(name), threads=1)
    right: dict[str, list[bool]] = {}
    for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + PICTURES):
        for task, correct in ask(vlm, seed):
            right.setdefault(task, []).append(correct)
    shares = {task: np.mean(results) for task, results in right.items()}
    figure(f"{name}: " + "  ".join(f"{task} {share:.1%}" for task, share in shares.items()))
    assert min(shares.values()) >= 0.95


def test_a_conversation_goes_on(bundles: Callable[[str], Path]):
    """Several turns about one picture, each answered from the turns before."""
    vlm = load(bundles("perception_lm"), threads=1)
    scene = shapes.scene(shapes.HELD_OUT)
    messages: list[dict[str, object]] = []
    for index, question in enumerate(shapes.chat_questions(scene)[:3]):
        content = [{"type": "text", "text": question.prompt}]
        if index == 0:
            content.insert(0, {"type": "image", "image": shapes.draw(scene)})
        messages.append({"role": "user", "content": content})
        answer = vlm.generate(messages)
        assert answer.text == question.answer
        messages.append({"role": "assistant", "content": answer.text})


def test_a_grounded_caption_has_entities_in_pixels(bundles: Callable[[str], Path]):
    vlm = load(bundles("kosmos2"), threads=1)
    scene = shapes.scene(shapes.HELD_OUT)
    thing, kinds = scene.things[0], {thing.name for thing in scene.things}
    answer = vlm.generate("<grounding> An image of", shapes.draw(scene, 700, 500))
    assert answer.caption.startswith("An image of a")
    assert answer.caption.removeprefix("An image of").strip() == answer.text
    assert len(answer.entities) == len(kinds)
    assert all(answer.caption[one.start : one.end] == one.label for one in answer.entities)
    (found,) = (box for box in answer.boxes if box.label == f"a {thing.name}")
    edges = np.array((thing.left * 700, thing.top * 500, thing.right * 700, thing.bottom * 500)) / shapes.GRID
    assert np.allclose((found.xmin, found.ymin, found.xmax, found.ymax), edges, atol=60)


def test_boxes_given_for_a_phrase_say_what_is_meant(bundles: Callable[[str], Path]):
    vlm = load(bundles("kosmos2"), threads=1)
    scenes = map(shapes.scene, range(shapes.HELD_OUT, shapes.HELD_OUT + 50))
    scene = next(scene for scene in scenes if len({thing.name for thing in scene.things}) == 2)
    for thing in scene.things:
        box = tuple(edge / shapes.GRID for edge in (thing.left, thing.top, thing.right, thing.bottom))
        answer = vlm.generate("<grounding><phrase> it</phrase> is", shapes.draw(scene), bboxes=[box])
        assert answer.caption == f"it is a {thing.name}"
        assert answer.entities[0].label == "it"
