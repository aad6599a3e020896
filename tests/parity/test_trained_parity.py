"""The exported trained checkpoints against transformers: every stage, every token, greedy and with beams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapes
from held_out import FAMILIES
from helpers import CHECKPOINTS, PHOTOGRAPHS
from judge import Judge
from onnx_vlm.export import export_model
from onnx_vlm.runtime import VLM, load
from onnx_vlm.runtime.inputs import Request
from permutation import permuted
from PIL import Image, ImageOps
from source import TOLERANCE, Source, ask, open_source, stage_errors

NEW_TOKENS = 48


def frames(seed: int) -> np.ndarray:
    """Four frames of a clip, (frames, height, width, 3) of uint8."""
    return np.stack([np.asarray(shapes.draw(scene, 112, 112)) for scene in shapes.clip(seed)[0][::3]])


def questions(name: str, seed: int) -> list[Request]:
    """What a checkpoint was trained for, about one held-out scene."""
    scene = shapes.scene(seed)
    picture = shapes.draw(scene)
    if name == "kosmos2":
        return [ask(question.prompt, [picture]) for question in shapes.grounded_questions(scene)]
    if name.startswith("paligemma"):
        return [ask(question.prompt, [picture]) for question in shapes.questions(scene)]
    asked = [ask(question.prompt, [picture]) for question in shapes.chat_questions(scene)]
    return [*asked, ask(shapes.clip(seed)[1].prompt, [], [frames(seed)])] if name == "perception_lm" else asked


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def exported(
    bundles: Callable[..., Path], name: str, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, np.ndarray]]:
    """The bundle, and the order in which it gives the last axis of a stage; with --permutation that of the twin."""
    seed = pytestconfig.getoption("permutation")
    if not seed:
        return bundles(name), {}
    folder = tmp_path_factory.mktemp(name)
    orders = permuted(CHECKPOINTS / name, folder / "permuted", seed)
    return export_model(folder / "permuted", folder / "bundle", prove=False), orders


@pytest.fixture(scope="module")
def vlm(exported: tuple[Path, dict[str, np.ndarray]], threads: int) -> VLM:
    return load(exported[0], threads=threads)


@pytest.fixture(scope="module")
def orders(exported: tuple[Path, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return exported[1]


@pytest.fixture(scope="module")
def source(name: str) -> Source:
    return open_source(CHECKPOINTS / name)


def generate(vlm: VLM, requests: list[Request], **options: object) -> list[list[int]]:
    prompts, images, videos = zip(*((request.prompt, request.images, request.videos) for request in requests))
    bboxes = [request.bboxes for request in requests]
    answers = vlm.generate(prompts, images, videos, bboxes=bboxes, max_new_tokens=NEW_TOKENS, **options)
    return [answer.token_ids for answer in answers]


def test_held_out_pictures(vlm: VLM, source: Source, name: str, judge: Judge):
    """All questions about a picture in one ragged batch."""
    for seed in range(shapes.HELD_OUT + 500, shapes.HELD_OUT + 530):
        requests = questions(name, seed)
        for request, ours, truth in zip(requests, generate(vlm, requests), source.answer(requests, NEW_TOKENS)):
            judge.tokens(source, ours, truth, f"picture {seed}, {request.prompt!r}")


def test_beams(vlm: VLM, source: Source, name: str, judge: Judge):
    """Several widths and penalties, one by one and in a ragged batch."""
    requests = questions(name, shapes.HELD_OUT + 600)
    for options in ({"num_beams": 2}, {"num_beams": 4, "length_penalty": 0.0}, {"num_beams": 5, "length_penalty": 3.0}):
        together = generate(vlm, requests, **options)
        for request, ours in zip(requests, together):
            (truth,) = source.answer([request], NEW_TOKENS, **options)
            what, penalty = f"{request.prompt!r}, {options}", options.get("length_penalty", 1.0)
            for answers in ([ours], generate(vlm, [request], **options)):
                judge.beams(source, request, answers, [truth.ids], what, penalty)


def test_photographs(vlm: VLM, source: Source, name: str, judge: Judge, orders: dict[str, np.ndarray]):
    for path in PHOTOGRAPHS:
        picture = ImageOps.exif_transpose(Image.open(path))
        requests = [ask(request.prompt, [picture]) for request in questions(name, shapes.HELD_OUT) if request.images]
        for request, ours, truth in zip(requests, generate(vlm, requests), source.answer(requests, NEW_TOKENS)):
            judge.tokens(source, ours, truth, f"{path.name}, {request.prompt!r}")
        errors = stage_errors(vlm, source, requests[0], 16, orders)
        assert max(errors.values()) < TOLERANCE, (path.name, errors)


def test_stages(vlm: VLM, source: Source, name: str, orders: dict[str, np.ndarray]):
    for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + 3):
        for request in questions(name, seed):
            errors = stage_errors(vlm, source, request, 24, orders)
            assert {"pixel_values", "vision_features", "image_embeds", "prefill logits"} <= set(errors)
            assert max(errors.values()) < TOLERANCE, (request.prompt, errors)
