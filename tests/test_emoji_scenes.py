"""The pictures of emoji: drawn where their boxes are, with true answers that are right and others that are not."""

from __future__ import annotations

import dataclasses

import emoji_scenes
import numpy as np
import pytest

SCENES = [emoji_scenes.scene(seed) for seed in (*range(20), *range(emoji_scenes.HELD_OUT, emoji_scenes.HELD_OUT + 20))]


@pytest.mark.parametrize("scene", SCENES[::8], ids=lambda scene: str(scene.seed))
def test_a_thing_is_drawn_in_its_box(scene: emoji_scenes.Scene):
    picture = np.asarray(emoji_scenes.draw(scene), np.int16)
    height, width = picture.shape[:2]
    for index, thing in enumerate(scene.things):
        others = (*scene.things[:index], *scene.things[index + 1 :])
        without = np.asarray(emoji_scenes.draw(dataclasses.replace(scene, things=others)), np.int16)
        rows, columns = np.nonzero(np.abs(picture - without).max(-1) > 60)
        drawn = rows.min() / height, columns.min() / width, rows.max() / height, columns.max() / width
        assert emoji_scenes.iou(drawn, thing) > 0.7, thing


def test_true_answers_are_right_and_those_to_other_questions_are_wrong():
    for scene in SCENES:
        asked = emoji_scenes.questions(scene)
        assert all(emoji_scenes.is_right(question, question.answer, scene) for question in asked)
        (present,) = [question for question in asked if question.task == "detect"][:1]
        thing = scene.found(present.prompt.removeprefix("detect "))[0]
        moved = dataclasses.replace(thing, left=thing.left + 0.5, right=thing.right + 0.5)
        wrong = present.answer.replace(emoji_scenes.location(thing), emoji_scenes.location(moved), 1)
        assert not emoji_scenes.is_right(present, wrong, scene)
        assert not emoji_scenes.is_right(present, f"{present.answer} ; {emoji_scenes.location(thing)} cat", scene)
        assert not emoji_scenes.is_right(present, "", scene)


def test_a_seed_gives_the_same_scene_and_picture():
    again = emoji_scenes.scene(SCENES[3].seed)
    assert again == SCENES[3]
    assert np.array_equal(emoji_scenes.draw(again), emoji_scenes.draw(SCENES[3]))
