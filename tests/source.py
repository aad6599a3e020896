"""The source model beside a bundle: the same question to both, stage by stage and token by token."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from onnx_vlm.runtime import VLM, image
from PIL import Image
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

#: Largest difference of a stage, relative to the largest value of the source's. float32 sums in another order differ by
#: some 1e-6; a wrong mask, position or scale by more than 1e-2.
TOLERANCE = 1e-4


def relative_error(ours: np.ndarray, source: np.ndarray) -> float:
    assert ours.shape == source.shape, f"{ours.shape} is not {source.shape}"
    return float(np.abs(ours - source).max() / np.abs(source).max())


@dataclass
class Answer:
    """What the source model answers: new ids, and the logits (steps, vocab) that each was chosen from."""

    ids: list[int]
    logits: np.ndarray


@dataclass
class Source:
    """A checkpoint in transformers, in float32."""

    folder: Path
    model: PaliGemmaForConditionalGeneration = field(init=False)

    def __post_init__(self) -> None:
        self.processor = AutoProcessor.from_pretrained(self.folder)
        self.model = PaliGemmaForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32).eval()

    def inputs(self, prompts: list[str], pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        inputs = self.processor(
            images=[[picture] for picture in pictures], text=[f"<image>{prompt}" for prompt in prompts],
            return_tensors="pt", padding=True,
        )  # fmt: skip
        inputs.pop("labels", None)
        return dict(inputs)

    @torch.inference_mode()
    def answer(self, prompts: list[str], pictures: list[Image.Image], new_tokens: int) -> list[Answer]:
        """Greedy answers, batched with left padding as transformers does it."""
        inputs = self.inputs(prompts, pictures)
        out = self.model.generate(
            **inputs, max_new_tokens=new_tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        logits = torch.stack(out.logits, 1).numpy()
        ends = np.atleast_1d(self.model.generation_config.eos_token_id)
        answers = []
        for row, scores in zip(out.sequences[:, inputs["input_ids"].shape[1] :].tolist(), logits):
            length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            answers.append(Answer(row[:length], scores[:length]))
        return answers

    @torch.inference_mode()
    def stages(self, prompt: str, picture: Image.Image) -> dict[str, np.ndarray]:
        """Pixels, vision features and image embeddings of one picture."""
        pixels = self.inputs([prompt], [picture])["pixel_values"]
        features = self.model.get_image_features(pixels)
        return {
            "pixel_values": pixels.numpy(),
            "vision_features": features.last_hidden_state.numpy(),
            "image_embeds": features.pooler_output.numpy(),
        }


def stage_errors(vlm: VLM, source: Source, prompt: str, picture: Image.Image, new_tokens: int) -> dict[str, float]:
    """The relative error of every stage; the steps are fed the ids that the source chose."""
    (answer,) = source.answer([prompt], [picture], new_tokens)
    theirs = source.stages(prompt, picture)
    engine = vlm._engine
    tiles = image.tiles(image.read(picture), vlm.manifest.image)
    (features,) = engine._vision.run({"pixel_values": tiles})
    embeds = engine.encode_images(tiles)
    rows = [engine.merge(vlm._prompts.encode(prompt, 1), embeds)]
    logits, run = engine.start(rows, new_tokens)
    steps = [logits] + [run.step(np.array([token])) for token in answer.ids[:-1]]
    ours = {"pixel_values": tiles, "vision_features": features, "image_embeds": embeds}
    errors = {name: relative_error(ours[name], theirs[name]) for name in ours}
    errors["prefill logits"] = relative_error(steps[0], answer.logits[:1])
    if len(steps) > 1:
        errors["step logits"] = relative_error(np.concatenate(steps[1:]), answer.logits[1:])
    return errors


def assert_same_tokens(ours: list[int], source: Answer, what: str) -> None:
    """Token for token the same.

    A first difference passes only as a near-tie, whose margin pytest then shows among its warnings: the source's own
    logits of the two tokens are closer than `TOLERANCE` of the largest logit, so float32 does not tell them apart.
    """
    if ours == source.ids:
        return
    place = next((i for i, (a, b) in enumerate(zip(ours, source.ids)) if a != b), min(len(ours), len(source.ids)))
    assert place < min(len(ours), len(source.ids)), f"{what}: {ours} and {source.ids} differ in length"
    logits = source.logits[place]
    margin = float(logits[source.ids[place]] - logits[ours[place]]) / float(np.abs(logits).max())
    assert margin < TOLERANCE, f"{what}: {ours} is not {source.ids}: token {place}, margin {margin:.2e}"
    warnings.warn(f"near-tie, {what}: token {place}, margin {margin:.2e} of the largest logit", stacklevel=2)
