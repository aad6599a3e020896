"""The manifest of a new bundle: gathered from checkpoint, family and graphs, and checked as a runtime reads it."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from ..graphs import CheckpointError, VLMError, contract, manifest, strict_json
from ..graphs.transforms import weights
from ..graphs.transforms.activation_memory import most_alive
from ..runtime.text import chat_template
from ..runtime.text.prompt import Prompts
from . import targets
from .checkpoint.checkpoint import Checkpoint
from .families.registry import ModelParts, Recipe
from .tracing.decoder import Decoder

MADE_WITH = ("onnx-vlm", "torch", "transformers", "onnx", "onnxscript", "onnx-ir")  #: packages named in the manifest


def gather(
    source: Checkpoint,
    parts: ModelParts,
    recipe: Recipe,
    generation: manifest.GenerationDefaults,
    precisions: dict[str, str],
    target: targets.Target,
    prefill: manifest.Prefill,
) -> manifest.Manifest:
    """The manifest of a bundle that has no files and no proof yet.

    Args:
        precisions: the name of the precision of each graph and of the embedding table.

    Raises:
        CheckpointError: if the checkpoint's settings give values that no runtime would read back.
    """
    adapter = {"adapter": source.adapter.name} if source.adapter else {}
    gathered = manifest.Manifest(
        format=manifest.FORMAT,
        target=target.name,
        source={"checkpoint": source.name, "model_type": source.config["model_type"], **adapter},
        made_with={package: version(package) for package in MADE_WITH},
        precision=precisions,
        float32_nodes={},
        graphs=dict(parts.graphs),
        profiles=target.profiles(parts, recipe),
        cache=target.cache,
        image=recipe.image,
        video=recipe.video,
        prompt=recipe.prompt,
        embedding=recipe.embedding,
        causal=parts.modules[contract.DECODER].causal,
        prefill=prefill,
        generation=generation,
        grounding=recipe.grounding,
        proof=None,
        files={},
        vectors=recipe.vectors,
    )
    _check_values(gathered)
    return gathered


def _check_values(gathered: manifest.Manifest) -> None:
    """Raise a CheckpointError if the checkpoint's settings give values that no runtime would read back."""
    problems: list[str] = []
    strict_json.read(manifest.Manifest, json.loads(json.dumps(dataclasses.asdict(gathered))), "", problems)
    if problems:
        raise CheckpointError(
            "the checkpoint's settings give a manifest with invalid values:\n" + "\n".join(f"  {p}" for p in problems)
        )


def prefill_memory(graph: ir.Model, decoder: Decoder) -> manifest.Prefill:
    """The memory that a prefill takes, from the traced decoder graph and its module.

    A token takes 2.5 times the values that are alive at once: 1.3 to 2.5 times were measured on models of 1 to 3
    billion weights. A pair of tokens takes a score for each head, and a bias for each mask; plain causal attention
    keeps none.
    """
    heads = decoder.causal_lm.config.num_attention_heads
    masked = not decoder.causal or decoder.ahead or decoder.windowed
    pair = 4 * (heads + 1 + (decoder.ahead and decoder.windowed)) if masked else 0
    return manifest.Prefill(token=5 * most_alive(graph, contract.SEQUENCE) // 2, pair=pair)


def read_template(source: Checkpoint, recipe: Recipe) -> str | None:
    """The chat template of a model that needs one, None for others.

    Raises:
        CheckpointError: if the template cannot be used, tried on the family's first example.
    """
    if not isinstance(recipe.prompt, manifest.ChatPrompt):
        return None
    text = recipe.chat_template or source.chat_template() or ""
    try:
        template = chat_template.Template(text, recipe.prompt.special_tokens)
        conversation = template.render(chat_template.conversation(recipe.examples[0], images=1, videos=0))
    except VLMError as error:
        raise CheckpointError(f"{source.folder}: {error}") from None
    if (count := conversation.count(recipe.prompt.image_mark)) != 1:
        raise CheckpointError(
            f"{source.folder}: the chat template writes {recipe.prompt.image_mark} {count} times for one image; it must"
            " write it once"
        )
    return text


def list_files(folder: Path, hashed: bool = True) -> dict[str, manifest.File]:
    """The files in `folder` except the manifest; without checksums unless `hashed`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != manifest.FILE_NAME)
    checksums = weights.in_order(manifest.sha256, paths) if hashed else [""] * len(paths)
    return {
        path.relative_to(folder).as_posix(): manifest.File(path.stat().st_size, checksum)
        for path, checksum in zip(paths, checksums)
    }


def read_back(folder: Path) -> None:
    """Read the finished bundle as a runtime does.

    Raises:
        BundleError: if a runtime cannot use the bundle.
    """
    stored = manifest.load(folder)
    Prompts(folder, stored.prompt, stored.graphs[contract.PROJECTOR].outputs[0].shape[1])
