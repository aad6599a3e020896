"""TensorRT: the options of ONNX Runtime's provider for a bundle, and the folders of the engines that it builds.

An engine is built for ranges of shapes, a GPU and a version of TensorRT, which takes minutes. The ranges are the shape
profiles of the manifest; folders are keyed by the rest, so that no engine is used where it does not belong.
Options are those of https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

from ...graphs import GraphSpec, InputError, Manifest, ProviderError
from ...graphs.shape_profile import Profile
from .caches import cache_root
from .cuda import Machine
from .table import PROVIDERS
from .targets import Target

PROVIDER = PROVIDERS["tensorrt"].ort_name
PROTOBUF_LIMIT = 1 << 31  #: bytes; a graph with larger weights cannot be handed over as one message


def targets(manifest: Manifest, target: Target, machine: Machine, root: Path | None = None) -> dict[str, Target]:
    """The target of each graph: `target`, and what TensorRT is to know of the graph. Makes the folder of the engines.

    Args:
        root: the folder of caches; if None that of `cache_root()`.

    Raises:
        ProviderError: if the bundle is not made for TensorRT.
    """
    if not manifest.profiles:
        raise ProviderError(
            f"this bundle was exported for the target {manifest.target}, whose operators TensorRT does not have; export"
            " it again with --target portable"
        )
    folder = engine_folder(manifest, machine, root)
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: dataclasses.replace(
            target,
            resolved={
                **target.resolved,
                PROVIDER: {**target.resolved[PROVIDER], **graph_options(manifest, name, folder)},
            },
        )
        for name in manifest.profiles
    }


def graph_options(manifest: Manifest, name: str, folder: Path) -> dict[str, str]:
    """The provider options of one graph, whose engines are kept in `folder`."""
    spec, profile = manifest.graphs[name], manifest.profiles[name]
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": name,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": shapes(spec, {size: extent.smallest for size, extent in profile.items()}),
        "trt_profile_opt_shapes": shapes(spec, {size: extent.usual for size, extent in profile.items()}),
        "trt_profile_max_shapes": shapes(spec, {size: extent.largest for size, extent in profile.items()}),
    }
    if manifest.precision[name] in ("fp16", "bf16"):
        options[f"trt_{manifest.precision[name]}_enable"] = "1"
    if manifest.graph_bytes(name) >= PROTOBUF_LIMIT:
        options["trt_load_user_initializer"] = "1"
    return options


def shapes(spec: GraphSpec, sizes: dict[str, int]) -> str:
    """The shapes of a graph's inputs that vary, as the provider reads them: `name:1x3x4,other:1`."""
    varying = [tensor for tensor in spec.inputs if tensor.axes]
    return ",".join(f"{tensor.name}:{'x'.join(map(str, tensor.sized(**sizes)))}" for tensor in varying)


def check_sizes(profile: Profile, **sizes: int) -> None:
    """Raise an InputError if a call is larger than what the engines are built for."""
    for name, size in sizes.items():
        if size > profile[name].largest:
            raise InputError(
                f"the call has a {name} of {size}, the bundle's engines take up to {profile[name].largest}; ask for"
                f" less at once, or raise profiles.decoder.{name} in the bundle's manifest.json and warm it up again"
            )


def engine_folder(manifest: Manifest, machine: Machine, root: Path | None = None) -> Path:
    """Where the engines of a bundle for a machine are kept: two folders are the same if all of these are."""
    graphs = {name: file.sha256 for name, file in manifest.files.items() if ".onnx" in name}
    profiles = {
        name: {key: dataclasses.astuple(sizes) for key, sizes in p.items()} for name, p in manifest.profiles.items()
    }
    bundle = hashlib.sha256(json.dumps([graphs, profiles], sort_keys=True).encode()).hexdigest()[:16]
    device = re.sub(r"[^A-Za-z0-9.]+", "_", f"{machine.device} sm{machine.capability}")
    versions = f"tensorrt-{machine.tensorrt}-onnxruntime-{machine.onnxruntime}"
    return (root or cache_root()) / "tensorrt" / f"{bundle}-{device}-{versions}"
