"""The source model beside a bundle: the same question to both, stage by stage and token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_vlm.export  # noqa: F401 (makes torchvision importable, which transformers imports)
import torch
from judge import TOLERANCE as TOLERANCE
from onnx_vlm.runtime import VLM
from onnx_vlm.runtime.inputs import Request
from transformers import AutoModelForImageTextToText, AutoProcessor


def ask(prompt: Any, images: Any = (), videos: Any = (), bboxes: Any = None) -> Request:
    """A request to both models."""
    return Request(prompt, list(images), list(videos), bboxes)


def relative_error(ours: np.ndarray, source: np.ndarray) -> float:
    assert ours.shape == source.shape, f"{ours.shape} is not {source.shape}"
    return float(np.abs(ours - source).max() / np.abs(source).max())


@dataclass
class Answer:
    """What the source model answers.

    Attributes:
        request: the question.
        limit: how many new tokens were allowed.
        ids: the new tokens.
        logits: (steps, vocab) of float32, from which each was chosen.
    """

    request: Request
    limit: int
    ids: list[int]
    logits: np.ndarray


class Source:
    """A checkpoint in transformers, in float32; a subclass says how its processor is asked.

    Attributes:
        batches: whether transformers answers a padded batch as it answers each row.
    """

    batches = True

    def __init__(self, folder: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def inputs(self, request: Request) -> dict[str, torch.Tensor]:
        """Arguments of the model for one request."""
        raise NotImplementedError

    def stages(self, request: Request) -> dict[str, np.ndarray]:
        """Pixels, vision features and image embeddings of a request's pictures and videos, tile by tile."""
        raise NotImplementedError

    def generate(self, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        return self.model.generate(**inputs, **options)

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request], new_tokens: int, **options: Any) -> list[Answer]:
        """Answers, greedy unless options say otherwise; batched with left padding where transformers can do it."""
        rows = [self.inputs(request) for request in requests]
        batches = [_padded(rows, self.model.generation_config.pad_token_id)] if self.batches else rows
        found = [pair for batch in batches for pair in self._answer(batch, new_tokens, options)]
        return [Answer(request, new_tokens, *pair) for request, pair in zip(requests, found, strict=True)]

    @torch.inference_mode()
    def answer_from(self, request: Request, start: Sequence[int], new_tokens: int) -> Answer:
        """The answer that begins with the tokens `start` and is greedy from there."""
        inputs = self.inputs(request)
        ((ids, logits),) = self._answer(inputs, new_tokens, {"prefix_allowed_tokens_fn": self.beginning(inputs, start)})
        return Answer(request, new_tokens, ids, logits)

    def beginning(
        self, inputs: dict[str, torch.Tensor], start: Sequence[int]
    ) -> Callable[[int, torch.Tensor], list[int]]:
        """The option of transformers that makes an answer begin with the tokens `start`."""
        length, every = inputs["input_ids"].shape[1], list(range(self.model.config.get_text_config().vocab_size))

        def allowed(_: int, ids: torch.Tensor) -> list[int]:
            step = len(ids) - length
            return [start[step]] if step < len(start) else every

        return allowed

    def log_probabilities(self, request: Request, ids: Sequence[int]) -> np.ndarray:
        """(tokens,) of float64: how likely each token is after those before it."""
        logits = self.answer_from(request, ids, len(ids)).logits.astype(np.float64)
        chosen = logits[np.arange(len(ids)), ids]
        return chosen - np.logaddexp.reduce(logits, -1)

    def _answer(
        self, inputs: dict[str, torch.Tensor], new_tokens: int, options: dict[str, Any]
    ) -> list[tuple[list[int], np.ndarray]]:
        """Ids and logits of each row."""
        options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True} | options
        out = self.generate(inputs, max_new_tokens=new_tokens, **options)
        ends = np.atleast_1d(self.model.generation_config.eos_token_id)
        logits = torch.stack(out.logits, 1).numpy()
        answers = []
        for index, row in enumerate(out.sequences[:, inputs["input_ids"].shape[1] :].tolist()):
            length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            answers.append((row[:length], logits[index][:length]))
        return answers


def _padded(rows: list[dict[str, torch.Tensor]], pad: int) -> dict[str, torch.Tensor]:
    """Inputs of several rows as a batch: text padded on the left, tiles in one row."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    batch = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        some = [row[name] for row in rows if name in row]
        if name.startswith("pixel_values"):
            batch[name] = torch.cat([one.flatten(0, -4) for one in some])[None if some[0].ndim == 5 else slice(None)]
        else:
            fill = pad if name == "input_ids" else 0
            batch[name] = torch.cat(
                [torch.nn.functional.pad(one, (longest - one.shape[1], 0), value=fill) for one in some]
            )
    return batch


class PaliGemmaSource(Source):
    def inputs(self, request: Request) -> dict[str, torch.Tensor]:
        text = "<image>" * len(request.images) + request.prompt
        inputs = dict(self.processor(images=[request.images], text=[text], return_tensors="pt"))
        inputs.pop("labels", None)
        return inputs

    @torch.inference_mode()
    def stages(self, request: Request) -> dict[str, np.ndarray]:
        pixels = self.inputs(request)["pixel_values"]
        features = self.model.get_image_features(pixels)
        return {
            "pixel_values": pixels.numpy(),
            "vision_features": features.last_hidden_state.numpy(),
            "image_embeds": features.pooler_output.numpy(),
        }


class PerceptionLMSource(Source):
    def inputs(self, request: Request) -> dict[str, torch.Tensor]:
        messages = request.prompt
        if isinstance(messages, str):
            media = [{"type": "image"}] * len(request.images) + [{"type": "video"}] * len(request.videos)
            messages = [{"role": "user", "content": [*media, {"type": "text", "text": request.prompt}]}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = self.processor(
            text=text,
            images=request.images or None,
            add_special_tokens=False,
            videos=list(request.videos) or None,
            return_tensors=None,
        )
        tensors = {name: torch.tensor(inputs[name]) for name in ("input_ids", "attention_mask")}
        for name in ("pixel_values", "pixel_values_videos"):
            if name in inputs:
                tensors[name] = torch.cat([torch.as_tensor(np.asarray(one)) for one in inputs[name]])[None]
        return tensors

    @torch.inference_mode()
    def stages(self, request: Request) -> dict[str, np.ndarray]:
        inputs = self.inputs(request)
        pixels = torch.cat([inputs[name] for name in ("pixel_values", "pixel_values_videos") if name in inputs], 1)
        features = self.model.model.get_image_features(pixels)
        dropped = int(self.model.config.vision_use_cls_token)
        return {
            "pixel_values": pixels[0].numpy(),
            "vision_features": features.last_hidden_state[:, dropped:].numpy(),
            "image_embeds": features.pooler_output.numpy(),
        }


class Gemma3Source(Source):
    def inputs(self, request: Request) -> dict[str, torch.Tensor]:
        messages = request.prompt
        if isinstance(messages, str):
            content = [{"type": "image"}] * len(request.images) + [{"type": "text", "text": request.prompt}]
            messages = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        media, settings = {}, self.processor.image_processor
        if request.images:
            media["images"] = [request.images]
        if request.images and settings.do_pan_and_scan:  # the processor cuts only if it is called with these
            media |= {name: getattr(settings, name) for name in vars(settings) if "pan_and_scan" in name}
        return dict(self.processor(text=[text], **media, add_special_tokens=False, return_tensors="pt"))

    @torch.inference_mode()
    def stages(self, request: Request) -> dict[str, np.ndarray]:
        pixels = self.inputs(request)["pixel_values"]
        features = self.model.get_image_features(pixels)
        return {
            "pixel_values": pixels.numpy(),
            "vision_features": features.last_hidden_state.numpy(),
            "image_embeds": features.pooler_output.numpy(),
        }


class Kosmos2Source(Source):
    batches = False  # it counts padding into the positions of decoded tokens

    def inputs(self, request: Request) -> dict[str, torch.Tensor]:
        image = request.images[0] if request.images else None
        inputs = self.processor(
            images=image,
            text=request.prompt,
            bboxes=request.bboxes,
            num_image_tokens=self.model.config.latent_query_num,
            return_tensors="pt",
        )
        return dict(inputs)

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        """As `Kosmos2Model.get_image_features` computes them; `Kosmos2ForConditionalGeneration` has no such method."""
        vision = self.model.vision_model
        features = vision(pixels, interpolate_pos_encoding=True).last_hidden_state
        return torch.nn.functional.normalize(vision.model.post_layernorm(features), dim=-1)

    def generate(self, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        inputs = dict(inputs)
        if (pixels := inputs.pop("pixel_values", None)) is None:
            return self.model.text_model.generate(**inputs, **options)
        embeds, _ = self.model.image_to_text_projection(self._features(pixels))
        return self.model.generate(image_embeds=embeds, **inputs, **options)

    @torch.inference_mode()
    def stages(self, request: Request) -> dict[str, np.ndarray]:
        pixels = self.inputs(request)["pixel_values"]
        features = self._features(pixels)
        return {
            "pixel_values": pixels.numpy(),
            "vision_features": features.numpy(),
            "image_embeds": self.model.image_to_text_projection(features)[0].numpy(),
        }


class SmolVLMSource(Source):
    def inputs(self, request: Request) -> dict[str, torch.Tensor]:
        messages = request.prompt
        if isinstance(messages, str):
            media = [{"type": "image"}] * len(request.images) + [{"type": "video"}] * len(request.videos)
            messages = [{"role": "user", "content": [*media, {"type": "text", "text": request.prompt}]}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        media = {"images": [request.images]} if request.images else {"videos": list(request.videos) or None}
        inputs = dict(self.processor(text=[text], **media, add_special_tokens=False, return_tensors="pt"))
        assert inputs.pop("pixel_attention_mask", torch.ones(1)).all(), "tiles are whole"
        return inputs

    @torch.inference_mode()
    def stages(self, request: Request) -> dict[str, np.ndarray]:
        pixels = self.inputs(request)["pixel_values"]
        features = self.model.get_image_features(pixels)
        return {
            "pixel_values": pixels[0].numpy(),
            "vision_features": features.last_hidden_state.numpy(),
            "image_embeds": torch.cat(features.pooler_output).unflatten(0, (pixels.shape[1], -1)).numpy(),
        }


class LlavaSource(Source):
    def inputs(self, request: Request) -> dict[str, torch.Tensor]:
        messages = request.prompt
        if isinstance(messages, str):
            content = [{"type": "image"}] * len(request.images) + [{"type": "text", "text": request.prompt}]
            messages = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        return dict(self.processor(text=text, images=request.images or None, return_tensors="pt"))

    @torch.inference_mode()
    def stages(self, request: Request) -> dict[str, np.ndarray]:
        pixels, config = self.inputs(request)["pixel_values"], self.model.config
        states = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        features = torch.cat([states[layer] for layer in layers], -1)
        return {
            "pixel_values": pixels.numpy(),
            "vision_features": features[:, config.vision_feature_select_strategy == "default" :].numpy(),
            "image_embeds": torch.stack(list(self.model.get_image_features(pixels).pooler_output)).numpy(),
        }


def open_source(folder: Path) -> Source:
    """The source model of a checkpoint."""
    kinds = {
        "gemma3": Gemma3Source,
        "idefics3": SmolVLMSource,
        "kosmos-2": Kosmos2Source,
        "llava": LlavaSource,
        "paligemma": PaliGemmaSource,
        "perception_lm": PerceptionLMSource,
        "smolvlm": SmolVLMSource,
    }
    from transformers import AutoConfig

    return kinds[AutoConfig.from_pretrained(folder).model_type](folder)


def stage_errors(
    vlm: VLM, source: Source, request: Request, new_tokens: int, orders: Mapping[str, np.ndarray] | None = None
) -> dict[str, float]:
    """The relative error of every stage; the steps are fed the ids that the source chose.

    Args:
        orders: the order in which the bundle gives the last axis of a stage, where it is not that of the source.
    """
    (answer,) = source.answer([request], new_tokens)
    engine = vlm.pipeline.engine
    prompt = vlm.pipeline.encode(request).prompt
    ours, theirs = {}, {}
    if prompt.tiles:
        tiles, theirs = np.concatenate(prompt.tiles), source.stages(request)
        features = engine.encode(tiles)
        ours = {"pixel_values": tiles, "vision_features": features, "image_embeds": engine.encode_images(tiles)}
    logits, run = engine.start([engine.embed(prompt)], new_tokens)
    steps = [logits] + [run.step(np.zeros(1, np.int64), np.array([token])) for token in answer.ids[:-1]]
    theirs |= {name: theirs[name][..., order] for name, order in (orders or {}).items() if name in theirs}
    errors = {name: relative_error(ours[name], theirs[name]) for name in ours}
    errors["prefill logits"] = relative_error(steps[0], answer.logits[:1])
    if len(steps) > 1:
        errors["step logits"] = relative_error(np.concatenate(steps[1:]), answer.logits[1:])
    return errors
