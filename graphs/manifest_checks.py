"""Checks of a manifest: its files exist, its sizes are possible and agree, its names are known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from . import contract, shape_profile
from .precision import CACHES, PRECISIONS

if TYPE_CHECKING:
    from .image_recipes import Resize
    from .manifest import Manifest

EDGES = ("xmax", "xmin", "ymax", "ymin")
#: Ranks of the tensors that each graph begins with, inputs and outputs.
RANKS = {
    contract.VISION_ENCODER: ((4,), (3,)),
    contract.PROJECTOR: ((3,), (3,)),
    contract.DECODER: ((3, 1, 0, 2), (3,)),
    contract.MASK_DECODER: ((2,), (3,)),
}
MAX_SIDE = 1 << 14
MAX_ID = 1 << 31
MAX_TILES = 1000

#: the name of a number, its value, its least and its largest allowed value
Bound = tuple[str, float, int, int]


def problems(manifest: Manifest, folder: Path) -> list[str]:
    """Every problem of a manifest whose fields have the right types, as sentences that name field and value."""
    faults = [*_missing(manifest, folder), *_graphs(manifest)]
    if not faults:  # the other checks look into the graphs
        faults = [*_sizes(manifest), *_values(manifest), *_at_odds(manifest)]
    return [*faults, *_files(manifest, folder)]


def _missing(manifest: Manifest, folder: Path) -> Iterator[str]:
    yield from (f"graphs.{name}: missing" for name in contract.GRAPHS if name not in manifest.graphs)
    needed = {contract.EMBED_TOKENS, contract.TOKENIZER}
    needed |= {f"{name}.onnx" for name in (*contract.GRAPHS, *manifest.graphs)}
    needed |= {path.name for name in manifest.graphs for path in folder.glob(f"{name}.onnx*")}
    needed |= {contract.CHAT_TEMPLATE} if manifest.prompt.kind == "chat" else set()
    needed |= {contract.PROOF_IMAGE, contract.PROOF_ARRAYS} if manifest.proof else set()
    yield from (f"files.{name}: missing" for name in sorted(needed - manifest.files.keys()))


def _graphs(manifest: Manifest) -> Iterator[str]:
    """Unknown graphs, and tensors of ranks or sizes that are not allowed."""
    for graph, spec in manifest.graphs.items():
        if graph not in RANKS:
            yield f"graphs.{graph}: unknown; known: {', '.join(RANKS)}"
            continue
        for kind, tensors, ranks in zip(("inputs", "outputs"), (spec.inputs, spec.outputs), RANKS[graph]):
            where = f"graphs.{graph}.{kind}"
            actual = tuple(len(tensor.shape) for tensor in tensors[: len(ranks)])
            if actual != ranks:
                yield f"{where}: ranks {actual}, {ranks} are expected"
            for tensor in tensors:
                if not all(isinstance(size, str) or 1 <= size < MAX_ID for size in tensor.shape):
                    yield f"{where}.{tensor.name}: shape {tensor.shape} has a size that is not 1 or more"
        if any(isinstance(size, str) for size in _fixed(graph, spec)):
            yield f"graphs.{graph}: a size varies that must be fixed, in {', '.join(map(str, spec.inputs[:1]))}"
        if graph == contract.DECODER and not 0 < len(spec.inputs) - len(RANKS[graph][0]) == len(spec.outputs) - 1:
            yield f"graphs.{graph}: {len(spec.inputs)} inputs and {len(spec.outputs)} outputs do not pair"


def _fixed(graph: str, spec: contract.GraphSpec) -> list[int | str]:
    """Sizes that no call changes: all but the batch, and in the decoder the sequence."""
    tensors = (*spec.inputs[:1], *spec.outputs[:1])
    return [size for tensor in tensors for size in tensor.shape[2 if graph == contract.DECODER else 1 :]]


def _sizes(manifest: Manifest) -> Iterator[str]:
    for name, value, least, most in _bounds(manifest):
        if not least <= value <= most:
            yield f"{name}: {value} is not from {least} to {most}"


def _bounds(manifest: Manifest) -> Iterator[Bound]:
    image, video, prompt = manifest.image, manifest.video, manifest.prompt
    if image.kind == "tiles":
        yield "image.max_tiles", image.max_tiles, 1, MAX_TILES
    elif image.kind == "grid":
        yield "image.size", image.size, 1, MAX_SIDE
        yield "image.longest_edge", image.longest_edge, 1, max(image.size, 1) * int(MAX_TILES**0.5)
    elif image.kind == "crop":
        yield "image.shortest_edge", image.shortest_edge, max(image.height, image.width), MAX_SIDE
    elif image.kind == "crops":
        yield "image.smallest", image.smallest, 1, MAX_SIDE
        yield "image.most", image.most, 1, MAX_TILES
        yield "image.ratio", image.ratio, 1, MAX_SIDE
    for name, resized in _resized(manifest).items():
        if resized.longest_edge is not None:
            yield f"{name}.longest_edge", resized.longest_edge, 1, MAX_SIDE
    if video is not None:
        yield "video.frames", video.frames, 1, 10_000
        yield "video.margin", video.margin, 0, 3600
        if video.rate is not None:
            yield "video.rate", video.rate, 0, 1000
    yield "prompt.image_token_id", prompt.image_token_id, 0, MAX_ID
    if prompt.kind == "chat":
        if prompt.video_token_id is not None:
            yield "prompt.video_token_id", prompt.video_token_id, 0, MAX_ID
    else:
        if prompt.counted_from is not None:
            yield "prompt.counted_from", prompt.counted_from, 0, MAX_ID
        yield "prompt.min_images", prompt.min_images, 0, MAX_SIDE
        if prompt.max_images is not None:
            yield "prompt.max_images", prompt.max_images, prompt.min_images, MAX_SIDE
    generation = manifest.generation
    yield "generation.max_new_tokens", generation.max_new_tokens, 1, MAX_ID
    yield "generation.max_positions", generation.max_positions, 1, MAX_ID
    if generation.max_length is not None:
        yield "generation.max_length", generation.max_length, 1, MAX_ID
    for index, token in enumerate(generation.eos_token_ids):
        yield f"generation.eos_token_ids.{index}", token, 0, MAX_ID
    yield "prefill.token", manifest.prefill.token, 0, 1 << 40
    yield "prefill.pair", manifest.prefill.pair, 0, 1 << 40
    grounding = manifest.grounding
    if grounding is None:
        return
    if grounding.kind == "locations":
        yield "grounding.bins", grounding.bins, 2, 1 << 16
        yield "grounding.codes", grounding.codes, 0, 1 << 10
        yield "grounding.code_values", grounding.code_values, min(1, grounding.codes), 1 << 16
    else:
        yield "grounding.side", grounding.side, 1, 256


def _resized(manifest: Manifest) -> dict[str, Resize]:
    """The recipes that make one tile, by their names."""
    recipes = {"image": manifest.image} if manifest.image.kind == "resize" else {}
    return recipes | ({"video.tile": manifest.video.tile} if manifest.video is not None else {})


def _values(manifest: Manifest) -> Iterator[str]:
    """Names that are unknown, and values that cannot be used."""
    for name in ("checkpoint", "model_type"):
        if name not in manifest.source:
            yield f"source.{name}: missing"
    for name in (*manifest.graphs, "embed_tokens"):
        precision = manifest.precision.get(name)
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            problem = "missing" if precision is None else f"{precision!r:.60} is unknown; known: {known}"
            yield f"precision.{name}: {problem}"
    recipes = {"image": manifest.image} | ({"video.tile": manifest.video.tile} if manifest.video else {})
    for name, recipe in recipes.items():
        if 0 in recipe.pixels.std:
            yield f"{name}.pixels.std: {recipe.pixels.std} has a 0, by which levels are divided"
    yield from (f"generation.defaults: {problem}" for problem in manifest.generation.defaults.problems())
    if manifest.prompt.kind == "chat":
        yield from (f"prompt.{problem}" for problem in manifest.prompt.problems())
    grounding = manifest.grounding
    if grounding is None:
        return
    if grounding.kind == "locations":
        if tuple(sorted(grounding.edges)) != EDGES:
            yield f"grounding.edges: {grounding.edges} are not {', '.join(EDGES)} in some order"
        yield from _templates({"token": grounding.token, "code": grounding.code})
    else:
        yield from _templates({"token": grounding.token})


def _templates(texts: dict[str, str]) -> Iterator[str]:
    for name, text in texts.items():
        if not re.fullmatch(r"[^{}]{0,64}\{(:0\dd)?\}[^{}]{0,64}", text):
            yield f"grounding.{name}: {text!r:.60} does not take one number, as '<loc{{:04d}}>' does"


def _at_odds(manifest: Manifest) -> Iterator[str]:
    """Sizes that contradict each other."""
    *_, height, width = manifest.graphs[contract.VISION_ENCODER].inputs[0].shape
    recipe = manifest.image
    whole = recipe.kind in ("resize", "crop", "crops")
    tiles = {"image": (recipe.height, recipe.width) if whole else (recipe.size, recipe.size)}
    tiles |= {name: (resized.height, resized.width) for name, resized in _resized(manifest).items()}
    for name, (rows, columns) in tiles.items():
        if (rows, columns) != (height, width):
            yield f"{name}: tiles of {rows} x {columns}, the graph takes {height} x {width}"
    buffers = {tensor.dtype for tensor in manifest.graphs[contract.DECODER].inputs if contract.is_past(tensor.name)}
    if (kind := manifest.precision.get(contract.KV_CACHE)) not in (CACHES if "int8" in buffers else (None,)):
        yield f"precision.{contract.KV_CACHE}: {kind!r:.60}, and the decoder's cache is of {sorted(buffers)!s:.60}"
    yield from _vectors(manifest)
    yield from _prompt_at_odds(manifest)
    if contract.MASK_DECODER in manifest.graphs:
        grounding = manifest.grounding
        *_, codes = manifest.graphs[contract.MASK_DECODER].inputs[0].shape
        written = grounding.codes if grounding is not None and grounding.kind == "locations" else 0
        if codes != written:
            yield f"graphs.{contract.MASK_DECODER}: takes {codes} codes, the model writes {written}"
    if manifest.profiles:
        yield from (f"profiles.{name}: missing" for name in manifest.graphs if name not in manifest.profiles)
    for name, ranges in manifest.profiles.items():
        if name not in manifest.graphs:
            yield f"profiles.{name}: there is no such graph"
        else:
            problems = shape_profile.problems(ranges, manifest.graphs[name])
            yield from (f"profiles.{name}.{problem}" for problem in problems)


def _vectors(manifest: Manifest) -> Iterator[str]:
    """What contradicts the kind of the bundle."""
    output = manifest.graphs[contract.DECODER].outputs[0].name
    if (manifest.vectors is not None) != (output == contract.VECTORS):
        yield f"vectors: {manifest.vectors!r:.60}, and the decoder returns {output:.60}"
    if manifest.vectors is not None and manifest.prompt.kind != "plain":
        yield f"prompt.kind: {manifest.prompt.kind!r}, vectors are made of plain prompts"


def _prompt_at_odds(manifest: Manifest) -> Iterator[str]:
    """Media that are prepared, and that the prompt has no words for."""
    prompt = manifest.prompt
    if prompt.kind != "chat":
        return
    if (prompt.video is None or prompt.frames is not None) != (prompt.video_token_id is None):
        yield "prompt.video_token_id: must be null where prompt.video is or prompt.frames is not, and not elsewhere"
    if prompt.frames is not None and (manifest.video is None or len(prompt.frames.numbers) < manifest.video.frames):
        yield f"prompt.frames.numbers: {len(prompt.frames.numbers)}, one for each of video.frames is expected"
    if manifest.video is not None and prompt.video is None:
        yield "prompt.video: missing, although there is a recipe for videos"
    if manifest.image.kind == "tiles" and prompt.tiles is not None:
        yield "prompt.tiles: names tiles of a grid, and image is of the kind 'tiles'"
    if (manifest.image.kind == "crops") != (prompt.crops is not None):
        yield "prompt.crops: must be there where image is of the kind 'crops', and not elsewhere"


def _files(manifest: Manifest, folder: Path) -> Iterator[str]:
    for name, file in manifest.files.items():
        try:
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
        except OSError as error:
            yield f"{name:.60}: {error.strerror}"
            continue
        if size is None:
            yield f"{name}: the file is missing"
        elif size != file.size:
            yield f"{name}: {size} bytes, {file.size} are expected"


def outside(names: Iterable[str]) -> Iterator[str]:
    """A sentence for each file whose path leads out of the bundle's folder."""
    for name in names:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            yield f"files.{name}: the path leaves the folder"
