"""What a bundle is and what came out of it, as tables for people."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from ...graphs import Manifest, TensorSpec, contract
from ..bench import Figures
from ..grounding.types import Box
from ..providers.doctor import Report
from ..verify import Check


def describe(manifest: Manifest) -> RenderableType:
    """Where a bundle comes from, its graphs with their inputs and outputs, and how it treats prompts and pictures."""
    return Group(_origin(manifest), "", _graphs(manifest), "", _behaviour(manifest))


def checks(found: list[Check]) -> Table:
    """The comparisons of `verify`."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("", "stage", "precision"):
        table.add_column(heading)
    for heading in ("error", "allowed"):
        table.add_column(heading, justify="right")
    table.add_column("", style="dim")
    for check in found:
        mark = "[green]ok[/]" if check.passed else "[bold red]no[/]"
        error, allowed = (f"{value:.1e}" if value else "0" for value in (check.error, check.tolerance))
        table.add_row(mark, escape(check.name), check.precision, error, allowed, escape(check.note))
    return table


def report(found: Report) -> RenderableType:
    """What `doctor` found."""
    about = _rows()
    packages = ", ".join(f"{name} {version}" for name, version in found.packages.items())
    about.add_row("packages", escape(packages or "none that pip knows"))
    about.add_row("onnxruntime", f"{found.version}, for {'the CPU' if found.cuda is None else f'CUDA {found.cuda}'}")
    about.add_row("build", escape(found.build))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("", "provider", "libraries", "devices", ""):
        table.add_column(heading)
    for attempt in found.attempts:
        mark = "[green]ok[/]" if attempt.runs else "[bold red]no[/]" if attempt.built else "[dim]-[/]"
        loaded = sum(library.error is None for library in attempt.libraries)
        libraries = f"{loaded} of {len(attempt.libraries)} load" if attempt.libraries else ""
        said = "ran a graph of one node" if attempt.runs else f"{attempt.reason}\nto get it: {attempt.remedy}"
        devices = "\n".join(f"{number} {name}" for number, name in enumerate(attempt.devices))
        table.add_row(mark, attempt.provider, libraries, escape(devices), escape(said))
    end = f"provider auto is {found.auto}" if found.auto else "no provider runs"
    clash = [f"[bold red]{escape(found.clash)}[/]", ""] if found.clash else []
    return Group(about, "", *clash, table, "", end)


def boxes(found: list[Box]) -> Table:
    """The boxes of an answer."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("label")
    for edge in ("xmin", "ymin", "xmax", "ymax"):
        table.add_column(edge, justify="right")
    for box in found:
        table.add_row(escape(box.label), *(f"{edge:.1f}" for edge in (box.xmin, box.ymin, box.xmax, box.ymax)))
    return table


def times(timings: dict[str, float]) -> str:
    """How long the stages of an answer took, in a line."""
    stages = ("preprocess", "vision", "prefill", "decode")
    return "  ".join(f"{stage} {1000 * timings[stage]:.1f} ms" for stage in stages) + (
        f"  ({timings['tokens_per_second']:.0f} tokens/s)"
    )


def figures(found: Figures) -> Table:
    """The measurements of `bench`."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("a second", justify="right")
    table.add_column("", style="dim")
    table.add_row("load", f"{found.load:.2f} s", "", f"provider {found.provider}")
    table.add_row("preprocess", f"{1000 * found.preprocess:.1f} ms")
    table.add_row(
        "vision", f"{1000 * found.vision:.1f} ms", f"{found.tiles / found.vision:.1f} tiles", f"{found.tiles} tiles"
    )
    rate = f"{found.prompt_tokens / found.prefill:.0f} tokens"
    table.add_row("prefill", f"{1000 * found.prefill:.1f} ms", rate, f"{found.prompt_tokens} tokens")
    limit = (
        ""
        if found.bandwidth is None
        else (f"{100 * found.limit_share:.0f} % of what {found.bandwidth / 1e9:.1f} GB/s allow")
    )
    table.add_row("decode", f"{1000 * found.decode:.1f} ms", f"{1 / found.decode:.1f} tokens", limit)
    if found.peak_memory is not None:
        whole = f"bundle {found.bundle_bytes / 1e9:.2f} GB"
        table.add_row("peak memory", f"{found.peak_memory / 1e9:.2f} GB", "", whole)
    return table


def _rows() -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    return table


def _origin(manifest: Manifest) -> Table:
    table = _rows()
    table.add_row("made from", f"{manifest.source['checkpoint']} ({manifest.source['model_type']})")
    table.add_row("made with", ", ".join(f"{name} {version}" for name, version in manifest.made_with.items()))
    table.add_row("format", str(manifest.format))
    table.add_row("size", _megabytes(sum(file.size for file in manifest.files.values())))
    return table


def _graphs(manifest: Manifest) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("part", "precision"):
        table.add_column(heading)
    table.add_column("size", justify="right")
    for heading in ("inputs", "outputs"):
        table.add_column(heading)
    for name, spec in manifest.graphs.items():
        inputs, outputs = ("\n".join(_tensors(specs)) for specs in (spec.inputs, spec.outputs))
        table.add_row(name, manifest.precision[name], _megabytes(manifest.graph_bytes(name)), inputs, outputs)
    size = manifest.files[contract.EMBED_TOKENS].size
    table.add_row("embed_tokens", manifest.precision["embed_tokens"], _megabytes(size))
    return table


def _tensors(specs: tuple[TensorSpec, ...]) -> Iterator[str]:
    """One line a tensor, one for all layers of the cache."""
    layers = [spec for spec in specs if re.search(r"\.\d+\.", spec.name)]
    yield from (str(spec) for spec in specs if spec not in layers)
    if layers:
        last = layers[-1].name.split(".")[1]
        yield str(layers[0]).replace(".0.key", f".0-{last}.key/value")


def _behaviour(manifest: Manifest) -> Table:
    table = _rows()
    image, generation = manifest.image, manifest.generation
    if image.kind == "tiles":
        table.add_row("pictures", f"thumbnail and up to {image.max_tiles} tiles of {image.size} x {image.size}")
    else:
        table.add_row("pictures", f"{image.height} x {image.width}")
    if manifest.video is not None:
        tile = manifest.video.tile
        table.add_row("videos", f"up to {manifest.video.frames} frames of {tile.height} x {tile.width}")
    table.add_row("prompts", {"chat": "conversations", "plain": "texts"}[manifest.prompt.kind])
    kinds = {"locations": "location tokens", "patches": "phrases with patch tokens"}
    table.add_row("boxes", kinds[manifest.grounding.kind] if manifest.grounding else "none")
    if getattr(manifest.grounding, "codes", 0):
        drawn = contract.MASK_DECODER in manifest.graphs
        table.add_row("masks", "codes and pixels" if drawn else "codes alone; export with --mask-decoder for pixels")
    if manifest.proof is not None:
        table.add_row("proof", f"a picture and {manifest.proof.prompt!r}")
    kept = [f"{len(nodes)} nodes of {name}" for name, nodes in manifest.float32_nodes.items() if nodes]
    if kept:
        table.add_row("kept in float32", ", ".join(kept))
    table.add_row("positions", str(generation.max_positions))
    table.add_row("answers end at", ", ".join(map(str, generation.eos_token_ids)))
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
