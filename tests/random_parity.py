"""The check of a random model: exported, and compared with its source at every stage and token by token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from judge import Judge
from onnx_vlm.export import export_model
from onnx_vlm.runtime import VLM, load
from onnx_vlm.runtime.inputs import Request
from permutation import permuted
from random_rows import Row
from source import TOLERANCE, Answer, Source, open_source, stage_errors

NEW_TOKENS = 24


@dataclass(frozen=True)
class RandomParity:
    """Exports random models and compares them with their sources.

    Attributes:
        folder: where checkpoint and bundle are written.
        judge: compares the answers.
        threads: of ONNX Runtime.
        permutation: the order that the hidden units of the bundles have, which rounds their sums otherwise; 0 is that
            of the source. If it is None, every other model has another order.
    """

    folder: Path
    judge: Judge
    threads: int
    permutation: int | None

    def check(self, seed: int, row: Row, requests: list[Request], target: str = "onnxruntime") -> None:
        make, options = row
        checkpoint, orders = make(self.folder / "checkpoint", **{"seed": seed} | options), {}
        source = open_source(checkpoint)
        if order := seed % 2 if self.permutation is None else self.permutation:
            orders = permuted(checkpoint, self.folder / "permuted", order)
            checkpoint = self.folder / "permuted"
        bundle = export_model(checkpoint, self.folder / "bundle", prove=False, target=target)
        vlm = load(bundle, threads=self.threads)
        self._compare_tokens(vlm, source, requests)
        self._compare_beams(vlm, source, requests[:3])
        for request in requests[1:3]:
            errors = stage_errors(vlm, source, request, NEW_TOKENS, orders)
            assert max(errors.values()) < TOLERANCE, errors

    def _compare_tokens(self, vlm: VLM, source: Source, requests: list[Request]) -> None:
        alone = [source.answer([request], NEW_TOKENS)[0] for request in requests]
        assert len({tuple(truth.ids) for truth in alone}) == len(requests), "answers tell pictures and prompts apart"
        certain = np.mean([_log_probability(truth) for truth in alone])
        assert certain > -0.5 * np.log(alone[0].logits.shape[1]), f"the model is not decided: {certain:.2f} a token"
        together = source.answer(requests, NEW_TOKENS)
        for request, answer, truth, single in zip(requests, _generate(vlm, requests), together, alone):
            self.judge.tokens(source, answer, truth, f"batch, {request.prompt!r:.60}")
            (ours,) = _generate(vlm, [request])
            self.judge.tokens(source, ours, single, f"{request.prompt!r:.60}")

    def _compare_beams(self, vlm: VLM, source: Source, requests: list[Request]) -> None:
        beams = {"num_beams": 3, "length_penalty": 0.7}
        for request, ours in zip(requests, _generate(vlm, requests, **beams)):
            (truth,) = source.answer([request], NEW_TOKENS, **beams)
            self.judge.beams(source, request, [ours], [truth.ids], f"beams, {request.prompt!r:.60}", 0.7)


def _generate(vlm: VLM, requests: list[Request], **options: Any) -> list[list[int]]:
    prompts, images, videos = zip(*((request.prompt, request.images, request.videos) for request in requests))
    bboxes = [request.bboxes for request in requests]
    answers = vlm.generate(prompts, images, videos, bboxes=bboxes, max_new_tokens=NEW_TOKENS, **options)
    return [answer.token_ids for answer in answers]


def _log_probability(answer: Answer) -> float:
    """The mean of an answer's tokens."""
    chosen = answer.logits[np.arange(len(answer.ids)), answer.ids]
    return float((chosen - np.logaddexp.reduce(answer.logits, -1)).mean())
