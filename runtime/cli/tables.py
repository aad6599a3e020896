"""A bundle, and what the commands found out about it, as tables for people."""

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
    """Where a bundle comes from, its graphs with their inputs and outputs, and how it treats prompts and images."""
    return Group(_origin(manifest), "", _graphs(manifest), "", _behaviour(manifest))


def checks(comparisons: list[Check]) -> Table:
    """The comparisons of `verify`."""
    table = _table("", "stage", "precision", ("error", "right"), ("allowed", "right"), "")
    table.columns[-1].style = "dim"
    for check in comparisons:
        mark = "[green]ok[/]" if check.passed else "[bold red]no[/]"
        error, allowed = (f"{value:.1e}" if value else "0" for value in (check.error, check.tolerance))
        table.add_row(mark, escape(check.name), check.precision, error, allowed, escape(check.note))
    return table


def report(examined: Report) -> RenderableType:
    """The report of `doctor`."""
    about = _rows()
    packages = ", ".join(f"{name} {version}" for name, version in examined.packages.items())
    about.add_row("packages", escape(packages or "none that pip knows"))
    about.add_row(
        "onnxruntime", f"{examined.version}, for {'the CPU' if examined.cuda is None else f'CUDA {examined.cuda}'}"
    )
    about.add_row("build", escape(examined.build))
    table = _table("", "provider", "libraries", "devices", "")
    for attempt in examined.attempts:
        mark = "[green]ok[/]" if attempt.runs else "[bold red]no[/]" if attempt.built else "[dim]-[/]"
        loaded = sum(library.error is None for library in attempt.libraries)
        libraries = f"{loaded} of {len(attempt.libraries)} load" if attempt.libraries else ""
        result = "ran a graph of one node" if attempt.runs else f"{attempt.reason}\nto get it: {attempt.remedy}"
        devices = "\n".join(f"{device_id} {name}" for device_id, name in enumerate(attempt.devices))
        table.add_row(mark, attempt.provider, libraries, escape(devices), escape(result))
    end = f"provider auto is {examined.auto}" if examined.auto else "no provider runs"
    clash = [f"[bold red]{escape(examined.clash)}[/]", ""] if examined.clash else []
    return Group(about, "", *clash, table, "", end)


def boxes(answered: list[Box]) -> Table:
    """The boxes of an answer."""
    table = _table("label", *((edge, "right") for edge in ("xmin", "ymin", "xmax", "ymax")))
    for box in answered:
        table.add_row(escape(box.label), *(f"{edge:.1f}" for edge in (box.xmin, box.ymin, box.xmax, box.ymax)))
    return table


def times(timings: dict[str, float]) -> str:
    """How long the stages of an answer took, in one line."""
    stages = ("preprocess", "vision", "prefill", "decode")
    return "  ".join(f"{stage} {1000 * timings[stage]:.1f} ms" for stage in stages) + (
        f"  ({timings['tokens_per_second']:.0f} tokens/s)"
    )


def figures(measured: Figures) -> Table:
    """The measurements of `bench`."""
    table = _table("stage", ("time", "right"), ("a second", "right"), "")
    table.columns[-1].style = "dim"
    table.add_row("load", f"{measured.load:.2f} s", "", f"provider {measured.provider}")
    table.add_row("preprocess", f"{1000 * measured.preprocess:.1f} ms")
    rate = f"{measured.tiles / measured.vision:.1f} tiles"
    table.add_row("vision", f"{1000 * measured.vision:.1f} ms", rate, f"{measured.tiles} tiles")
    rate = f"{measured.prompt_tokens / measured.prefill:.0f} tokens"
    table.add_row("prefill", f"{1000 * measured.prefill:.1f} ms", rate, f"{measured.prompt_tokens} tokens")
    share = measured.limit_share
    limit = "" if share is None else f"{100 * share:.0f} % of what the memory's bandwidth allows"
    table.add_row("decode", f"{1000 * measured.decode:.1f} ms", f"{1 / measured.decode:.1f} tokens", limit)
    if measured.bandwidth is not None:
        caches = f"caches hold {measured.cache_bytes / 1e9:.2f} GB" if measured.cache_bytes else "caches are unknown"
        method = f"{measured.bandwidth_threads} threads read {measured.bandwidth_size / 1e9:.2f} GB; {caches}"
        table.add_row("memory read", "", f"{measured.bandwidth / 1e9:.1f} GB", method)
    if measured.peak_memory is not None:
        size = f"bundle {measured.bundle_bytes / 1e9:.2f} GB"
        table.add_row("peak memory", f"{measured.peak_memory / 1e9:.2f} GB", "", size)
    return table


def _table(*headings: str | tuple[str, str]) -> Table:
    """An empty table; a heading may name how its column is justified."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        name, justify = (heading, "left") if isinstance(heading, str) else heading
        table.add_column(name, justify=justify)
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
    table = _table("part", "precision", ("size", "right"), "inputs", "outputs")
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
        table.add_row("images", f"thumbnail and up to {image.max_tiles} tiles of {image.size} x {image.size}")
    elif image.kind == "crops":
        table.add_row("images", f"{image.height} x {image.width}, and up to {image.most} parts of long ones")
    elif image.kind == "grid":
        tiles = image.most_tiles - 1
        added = f", and a grid of up to {tiles} tiles" if tiles else ""
        table.add_row("images", f"the whole as {image.size} x {image.size}{added}")
    else:
        cut = f", the middle of an image whose shorter side has {image.shortest_edge}" if image.kind == "crop" else ""
        table.add_row("images", f"{image.height} x {image.width}{cut}")
    if manifest.video is not None:
        tile = manifest.video.tile
        table.add_row("videos", f"up to {manifest.video.frames} frames of {tile.height} x {tile.width}")
    table.add_row("prompts", {"chat": "conversations", "plain": "texts"}[manifest.prompt.kind])
    if manifest.vectors is not None:
        table.add_row("makes", f"vectors of {manifest.vocab} numbers; pages say {manifest.vectors.page!r}")
    kinds = {"locations": "location tokens", "patches": "phrases with patch tokens"}
    table.add_row("boxes", kinds[manifest.grounding.kind] if manifest.grounding else "none")
    if getattr(manifest.grounding, "codes", 0):
        drawn = contract.MASK_DECODER in manifest.graphs
        table.add_row("masks", "codes and pixels" if drawn else "codes alone; export with --mask-decoder for pixels")
    if manifest.proof is not None:
        prompts = manifest.proof.prompts or (manifest.proof.prompt,)
        table.add_row("proof", f"{len(prompts)} images with {', '.join(map(repr, dict.fromkeys(prompts)))}")
        if manifest.proof.loss is not None:
            table.add_row("loss", str(manifest.proof.loss))
    if (calibration := manifest.calibration) is not None:
        counted = f"{calibration.images} images and {calibration.prompts} prompts"
        table.add_row("calibrated", f"the decoder, on {counted}")
    wide = [f"{len(nodes)} nodes of {name}" for name, nodes in manifest.float32_nodes.items() if nodes]
    if wide:
        table.add_row("kept in float32", ", ".join(wide))
    if manifest.rounds_cache:
        table.add_row("KV cache", f"rounded to {manifest.precision[contract.KV_CACHE]}")
    table.add_row("positions", str(generation.max_positions))
    table.add_row("answers end at", ", ".join(map(str, generation.eos_token_ids)))
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
