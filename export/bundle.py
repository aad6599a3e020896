"""The whole export: read a checkpoint, trace its parts, write a bundle aside, prove it, rename it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch

from ..graphs import ExportError, contract, manifest
from ..graphs.transforms import expand_blocks, weights
from ..runtime import stored_proof
from . import bundle_manifest, estimate, output_folder, run_to_round, system_errors, targets
from .calibration.pictures import find as find_pictures
from .checkpoint import hub
from .checkpoint.checkpoint import Checkpoint, Weights
from .estimate import Estimate
from .families import registry
from .families.mask_decoder import MaskWeights, read_mask_weights
from .precisions import EMBED_TOKENS, FLOAT_CACHE, choose_precisions, store_weights, stored_table
from .tracing import trace
from .tracing.decoder import name_cache_outputs
from .tracing.optimize import optimize
from .tracing.patching import warn_of_untested

#: called with the name of a step, the bytes done and the bytes in all
Progress = Callable[[str, int, int], None]


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
    calibrate: str | Path | None = None,
    kv_cache: str = FLOAT_CACHE,
    overwrite: bool = False,
    prove: bool = True,
    accept_loss: bool = False,
    announce: Callable[[Estimate], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Export a checkpoint to a bundle.

    Args:
        checkpoint: a folder as `save_pretrained` writes it, with safetensors, or an id on the Hugging Face Hub.
        output: the folder to make. It appears when the bundle is complete; a failed export leaves nothing there.
        precision: of the decoder and its head. "fp32"; "fp16", computed in float16 except for values that are too large
            for it; "bf16", weights in bfloat16, computed in float32; "int8" or "int4", weights in blocks, products with
            8-bit integers and 8-bit embeddings.
        vision_precision: of vision encoder and projector. If None, "int8" for a `precision` of "int4", else the same.
        block_size: how many weights share a scale in int8 and int4: 32, 64 or 128.
        target: "onnxruntime" for graphs with ONNX Runtime's fused operators; "portable" for graphs of the ONNX standard
            alone, as TensorRT parses them, in fp32, fp16 or bf16.
        adapter: a LoRA adapter as PEFT saves it, a folder or an id. It is merged into the weights.
        mask_decoder: the file `vae-oid.npz`: the published weights of the VQ-VAE whose codes the model writes for
            `segment` prompts. With it the bundle makes masks of these codes.
        calibrate: a folder of pictures like those to be asked about; the decoder's int4 weights are rounded so that
            its answers about them change least. If it has a `prompts.txt`, its lines are the prompts, in turn.
        kv_cache: "float", or "int8" for keys and values with a quarter of float32's bytes.
        overwrite: replace `output` if it is a bundle.
        prove: run the source model on small images, a layer at a time, compare every stage of the bundle with the
            source model's with the same rounded weights and cache, and store the results in the bundle for `verify`.
        accept_loss: keep a bundle whose rounding changes the source model's answers more than is allowed.
        announce: called with the estimate of disk, memory and time before anything is written.
        progress: called with a step's name, the bytes done and the bytes in all.

    Returns:
        The path of the bundle.

    Raises:
        CheckpointError: if `checkpoint` is not a checkpoint, has an unsupported type or weights that do not fit its
            config.json.
        ExportError: if `output` exists and may not be replaced, a precision or target is unknown, there is nothing to
            calibrate or nothing to do so with, the disk has too little room, the bundle differs from the source model,
            or its rounded weights lose too much.
    """
    warn_of_untested()
    report = progress or (lambda *_: None)
    precisions = choose_precisions(precision, vision_precision, block_size, kv_cache)
    chosen_target = targets.find(target)
    chosen_target.check_precisions(precisions)
    pictures = None if calibrate is None else find_pictures(Path(calibrate), precisions[contract.DECODER])
    output = Path(output)
    output_folder.check(output, overwrite)
    source = hub.open_checkpoint(checkpoint, adapter)
    family = registry.find(source.config.get("model_type"))
    recipe = family.recipe(source)
    if recipe.vectors is not None and contract.KV_CACHE in precisions:
        raise ExportError(f"{source.name} makes vectors, and keeps no KV cache: leave kv_cache out")
    generation = registry.generation(source, recipe)
    mask_weights = read_mask_weights(mask_decoder, recipe.grounding) if mask_decoder is not None else None
    template = bundle_manifest.read_template(source, recipe)
    with output_folder.written_aside(output, overwrite) as folder:
        with trace.fake_weights():
            parts = registry.build(family, source)
            chosen_target.prepare(parts)
            stored = Weights(source, parts.model)
            if mask_weights is not None:
                parts = mask_weights.added_to(parts)
                precisions[contract.MASK_DECODER] = "fp32"
            images = 0 if pictures is None else len(pictures.paths)
            expected = estimate.estimate(_weights_of(parts), precisions, block_size, prove, images)
            if announce is not None:
                announce(expected)
            output_folder.check_room(output.parent, expected.disk)
            graphs = {}
            with chosen_target.tracing(parts):
                for name, spec in parts.graphs.items():
                    report(f"trace {name}", 0, 0)
                    graphs[name] = trace.trace(parts.modules[name], spec, chosen_target.opset)
        for name, graph in graphs.items():
            _complete(graph, name, parts, stored)
            chosen_target.check_operators(name, graph)
            store_weights(graph, name, precisions[name], block_size)
        embeddings = stored.sources[stored.names[id(parts.embed_tokens)]]
        table = stored_table(embeddings, precisions[EMBED_TOKENS])
        prefill = bundle_manifest.prefill_memory(graphs[contract.DECODER], parts.modules[contract.DECODER])
        description = bundle_manifest.gather(source, parts, recipe, generation, precisions, chosen_target, prefill)
        _write(folder, graphs, table, report)
        shutil.copyfile(source.folder / contract.TOKENIZER, folder / contract.TOKENIZER)
        if template is not None:
            (folder / contract.CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        if "fp16" in precisions.values():
            report("find values too large for float16", 0, 0)
            description = run_to_round.compute_in_float16(folder, description, recipe.examples)
        if pictures is not None:
            decoder = graphs[contract.DECODER]
            description = run_to_round.calibrate(folder, description, decoder, pictures, recipe.examples, report)
        if contract.KV_CACHE in precisions:
            report("find scales of the KV cache", 0, 0)
            description = run_to_round.round_cache(folder, description, recipe.examples)
        if pictures is None:  # calibrated scales are no multiples of one number
            expand_blocks.write_columns(folder / f"{contract.DECODER}.onnx")
        if prove:
            report("prove", 0, 0)
            description = _prove(folder, description, source, family, recipe.examples, mask_weights, accept_loss)
        report("seal", 0, 0)
        dataclasses.replace(description, files=bundle_manifest.list_files(folder)).save(folder)
        bundle_manifest.read_back(folder)
    return output


def _weights_of(parts: registry.ModelParts) -> dict[str, list[torch.Tensor]]:
    """The weights of each graph and of the embedding table."""
    by_graph = {name: list(module.parameters()) for name, module in parts.modules.items()}
    table, head = parts.embed_tokens, parts.model.get_output_embeddings()
    if head is None or table is not head.weight:
        by_graph[contract.DECODER] = [weight for weight in by_graph[contract.DECODER] if weight is not table]
    return {**by_graph, EMBED_TOKENS: [table]}


def _complete(graph: ir.Model, name: str, parts: registry.ModelParts, stored: Weights) -> None:
    """Give a traced graph its weights, which are read later, optimise it and check it against its contract."""
    module = parts.modules[name]
    if name == contract.DECODER:
        name_cache_outputs(graph)
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))

    def value(initializer: str) -> weights.Source:
        name = stored.names.get(id(tensors[initializer]), initializer)
        return parts.constants[name] if name in parts.constants else stored.sources[name]

    weights.attach(graph, value)
    optimize(graph)
    problems = parts.graphs[name].mismatches(_specs(graph.graph.inputs), _specs(graph.graph.outputs))
    assert not problems, f"{name} breaks its contract: {problems}"


def _write(folder: Path, graphs: dict[str, ir.Model], table: weights.Streamed, report: Progress) -> None:
    """Write graphs, their weights and the embedding table, and report the bytes written."""
    unwritten = [weights.store_array(table, folder / contract.EMBED_TOKENS)]
    for name, graph in graphs.items():
        unwritten += weights.store(graph, folder / f"{name}.onnx")
    total = sum(tensors.nbytes for tensors in unwritten)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        report("write", done, total)

    weights.write(unwritten, count)


def _prove(
    folder: Path,
    description: manifest.Manifest,
    source: Checkpoint,
    family: registry.Family,
    prompts: tuple[str, ...],
    mask_weights: MaskWeights | None,
    accept_loss: bool,
) -> manifest.Manifest:
    """Compare the bundle with the source model and store the proof; returns the manifest with it."""
    from .proof import proof, verdict

    dataclasses.replace(description, files=bundle_manifest.list_files(folder, hashed=False)).save(folder)
    evidence, weights_check = proof.gather(source, family, prompts, description.generation.eos_token_ids, folder)
    if mask_weights is not None:
        evidence.cases[0].expected.update(mask_weights.expectations())
    verdict.judge(folder, evidence, weights_check, description.precision, source.name, accept_loss)
    verdict.judge_columns(folder, evidence)
    stored_proof.write(folder, evidence.cases)
    return dataclasses.replace(
        description, proof=manifest.Proof(prompts=tuple(case.prompt for case in evidence.cases), loss=evidence.loss)
    )


def _specs(values: list[ir.Value]) -> list[contract.TensorSpec]:
    return [
        contract.TensorSpec(v.name, v.dtype.numpy().name, tuple(d if isinstance(d, int) else str(d) for d in v.shape))
        for v in values
    ]
