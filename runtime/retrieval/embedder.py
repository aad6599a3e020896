"""Pages and queries to their vectors, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...graphs import InputError, Manifest
from ..images.reading import ImageInput, read
from ..images.tiles import tiles
from ..inference.engine import Engine
from ..limits import Limits
from ..text.prompt import Prompts
from .late_interaction import rounded
from .pooling import pooled

TOKENS_AT_ONCE = 2048  #: of a run of the decoder, unless one page has more
DTYPES = ("float32", "float16", "int8")


class Embedder:
    """Makes vectors with a bundle of the kind "embedding". The first page loads the graphs that images need."""

    def __init__(self, manifest: Manifest, prompts: Prompts, engine: Engine, limits: Limits) -> None:
        if manifest.vectors is None:
            raise InputError(
                f"the bundle of {manifest.source['checkpoint']} answers prompts and makes no vectors; use generate, or"
                " export a checkpoint that embeds"
            )
        self._manifest, self._recipe = manifest, manifest.vectors
        self._prompts, self._engine, self._limits = prompts, engine, limits

    def pages(self, images: Sequence[ImageInput], pool_factor: int = 1, dtype: str = "float32") -> Iterator[np.ndarray]:
        """The vectors (tokens, width) of each page, one after another; see `VLM.embed`."""
        check_dtype(dtype)
        if type(pool_factor) is not int or pool_factor < 1:
            raise InputError(f"pool_factor is {pool_factor!r:.80}; give an integer of 1 or more")
        at_once = max(1, min(TOKENS_AT_ONCE // self._manifest.tile_tokens, self._engine.tiles_at_once))
        for start in range(0, len(images), at_once):
            opened = [read(image, self._limits.max_pixels) for image in images[start : start + at_once]]
            cut = [tiles(image, self._manifest.image) for image in opened]
            encoded = [self._prompts.encode(self._recipe.page, [page]) for page in cut]
            ends = np.cumsum([len(page) for page in cut])
            embeds = np.split(self._engine.encode_images(np.concatenate(cut)), ends[:-1])
            rows = [self._engine.merge(page, [found]) for page, found in zip(encoded, embeds)]
            yield from (rounded(pooled(vectors, pool_factor), dtype) for vectors in self._run(rows))

    def queries(self, texts: Sequence[str], dtype: str = "float32") -> list[np.ndarray]:
        """The vectors (tokens, width) of each query; see `VLM.embed`."""
        check_dtype(dtype)
        rows = [self._engine.merge(self._prompts.encode_query(text, self._recipe), []) for text in texts]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        found: dict[int, np.ndarray] = {}
        for group in _groups(order, [len(row) for row in rows]):
            found |= zip(group, self._run([rows[index] for index in group]))
        return [rounded(found[index], dtype) for index in range(len(rows))]

    def _run(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        longest, positions = max(map(len, rows)), self._manifest.generation.max_positions
        most = min(positions, self._limits.max_prompt_tokens or positions)
        if longest > most:
            raise InputError(
                f"a page or query has {longest} tokens, {most} are allowed: the model has {positions} positions, and"
                f" max_prompt_tokens is {self._limits.max_prompt_tokens}; shorten it"
            )
        needed = self._engine.memory(len(rows), longest, len(rows), longest)
        self._limits.check_memory(needed, len(rows), longest)
        return self._engine.vectors(rows)


def check_dtype(dtype: str) -> None:
    """Raise an InputError for a dtype that vectors do not have."""
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r:.80}; give {', '.join(DTYPES)}")


def _groups(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """`order`, in which lengths rise, in parts that have at most `TOKENS_AT_ONCE` tokens with their padding."""
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * lengths[index] > TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
