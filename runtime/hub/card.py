"""The model card of a bundle, from its manifest: what a visitor of its page on the Hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ...graphs.manifest import Loss, Manifest, VectorLoss

ROUNDED = ("int8", "int4")  #: precisions that the Hub calls quantized
TASKS = {"generation": "image-text-to-text", "embedding": "visual-document-retrieval"}
DOES = {"generation": "images and a prompt in, text out", "embedding": "pages and queries in, vectors out"}


@dataclass(frozen=True)
class Base:
    """The model that a bundle was made from.

    Attributes:
        name: its id on the Hub; None if that is unknown.
        licence: the fields of a card that say it: `license`, and `license_name` and `license_link` where it is "other".
    """

    name: str | None
    licence: Mapping[str, str]


def make_card(manifest: Manifest, repository: str, base: Base) -> str:
    """The text of README.md in a repository: settings that the Hub reads, then what people read."""
    sections = (_settings(manifest, base), _opening(manifest, repository, base), _use(manifest, repository))
    return "\n".join((*sections, _sizes(manifest), _proof(manifest, repository)))


def _settings(manifest: Manifest, base: Base) -> str:
    fields: dict[str, str | list[str]] = {
        "library_name": "onnx-vlm",
        "pipeline_tag": TASKS[manifest.kind],
        "tags": ["onnx", "onnx-vlm"],
    }
    if base.name is not None:
        fields |= {"base_model": base.name, "base_model_relation": _relation(manifest)}
    lines = [f"{name}: {json.dumps(value)}" for name, value in {**fields, **base.licence}.items()]  # JSON is YAML
    return "\n".join(("---", *lines, "---", ""))


def _relation(manifest: Manifest) -> str:
    return "quantized" if set(manifest.precision.values()) & set(ROUNDED) else "finetune"


def _opening(manifest: Manifest, repository: str, base: Base) -> str:
    name = repository.partition("/")[2]
    source = f"[{base.name}](https://huggingface.co/{base.name})" if base.name else manifest.source["checkpoint"]
    adapter = f", with the adapter {manifest.source['adapter']} merged into it" if "adapter" in manifest.source else ""
    return (
        f"# {name}\n\n{source}{adapter}, as ONNX graphs that"
        f" onnx-vlm runs with NumPy and ONNX Runtime: {DOES[manifest.kind]}, without PyTorch. The decoder's"
        f" weights are in {manifest.precision['decoder']}.\n"
    )


def _use(manifest: Manifest, repository: str) -> str:
    prompt = json.dumps(next(iter(_prompts(manifest)), "Describe the image."), ensure_ascii=False)
    use = f'answer = vlm.generate({prompt}, images="image.jpg")\nprint(answer.text)\n'
    names = "load"
    if manifest.kind == "embedding":
        names = "late_interaction, load"
        use = f'print(late_interaction(vlm.embed(queries={prompt}), vlm.embed(images="page.png")))\n'
    return (
        "## Use\n\n```console\n$ pip install 'onnx-vlm[cpu,hub]'\n```\n\n```python\n"
        f"from onnx_vlm.runtime import {names}\n\n"
        f"vlm = load({json.dumps(repository)})\n"
        f"{use}```\n"
    )


def _sizes(manifest: Manifest) -> str:
    sizes = {name: manifest.graph_bytes(name) for name in manifest.graphs}
    sizes["embed_tokens"] = sum(file.size for path, file in manifest.files.items() if path.startswith("embed_tokens"))
    rows = [f"| `{name}` | {manifest.precision[name]} | {size / 1e6:.1f} |" for name, size in sizes.items()]
    total = sum(file.size for file in manifest.files.values())
    return "\n".join(
        (
            "## Precision and sizes\n",
            "| part | precision | MB |",
            "|---|---|---|",
            *rows,
            f"| all files | | {total / 1e6:.1f} |",
            "",
            f"Made for {manifest.target} with {', '.join(' '.join(item) for item in manifest.made_with.items())}.\n",
        )
    )


def _proof(manifest: Manifest, repository: str) -> str:
    proof = manifest.proof
    if proof is None:
        return "## Proof\n\nThe export was not compared with its source model.\n"
    asked = "\n".join(f"* {json.dumps(prompt, ensure_ascii=False)}" for prompt in _prompts(manifest))
    return (
        "## Proof\n\nEvery stage was compared with the source model when this was exported, and the results lie in"
        f" `proof/`. `onnx-vlm verify {repository}` compares your machine with them, for these prompts:\n\n{asked}\n\n"
        + _loss(proof.loss)
    )


def _loss(loss: Loss | VectorLoss | None) -> str:
    if loss is None:
        return "Rounding the weights changes nothing.\n"
    if isinstance(loss, VectorLoss):
        about = "vectors"
        rows = {
            "distance of the vectors, relative": f"{loss.vectors:.2g}",
            "cosine with the source's, mean (least)": f"{loss.cosine:.4f} ({loss.least_cosine:.4f})",
            "change of scores, relative, at most": f"{loss.scores:.2g}",
        }
    else:
        about = "answers"
        rows = {
            "distance of the logits, relative": f"{loss.logits:.2g}",
            "tokens that are equal": f"{loss.equal_tokens} of {loss.tokens}",
            "perplexity (source model)": f"{loss.perplexity:.4g} ({loss.source_perplexity:.4g})",
        }
    table = "| measure | value |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return f"What rounding the weights changes, on the {about} of the source model:\n\n{table}"


def _prompts(manifest: Manifest) -> tuple[str, ...]:
    """The prompts of the proof, each once."""
    proof = manifest.proof
    return tuple(dict.fromkeys(proof.prompts or (proof.prompt,))) if proof is not None else ()
