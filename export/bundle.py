"""The whole export: read a checkpoint, trace its parts, write a bundle aside, prove it, rename it into place."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import torch

from ..graphs import CheckpointError, VLMError, contract, manifest, strict_json
from ..graphs.transforms import activation_memory, weights
from ..runtime import stored_proof
from ..runtime.text import chat_template
from ..runtime.text.prompt import Prompts
from . import estimate, output_folder, system_errors, targets
from .checkpoint import hub
from .checkpoint.checkpoint import Checkpoint, Weights
from .estimate import Estimate
from .families import registry
from .families.mask_decoder import MaskWeights, read_mask_weights
from .precisions import EMBED_TOKENS, choose_precisions, store_weights, stored_table
from .tracing import trace
from .tracing.decoder import Decoder, name_cache_outputs
from .tracing.optimize import optimize
from .tracing.patching import warn_of_untested

#: told the name of a step, what is done of it and the whole, in bytes
Progress = Callable[[str, int, int], None]
MADE_WITH = ("onnx-vlm", "torch", "transformers", "onnx", "onnxscript", "onnx-ir")


@system_errors.named()
def export_model(
    checkpoint: str | Path,
    output: str | Path,
    *,
    precision: str = "fp32",
    vision_precision: str | None = None,
    block_size: int = 128,
    target: str = targets.ONNXRUNTIME.name,
    adapter: str | Path | None = None,
    mask_decoder: str | Path | None = None,
    overwrite: bool = False,
    prove: bool = True,
    accept_loss: bool = False,
    announce: Callable[[Estimate], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Export a checkpoint to a bundle.

    Args:
        checkpoint: a folder as `save_pretrained` writes it, with safetensors; or an id on the Hugging Face Hub.
        output: the folder to make. It appears when the bundle is complete, and not at all if the export fails.
        precision: of the decoder, its head included: "fp32"; "fp16", which computes in float16 but for values that are
            too large for it; "bf16", weights in bfloat16 that are computed with in float32; "int8" or "int4", weights
            in blocks, products with 8-bit integers, 8-bit embeddings.
        vision_precision: of vision encoder and projector; if None "int8" where `precision` is "int4", else the same.
        block_size: how many weights share a scale in int8 and int4: 32, 64 or 128.
        target: "onnxruntime", graphs with ONNX Runtime's fused operators; "portable", graphs of the ONNX standard's
            alone, as TensorRT parses them, in fp32, fp16 or bf16.
        adapter: a LoRA adapter as PEFT saves it, a folder or an id, that is merged into the weights.
        mask_decoder: the published weights of the VQ-VAE whose codes the model writes for `segment` prompts,
            `vae-oid.npz`; the bundle makes masks of the codes with it.
        overwrite: replace `output` if it is a bundle already.
        prove: run the source model on small images, a layer at a time, compare every stage of the bundle with what it
            computes with the same rounded weights, and store that in the bundle for `verify`.
        accept_loss: keep a bundle whose rounded weights change the source model's answers more than is allowed.
        announce: told what the export will take before anything is written.
        progress: called with a step's name, the bytes done and the bytes in all.

    Returns:
        The path of the bundle.

    Raises:
        CheckpointError: if `checkpoint` is none, is of an unsupported type or has weights that do not fit its config.
        ExportError: if `output` exists and may not be replaced, a precision or target is unknown, there is too little
            disk, or the bundle does not do what the source model does, or loses too much.
    """
    warn_of_untested()
    tell = progress or (lambda *_: None)
    precisions = choose_precisions(precision, vision_precision, block_size)
    chosen_target = targets.find(target)
    chosen_target.check_precisions(precisions)
    output = Path(output)
    output_folder.check(output, overwrite)
    source = hub.open_checkpoint(checkpoint, adapter)
    chosen = registry.find(source.config.get("model_type"))
    recipe = chosen.recipe(source)
    generation = registry.generation(source, recipe)
    mask_weights = read_mask_weights(mask_decoder, recipe.grounding) if mask_decoder is not None else None
    template = _template(source, recipe)
    with output_folder.written_aside(output, overwrite) as folder:
        with trace.fake_weights():
            parts = registry.build(chosen, source)
            chosen_target.prepare(parts)
            read = Weights(source, parts.model)
            if mask_weights is not None:
                parts = mask_weights.added_to(parts)
                precisions[contract.MASK_DECODER] = "fp32"
            expected = estimate.estimate(_weights_of(parts), precisions, block_size, prove)
            if announce is not None:
                announce(expected)
            output_folder.check_room(output.parent, expected.disk)
            graphs = {}
            with chosen_target.tracing(parts):
                for name, spec in parts.graphs.items():
                    tell(f"trace {name}", 0, 0)
                    graphs[name] = trace.trace(parts.modules[name], spec, chosen_target.opset)
        for name, graph in graphs.items():
            _complete(graph, name, parts, read)
            chosen_target.check_operators(name, graph)
            store_weights(graph, name, precisions[name], block_size)
        table = stored_table(read.sources[read.names[id(parts.embed_tokens)]], precisions[EMBED_TOKENS])
        prefill = _prefill(graphs[contract.DECODER], parts.modules[contract.DECODER])
        made = _manifest(source, parts, recipe, generation, precisions, chosen_target, prefill)
        _check_values(made)
        _write(folder, graphs, table, tell)
        shutil.copyfile(source.folder / contract.TOKENIZER, folder / contract.TOKENIZER)
        if template is not None:
            (folder / contract.CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        if "fp16" in precisions.values():
            tell("find values too large for float16", 0, 0)
            made = _narrow(folder, made, recipe.examples)
        if prove:
            tell("prove", 0, 0)
            made = _prove(folder, made, source, chosen, recipe.examples, mask_weights, accept_loss)
        tell("seal", 0, 0)
        dataclasses.replace(made, files=_files(folder)).save(folder)
        _read_back(folder)
    return output


def _weights_of(parts: registry.ModelParts) -> dict[str, list[torch.Tensor]]:
    """The weights of each graph and of the embedding table."""
    found = {name: list(module.parameters()) for name, module in parts.modules.items()}
    table, head = parts.embed_tokens, parts.model.get_output_embeddings().weight
    found[contract.DECODER] = [weight for weight in found[contract.DECODER] if weight is not table or weight is head]
    return {**found, EMBED_TOKENS: [table]}


def _complete(graph: ir.Model, name: str, parts: registry.ModelParts, read: Weights) -> None:
    """Give a traced graph its weights, still to be read, tidy it and hold it to its contract."""
    module, spec = parts.modules[name], parts.graphs[name]
    if name == contract.DECODER:
        name_cache_outputs(graph)
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))

    def value(initializer: str) -> weights.Source:
        name = read.names.get(id(own[initializer]), initializer)
        return parts.constants[name] if name in parts.constants else read.sources[name]

    weights.attach(graph, value)
    optimize(graph)
    problems = spec.mismatches(_specs(graph.graph.inputs), _specs(graph.graph.outputs))
    assert not problems, f"{name} breaks its contract: {problems}"


def _write(folder: Path, graphs: dict[str, ir.Model], table: weights.Streamed, tell: Progress) -> None:
    """Write graphs, their weights and the embedding table, telling the bytes as they go."""
    unwritten = [weights.store_array(table, folder / contract.EMBED_TOKENS)]
    for name, graph in graphs.items():
        unwritten += weights.store(graph, folder / f"{name}.onnx")
    total, done = sum(one.nbytes for one in unwritten), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        tell("write", done, total)

    weights.write(unwritten, count)


def _narrow(folder: Path, made: manifest.Manifest, prompts: tuple[str, ...]) -> manifest.Manifest:
    """Make graphs of float16 weights compute in float16; the manifest of what they are then."""
    from .proof import float16_ranges, proof  # they run the bundle, which not every export does

    dataclasses.replace(made, files=_files(folder, hashed=False)).save(folder)
    halves = [name for name in contract.GRAPHS if made.precision[name] == "fp16"]
    kept = float16_ranges.narrow(folder, halves, prompts, proof.images()[0])
    graphs = dict(made.graphs)
    if contract.DECODER in halves:
        graphs[contract.DECODER] = graphs[contract.DECODER].with_cache_dtype("float16")
    return dataclasses.replace(made, graphs=graphs, float32_nodes=kept)


def _prove(
    folder: Path,
    made: manifest.Manifest,
    source: Checkpoint,
    chosen: registry.Family,
    prompts: tuple[str, ...],
    mask_weights: MaskWeights | None,
    accept_loss: bool,
) -> manifest.Manifest:
    """Compare the bundle with the source model and put the proof into it."""
    from .proof import proof, verdict

    dataclasses.replace(made, files=_files(folder, hashed=False)).save(folder)
    evidence, weights_check = proof.gather(source, chosen, prompts, made.generation.eos_token_ids, folder)
    if mask_weights is not None:
        evidence.cases[0].expected.update(mask_weights.expectations())
    verdict.judge(folder, evidence, weights_check, made.precision, source.name, accept_loss)
    stored_proof.write(folder, evidence.cases)
    return dataclasses.replace(
        made, proof=manifest.Proof(prompts=tuple(case.prompt for case in evidence.cases), loss=evidence.loss)
    )


def _template(source: Checkpoint, recipe: registry.Recipe) -> str | None:
    """The chat template of a model that needs one, tried on the family's example."""
    if not isinstance(recipe.prompt, manifest.ChatPrompt):
        return None
    text = source.chat_template() or ""
    try:
        template = chat_template.Template(text, recipe.prompt.special_tokens)
        written = template.render(chat_template.conversation(recipe.examples[0], images=1, videos=0))
    except VLMError as error:
        raise CheckpointError(f"{source.folder}: {error}") from None
    if (count := written.count(recipe.prompt.image)) != 1:
        raise CheckpointError(
            f"{source.folder}: the chat template writes {recipe.prompt.image} {count} times for one image; it must"
            " write it once"
        )
    return text


def _check_values(made: manifest.Manifest) -> None:
    """Raise a CheckpointError if the checkpoint's settings give values that no runtime would read back."""
    problems: list[str] = []
    strict_json.read(manifest.Manifest, json.loads(json.dumps(dataclasses.asdict(made))), "", problems)
    if problems:
        raise CheckpointError(
            "the checkpoint's settings give a manifest with invalid values:\n" + "\n".join(f"  {p}" for p in problems)
        )


def _read_back(folder: Path) -> None:
    """Read the finished bundle as a runtime does; what it raises tells why the bundle cannot be used."""
    made = manifest.load(folder)
    Prompts(folder, made.prompt, made.graphs[contract.PROJECTOR].outputs[0].shape[1])


def _files(folder: Path, hashed: bool = True) -> dict[str, manifest.File]:
    """The files in `folder` but for the manifest itself."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != manifest.FILE_NAME)
    sums = weights.in_order(manifest.sha256, paths) if hashed else [""] * len(paths)
    return {
        path.relative_to(folder).as_posix(): manifest.File(path.stat().st_size, checksum)
        for path, checksum in zip(paths, sums)
    }


def _prefill(graph: ir.Model, decoder: Decoder) -> manifest.Prefill:
    """What a prefill takes. Of a token 2.5 times what is alive: 1.3 to 2.5 times were measured on models of 1 to 3
    billion weights. Of a pair of tokens that see each other a score a head, and a bias; causal attention keeps none."""
    heads = decoder.causal_lm.config.num_attention_heads
    pair = 0 if decoder.causal else 4 * (heads + 1)
    return manifest.Prefill(token=5 * activation_memory.most_alive(graph, contract.SEQUENCE) // 2, pair=pair)


def _manifest(
    source: Checkpoint,
    parts: registry.ModelParts,
    recipe: registry.Recipe,
    generation: manifest.GenerationDefaults,
    precisions: dict[str, str],
    target: targets.Target,
    prefill: manifest.Prefill,
) -> manifest.Manifest:
    """The manifest of a bundle that has no files and no proof yet."""
    adapter = {"adapter": source.adapter.name} if source.adapter else {}
    return manifest.Manifest(
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
    )


def _specs(values: list[ir.Value]) -> list[contract.TensorSpec]:
    return [
        contract.TensorSpec(v.name, v.dtype.numpy().name, tuple(d if isinstance(d, int) else str(d) for d in v.shape))
        for v in values
    ]
