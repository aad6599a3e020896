"""Exports at real size: random checkpoints with the true dimensions of six models, their seconds and peak memory.

    python tests/benchmarks/real_size.py PROCESSORS [NAME]... [--precision int4] [--work FOLDER]

PROCESSORS is a folder with the processor folders that `MODELS` names. Checkpoints are bfloat16, in shards of 2 GB. The
largest needs 20 GB of disk, and its bundle 7; each is deleted after its export.
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

LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 11520,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    },
}
PE_LARGE = {
    "model_type": "timm_wrapper",
    "architecture": "vit_pe_lang_large_patch14_448",
    "do_pooling": True,
    "model_args": {
        "embed_dim": 1024,
        "depth": 23,
        "img_size": [448, 448],
        "global_pool": "",
        "use_post_transformer_norm": False,
        "init_values": 0.1,
        "ref_feat_shape": [32, 32],
    },
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "image_size": 224,
    "patch_size": 14,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "vision_use_head": False,
}


def gemma(kind: str, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "model_type": "paligemma",
        "image_token_index": 257152,
        "projection_dim": hidden,
        "vision_config": SIGLIP,
        "text_config": {
            "model_type": kind,
            "vocab_size": 257216,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 256,
        },
    }


PALIGEMMA = gemma("gemma", 2048, 16384, 18, 8, 1)
#: name -> processor folder and config.json
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "PerceptionLM-1B": (
        "perception-lm-1b",
        {
            "model_type": "perception_lm",
            "projector_pooling_ratio": 2,
            "vision_use_cls_token": True,
            "image_token_id": 128002,
            "video_token_id": 128003,
            "text_config": LLAMA_1B,
            "vision_config": PE_LARGE,
        },
    ),
    "SmolVLM-256M": (
        "smolvlm-256m",
        {
            "model_type": "idefics3",
            "scale_factor": 4,
            "image_token_id": 49190,
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "llama",
                "vocab_size": 49280,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "head_dim": 64,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
                "tie_word_embeddings": False,
            },
            "vision_config": {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "image_size": 512,
                "patch_size": 16,
            },
        },
    ),
    "KOSMOS-2": ("kosmos-2-patch14-224", {"model_type": "kosmos-2"}),
    "PaliGemma-3B-224": ("paligemma-3b-224", PALIGEMMA),
    "PaliGemma-2-3B-224": ("paligemma-3b-224", gemma("gemma2", 2304, 9216, 26, 8, 4)),
    "PaliGemma-2-10B-224": ("paligemma-3b-224", gemma("gemma2", 3584, 14336, 42, 16, 8)),
    "ColPali-3B-448": (
        "paligemma-3b-224",
        {
            "model_type": "colpali",
            "embedding_dim": 128,
            "vlm_config": PALIGEMMA | {"vision_config": SIGLIP | {"image_size": 448}},
        },
    ),
}
SHARD = 2 << 30


def write_checkpoint(folder: Path, files: Path, config: dict[str, Any]) -> tuple[int, int]:
    """A random checkpoint; its number of parameters and the bytes of its largest tensor."""
    import torch
    from onnx_vlm.export.checkpoint.checkpoint import Checkpoint
    from onnx_vlm.export.families import registry
    from onnx_vlm.export.tracing import trace
    from safetensors.torch import save_file

    shutil.copytree(files, folder)
    (folder / "config.json").write_text(json.dumps(config))
    if config["model_type"] == "colpali":
        _make_colpali_processor(folder / "processor_config.json")
    (folder / "model.safetensors").touch()
    with trace.fake_weights():
        model = registry.find(config["model_type"]).build(Checkpoint(folder)).model
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
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


def _make_colpali_processor(path: Path) -> None:
    """Change the settings of PaliGemma's processor at 224 pixels to those of ColPali's at 448."""
    settings = json.loads(path.read_text())
    settings["processor_class"] = "ColPaliProcessor"
    settings["image_processor"] |= {"size": {"height": 448, "width": 448}, "image_seq_length": 1024}
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


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processors", type=Path)
    parser.add_argument("names", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--work", type=Path, help="where checkpoints are written; a temporary folder if left out")
    parser.add_argument(
        "--keep", action="store_true", help="keep checkpoints and bundles, and use those that are there"
    )
    parser.add_argument("--prove", action="store_true", help="with the proof, which runs the source model")
    options = parser.parse_args()
    print("| model | parameters | checkpoint | bundle | seconds | peak memory | 1.5 GB + 3 x largest tensor |")
    print("|---|---|---|---|---|---|---|")
    for name in options.names:
        files, config = MODELS[name]
        with tempfile.TemporaryDirectory(dir=options.work) as temporary:
            folder = options.work / name if options.keep else Path(temporary) / name
            checkpoint, bundle, facts = folder / "checkpoint", folder / "bundle", folder / "facts.json"
            if not facts.exists():
                # In a process of its own, whose memory is not counted.
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    made = pool.submit(write_checkpoint, checkpoint, options.processors / files, config).result()
                facts.write_text(json.dumps(made))
            parameters, largest = json.loads(facts.read_text())
            flags = ["--precision", options.precision, "--overwrite", "--prove" if options.prove else "--no-prove"]
            seconds, peak = export(checkpoint, bundle, flags)
            sizes = f"{size(checkpoint) / 1e9:.2f} GB | {size(bundle) / 1e9:.2f} GB"
            limit = 1.5 + 3 * largest / 1e9
            row = f"{parameters / 1e9:.2f} B | {sizes} | {seconds:.0f} | {peak / 1e9:.2f} GB | {limit:.1f} GB"
            print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
