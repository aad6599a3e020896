"""Exports at real size: random checkpoints with the true dimensions of models, their seconds and peak memory.

    python tests/benchmarks/real_size.py PROCESSORS [NAME]... [--precision int4] [--work FOLDER] [--picture FILE]

PROCESSORS is a folder with the processor folders that `true_sizes.py` names; those of tests/checkpoints need not be in
it. Checkpoints are bfloat16, in shards of 2 GB. The largest needs 20 GB of disk, and its bundle 7; each is deleted
after its export. With a picture, each bundle answers about it too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from speed import Worker
from true_sizes import MODELS

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
SHARD = 2 << 30


def write_checkpoint(folder: Path, processors: Path, name: str) -> tuple[int, int]:
    """A random checkpoint; its number of parameters and the bytes of its largest tensor."""
    import torch
    from onnx_vlm.export.checkpoint.checkpoint import Checkpoint
    from onnx_vlm.export.families import registry
    from onnx_vlm.export.tracing import trace
    from safetensors.torch import save_file

    model, config = MODELS[name], MODELS[name].config
    found = [path for parent in (processors, CHECKPOINTS) if (path := parent / model.processor).is_dir()]
    if not found:
        sys.exit(f"{name} needs the processor's folder {processors / model.processor}")
    others = shutil.ignore_patterns("model.safetensors", "generation_config.json", "README.md", "*.py")
    shutil.copytree(found[0], folder, ignore=others)
    (folder / "config.json").write_text(json.dumps(config))
    _change(folder / "processor_config.json", model.settings)
    (folder / "model.safetensors").touch()
    with trace.fake_weights():
        built = registry.find(config["model_type"]).build(Checkpoint(folder)).model
    shapes = {key: tuple(weight.shape) for key, weight in built.named_parameters()}
    (folder / "model.safetensors").unlink()
    noise = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    shards: list[dict[str, Any]] = [{}]
    index: dict[str, str] = {}

    def write() -> None:
        name = f"model-{len(shards):05}.safetensors"
        save_file(shards[-1], folder / name, {"format": "pt"})
        index.update(dict.fromkeys(shards[-1], name))
        shards.append({})

    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    held = 0
    for name, shape in shapes.items():
        if held and held + 2 * sizes[name] > SHARD:
            write()
            held = 0
        own = noise.roll(97 * len(index) + 31 * len(shards[-1]))  # equal weights would be stored once by some
        values = own.repeat(-(-sizes[name] // len(noise)))[: sizes[name]] / max(shape[-1], 16) ** 0.5
        shards[-1][name] = (values + float(len(shape) == 1)).reshape(shape)
        held += 2 * sizes[name]
    write()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(sizes.values()), 2 * max(sizes.values())


def _change(path: Path, changed: dict[str, Any]) -> None:
    """Change settings of a JSON file, one section deep."""
    settings = json.loads(path.read_text())
    for name, value in changed.items():
        settings[name] = settings.get(name, {}) | value if isinstance(value, dict) else value
    path.write_text(json.dumps(settings))


def export(checkpoint: Path, bundle: Path, options: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of `onnx-vlm export`, its imports included."""
    command = [sys.executable, "-c", "from onnx_vlm.runtime.cli import main; main()", "export"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, str(checkpoint), str(bundle), *options])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the export of {checkpoint} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def answer(bundle: Path, picture: Path) -> str:
    """Seconds to the first token of an answer about a picture, tokens a second after it, and peak resident bytes.

    The answers before those that count warm up.
    """
    worker = Worker("ours", bundle)
    seconds = {}
    for tokens in (1, 1, 33):
        found = worker.ask("answer", picture=str(picture), new_tokens=tokens)
        seconds[tokens] = found["answer"]
    peak = worker.ask("memory")["peak"]
    worker.stop()
    rate = 32 / (seconds[33] - seconds[1])
    return f" {found['prompt_tokens']} | {seconds[1]:.2f} s | {rate:.1f} tok/s | {peak / 1e9:.2f} GB |"


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processors", type=Path)
    parser.add_argument("names", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--picture", type=Path, help="answer about it")
    parser.add_argument("--work", type=Path, help="where checkpoints are written; a temporary folder if left out")
    parser.add_argument(
        "--keep", action="store_true", help="keep checkpoints and bundles, and use those that are there"
    )
    parser.add_argument("--prove", action="store_true", help="with the proof, which runs the source model")
    options = parser.parse_args()
    columns = ["model", "parameters", "checkpoint", "bundle", "seconds", "peak memory", "1.5 GB + 3 x largest tensor"]
    if options.picture is not None:
        columns += ["prompt's tokens", "first token", "then", "peak memory"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for name in options.names:
        with tempfile.TemporaryDirectory(dir=options.work) as temporary:
            folder = options.work / name if options.keep else Path(temporary) / name
            checkpoint, bundle, facts = folder / "checkpoint", folder / "bundle", folder / "facts.json"
            if not facts.exists():
                # In a process of its own, whose memory is not counted.
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    made = pool.submit(write_checkpoint, checkpoint, options.processors, name).result()
                facts.write_text(json.dumps(made))
            parameters, largest = json.loads(facts.read_text())
            flags = ["--precision", options.precision, "--overwrite", "--prove" if options.prove else "--no-prove"]
            seconds, peak = export(checkpoint, bundle, flags)
            sizes = f"{size(checkpoint) / 1e9:.2f} GB | {size(bundle) / 1e9:.2f} GB"
            limit = 1.5 + 3 * largest / 1e9
            row = f"{parameters / 1e9:.2f} B | {sizes} | {seconds:.0f} | {peak / 1e9:.2f} GB | {limit:.1f} GB"
            print(f"| {name} | {row} |", end="" if options.picture else "\n", flush=True)
            if options.picture is not None:
                print(answer(bundle, options.picture), flush=True)


if __name__ == "__main__":
    main()
