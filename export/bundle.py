"""The whole export: read a checkpoint, trace its parts, write a bundle aside, rename it into place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..graphs import ExportError, contract, manifest, quantize, weights
from . import family, hub, trace
from .checkpoint import Checkpoint, Weights
from .decoder import name_cache_outputs
from .optimize import optimize

#: told the name of a step, what is done of it and the whole, in bytes
Progress = Callable[[str, int, int], None]
DEFAULT_NEW_TOKENS = 256
EMBED_TOKENS = "embed_tokens"  #: the table's name among the precisions
BITS = {"fp32": None, "int8": 8, "int4": 4}
BLOCK_SIZE = 32
MADE_WITH = ("onnx-vlm", "torch", "transformers", "onnx", "onnxscript", "onnx-ir")


def export_model(
    checkpoint: str | Path,
    output: str | Path,
    *,
    precision: str = "fp32",
    vision_precision: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Export a checkpoint to a bundle.

    Args:
        checkpoint: a folder as `save_pretrained` writes it, with safetensors; or an id on the Hugging Face Hub.
        output: the folder to make. It appears when the bundle is complete, and not at all if the export fails.
        precision: of the decoder's weights, its head included: "fp32", or "int8" or "int4" in blocks of 32, with
            embeddings in float16. Results are computed with 8-bit integers then.
        vision_precision: of vision encoder and projector; if None "int8" where `precision` is "int4", else the same.
        overwrite: replace `output` if it is a bundle already.
        progress: called with a step's name, the bytes done and the bytes in all.

    Returns:
        The path of the bundle.

    Raises:
        CheckpointError: if `checkpoint` is none, is of an unsupported type or has weights that do not fit its config.
        ExportError: if `output` exists and may not be replaced, or a precision is unknown.
    """
    tell = progress or (lambda *_: None)
    target = Path(output)
    precisions = _precisions(precision, vision_precision)
    _check_target(target, overwrite)
    source = Checkpoint(hub.local(checkpoint), name=Path(checkpoint).resolve().name)
    chosen = family.find(source.config.get("model_type"))
    behaviour = chosen.behaviour(source)
    with _written_aside(target) as folder:
        tell("trace", 0, 0)
        with trace.fake_weights():
            stages = chosen.build(source)
            read = Weights(source, stages.model)
            graphs = {name: trace.trace(stages.modules[name], spec) for name, spec in stages.graphs.items()}
        for name, graph in graphs.items():
            _complete(graph, name, stages, read)
            if bits := BITS[precisions[name]]:
                quantize.quantize(graph, bits, BLOCK_SIZE)
        _write(folder, graphs, stages, read, precisions[EMBED_TOKENS], tell)
        shutil.copyfile(source.folder / contract.TOKENIZER, folder / contract.TOKENIZER)
        if isinstance(behaviour.prompt, manifest.Chat):
            (folder / contract.CHAT_TEMPLATE).write_text(source.chat_template(), encoding="utf-8")
        tell("seal", 0, 0)
        _manifest(source, stages, behaviour, precisions, folder).save(folder)
    return target


def _precisions(precision: str, vision_precision: str | None) -> dict[str, str]:
    """The precision of each graph and of the embedding table."""
    vision = vision_precision or ("int8" if precision == "int4" else precision)
    for given in (precision, vision):
        if given not in BITS:
            raise ExportError(f"precision {given!r} is not supported; supported: {', '.join(BITS)}")
    return {
        contract.VISION_ENCODER: vision,
        contract.PROJECTOR: vision,
        contract.DECODER: precision,
        EMBED_TOKENS: "fp16" if BITS[precision] else "fp32",
    }


def _complete(graph: ir.Model, name: str, stages: family.Stages, read: Weights) -> None:
    """Give a traced graph its weights, still to be read, tidy it and hold it to its contract."""
    module, spec = stages.modules[name], stages.graphs[name]
    if name == contract.DECODER:
        name_cache_outputs(graph)
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))

    def value(initializer: str) -> np.ndarray:
        name = read.names.get(id(own[initializer]), initializer)
        return stages.constants[name] if name in stages.constants else read.read(name)

    weights.attach(graph, value)
    optimize(graph)
    problems = spec.mismatches(_specs(graph.graph.inputs), _specs(graph.graph.outputs))
    assert not problems, f"{name} breaks its contract: {problems}"


def _write(
    folder: Path, graphs: dict[str, ir.Model], stages: family.Stages, read: Weights, embeddings: str, tell: Progress
) -> None:
    """Write graphs, their weights and the embedding table, telling the bytes as they go."""
    dtype = np.dtype({"fp32": np.float32, "fp16": np.float16}[embeddings])
    table = stages.embed_tokens.numel() * dtype.itemsize
    total = table + sum(map(weights.stored_bytes, graphs.values()))
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        tell("write", done, total)

    for name, graph in graphs.items():
        weights.save(graph, folder / f"{name}.onnx", count)
    np.save(folder / contract.EMBED_TOKENS, read.read(read.names[id(stages.embed_tokens)]).astype(dtype))
    count(table)


def _manifest(
    source: Checkpoint, stages: family.Stages, behaviour: family.Behaviour, precisions: dict[str, str], folder: Path
) -> manifest.Manifest:
    """The manifest of the files that are in `folder`."""
    files = {path.name: manifest.File(path.stat().st_size, manifest.sha256(path)) for path in sorted(folder.iterdir())}
    return manifest.Manifest(
        format=manifest.FORMAT,
        source={"checkpoint": source.name, "model_type": source.config["model_type"]},
        made_with={package: version(package) for package in MADE_WITH},
        precision=precisions,
        graphs=dict(stages.graphs),
        image=behaviour.image,
        video=behaviour.video,
        prompt=behaviour.prompt,
        embedding=behaviour.embedding,
        generation=_generation(source, behaviour),
        grounding=behaviour.grounding,
        files=files,
    )


def _specs(values: list[ir.Value]) -> list[contract.TensorSpec]:
    return [
        contract.TensorSpec(v.name, v.dtype.numpy().name, tuple(d if isinstance(d, int) else str(d) for d in v.shape))
        for v in values
    ]


def _generation(source: Checkpoint, behaviour: family.Behaviour) -> manifest.Generation:
    settings = source.json("generation_config.json")
    end = settings.get("eos_token_id", behaviour.eos_token_id)
    return manifest.Generation(
        eos_token_ids=tuple(end) if isinstance(end, list) else (end,) if end is not None else (),
        max_new_tokens=settings.get("max_new_tokens") or DEFAULT_NEW_TOKENS,
        max_positions=behaviour.max_positions,
    )


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise ExportError(f"{target} exists; choose another folder, or replace it with --overwrite (overwrite=True)")
    if not (target / manifest.FILE_NAME).is_file():
        raise ExportError(f"{target} exists and is no bundle, so it is not overwritten; choose another folder")


@contextmanager
def _written_aside(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its name when all went well and vanishes when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        folder.chmod(0o755)
        yield folder
        if target.exists():
            old = folder.with_name(f"{folder.name}.old")
            target.rename(old)
            folder.rename(target)
            shutil.rmtree(old)
        else:
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
