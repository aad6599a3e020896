"""The proof of a bundle: the source model's stages on a few images and prompts, with the weights that the bundle has.

Two questions are kept apart. Fidelity: does the bundle compute what the source model computes with the same rounded
weights? Only the rounding of activations and sums is left, so little is allowed. Loss: how far is the source model with
rounded weights from the source model as it is?
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import PreTrainedModel

from ...graphs import contract, manifest
from ...graphs.transforms.weights import Source
from ...runtime.stored_proof import Case, Evidence
from ...runtime.verify import Check
from .. import system_errors
from ..checkpoint import hub
from ..checkpoint.checkpoint import Checkpoint, Weights
from ..families import registry
from ..families.registry import Family, ModelParts
from .bundle_weights import cache_scales, embedding_table, relative_error, rounded_weights
from .source_model import empty_parameters, read_from_disk, remember, rounded_cache
from .vector_loss import vector_loss

NEW_TOKENS = 6  #: of each answer
#: Rounding to 4 bits changes the weights of the trained checkpoints by 15 % at most; one that is lost changes by 100 %.
ROUNDING = 0.5

Arrays = dict[str, np.ndarray]


def images() -> list[Image.Image]:
    """Small images with smooth and sharp parts: one wider than high, which tiled models cut up, and a square one."""
    ramp = np.linspace(0, 255, 160, dtype=np.uint8)
    across, down = np.meshgrid(ramp, ramp[::-1][:120])
    wide = Image.fromarray(np.stack([across, down, 255 - across // 2], -1))
    draw = ImageDraw.Draw(wide)
    draw.ellipse((20, 30, 80, 90), "red", "black")
    draw.rectangle((95, 15, 145, 60), "blue")
    light = Image.new("RGB", (112, 112), "white")
    draw = ImageDraw.Draw(light)
    draw.ellipse((12, 58, 48, 94), "red")
    draw.polygon([(62, 52), (102, 52), (82, 14)], "green")
    return [wide, light]


def gather(
    checkpoint: Checkpoint, family: Family, prompts: Sequence[str], eos_token_ids: tuple[int, ...], folder: Path
) -> tuple[Evidence, Check]:
    """Run the source model as it is, and with the weights of the bundle in `folder` where they differ.

    Args:
        prompts: given to the images in turn.

    Returns:
        What the source model makes of the images with the bundle's weights, and these weights against its own.
    """
    questions = [(image, prompts[index % len(prompts)]) for index, image in enumerate(images())]
    weights = rounding(checkpoint, family, folder)
    exact = expectations(checkpoint, family, questions, eos_token_ids)
    if not weights.error and not cache_scales(folder):
        return Evidence(_cases(questions, exact)), weights
    if contract.VECTORS in exact[0]:
        rounded = expectations(checkpoint, family, questions, eos_token_ids, folder)
        return Evidence(_cases(questions, rounded), vector_loss(exact, rounded)), weights
    answers = [arrays[contract.TOKEN_IDS] for arrays in exact]
    rounded = expectations(checkpoint, family, questions, eos_token_ids, folder, answers)
    return Evidence(_cases(questions, rounded), loss(exact, rounded)), weights


def _cases(questions: Sequence[tuple[Image.Image, str]], arrays: Sequence[Arrays]) -> list[Case]:
    return [Case(prompt, image, expected) for (image, prompt), expected in zip(questions, arrays)]


@torch.inference_mode()
def expectations(
    checkpoint: Checkpoint,
    chosen: Family,
    questions: Sequence[tuple[Image.Image, str]],
    eos_token_ids: tuple[int, ...],
    folder: Path | None = None,
    answers: Sequence[np.ndarray] | None = None,
) -> list[Arrays]:
    """The results of the source model's processor and stages for each image and prompt, computed in float32.

    Args:
        folder: a bundle whose rounded weights and rounded cache the model gets; None for the checkpoint's.
        answers: token ids (new tokens,) that each answer has; None for greedy ones.

    Returns:
        For each question `input_ids` (tokens,), the inputs and outputs of vision encoder and projector under their
        names, and what follows: `token_ids` (new tokens,) of the answer, and the `logits` (new tokens, vocab) before
        each. Or, where the prompt is a query, the `vectors` (tokens, width) of the page, `query_ids` (tokens,) and
        `query_vectors` (tokens, width).
    """
    parts, sources = _built(checkpoint, chosen)
    tables, scales = {}, []
    if folder is not None:
        sources |= rounded_weights(folder, parts)
        scales = cache_scales(folder)
        tables[id(parts.embed_tokens)] = embedding_table(folder)
    read_from_disk(parts.model, sources, tables)
    for tower in parts.modules[contract.VISION_ENCODER].children():
        remember(tower)  # it is asked once as a stage and once for the answer
    makes_vectors = parts.graphs[contract.DECODER].outputs[0].name == contract.VECTORS
    expected = []
    for index, (image, prompt) in enumerate(questions):
        inputs = chosen.source_inputs(checkpoint, parts.model, image, prompt)
        pixels = inputs["pixel_values"].flatten(0, -4)
        features = parts.modules[contract.VISION_ENCODER](pixels)
        embeds = parts.modules[contract.PROJECTOR](features)
        arrays = {
            contract.INPUT_IDS: inputs["input_ids"][0],
            contract.PIXEL_VALUES: pixels,
            contract.VISION_FEATURES: features,
            contract.IMAGE_EMBEDS: embeds,
        }
        if makes_vectors:
            query = chosen.source_inputs(checkpoint, parts.model, None, prompt)
            arrays |= {contract.QUERY_IDS: query["input_ids"][0]}
            names = ((contract.VECTORS, inputs), (contract.QUERY_VECTORS, query))
            arrays |= {name: parts.model(**given).embeddings[0] for name, given in names}
        elif answers is None:
            arrays |= _greedy(parts.model, inputs, eos_token_ids)
        else:
            tokens = torch.from_numpy(answers[index])
            with rounded_cache(scales):
                logits = logits_before(parts, inputs, tokens)
            arrays |= {contract.TOKEN_IDS: tokens, contract.LOGITS: logits}
        expected.append({name: tensor.numpy() for name, tensor in arrays.items()})
    return expected


def _greedy(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], eos_token_ids: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """The model's greedy answer (new tokens,) and the logits (new tokens, vocab) before each token, by their names."""
    answer = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        eos_token_id=list(eos_token_ids),
    )
    tokens = answer.sequences[0, inputs["input_ids"].shape[1] :]
    return {contract.TOKEN_IDS: tokens, contract.LOGITS: torch.cat(answer.logits)}


def logits_before(parts: ModelParts, inputs: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """The logits (new tokens, vocab) before each token (new tokens,) of a given answer to the inputs of `generate`.

    They are those of `generate`, computed in one pass: reading rounded weights takes longer than a step does.
    """
    shape, before = inputs["input_ids"].shape, tokens[None, :-1]
    ones = torch.ones_like(before)
    added = {"input_ids": before, "attention_mask": ones}
    if not parts.modules[contract.DECODER].causal:  # tokens of this type see only those before them, others the prefix
        added["token_type_ids"] = ones
    longer = {
        name: torch.cat([values, added.get(name, torch.zeros_like(before)).to(values.dtype)], 1)
        for name, values in inputs.items()
        if values.shape == shape
    }
    return parts.model(**inputs | longer, logits_to_keep=len(tokens)).logits[0, -len(tokens) :]


def _built(checkpoint: Checkpoint, family: Family) -> tuple[ModelParts, dict[int, Source]]:
    """The source model without memory for its parameters, and the checkpoint's values of each by its `id`."""
    with empty_parameters():
        parts = registry.build(family, checkpoint)
    weights = Weights(checkpoint, parts.model)
    return parts, {key: weights.sources.get(name) for key, name in weights.names.items()}


def rounding(checkpoint: Checkpoint, family: Family, folder: Path) -> Check:
    """The weights of a bundle, each against the checkpoint's: the largest change, which rounding alone should make."""
    parts, sources = _built(checkpoint, family)
    names = {id(parameter): name for name, parameter in parts.model.named_parameters()}
    errors = {
        names[key]: relative_error(rounded, sources[key]) for key, rounded in rounded_weights(folder, parts).items()
    }
    errors[contract.EMBED_TOKENS] = relative_error(embedding_table(folder), sources[id(parts.embed_tokens)])
    worst = max(errors, key=errors.__getitem__)
    note = f"most in {worst}" if errors[worst] else "as in the checkpoint"
    return Check("weights", "", errors[worst], ROUNDING, note)


def loss(exact: Sequence[Arrays], rounded: Sequence[Arrays]) -> manifest.Loss:
    """The loss by rounding, from the logits before the same tokens."""
    tokens, source, ours = (
        np.concatenate(arrays)
        for arrays in (
            [arrays[contract.TOKEN_IDS] for arrays in exact],
            [arrays[contract.LOGITS] for arrays in exact],
            [arrays[contract.LOGITS] for arrays in rounded],
        )
    )
    ours_centred, source_centred = (logits - logits.mean(-1, keepdims=True) for logits in (ours, source))
    return manifest.Loss(
        logits=float(np.linalg.norm(ours_centred - source_centred) / np.linalg.norm(source_centred)),
        equal_tokens=int((ours.argmax(-1) == source.argmax(-1)).sum()),
        tokens=len(tokens),
        perplexity=_perplexity(ours, tokens),
        source_perplexity=_perplexity(source, tokens),
    )


def _perplexity(logits: np.ndarray, tokens: np.ndarray) -> float:
    logarithms = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    return float(np.exp(-logarithms[np.arange(len(tokens)), tokens].mean()))


@system_errors.named()
def live(checkpoint: str | Path, folder: str | Path, adapter: str | Path | None = None) -> tuple[Evidence, Check]:
    """The results of `gather` for a checkpoint and the bundle in `folder`, as `verify` needs them."""
    description = manifest.load(Path(folder))
    source = hub.open_checkpoint(checkpoint, adapter)
    family = registry.find(source.config.get("model_type"))
    recipe = family.recipe(source)
    return gather(source, family, recipe.examples, description.generation.eos_token_ids, Path(folder))
