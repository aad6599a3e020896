"""A decoder's weights of 4 bits expanded to 8 when it is loaded: more memory, and faster products of many rows."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...graphs import BundleError, ProviderError, contract, expansion
from ...graphs.manifest import Manifest
from ..providers.ort_session import integers_overflow
from ..providers.targets import Target
from .session import Session


def check(manifest: Manifest, target: Target) -> None:
    """Raise an error if the weights cannot be expanded, or if that would make nothing faster.

    Raises:
        BundleError: if the bundle has no second graph.
        ProviderError: if the graphs do not run on the CPU, or it has no dot product of bytes.
    """
    if not target.row.on_host:
        raise ProviderError(
            f"weights are expanded on the CPU alone, not on {target.provider}; leave expand_weights out"
        )
    if expansion.TABLE not in manifest.files or expansion.GRAPH not in manifest.files:
        raise BundleError(
            "the bundle has no weights to expand; leave expand_weights out, or export it anew with a decoder in int4"
            f" and blocks of {expansion.BLOCK_SIZE}"
        )
    if not pays():
        raise ProviderError(
            "expanded weights are faster only on a CPU with a dot product of bytes (VNNI), which this one lacks; leave"
            " expand_weights out"
        )


def pays() -> bool:
    """Whether products of bytes are faster here than those of blocks: exact ones are not where sums overflow."""
    return not integers_overflow()


def open_expanded(folder: Path, manifest: Manifest, target: Target) -> Session:
    """The decoder's second graph, with its weights.

    Raises:
        BundleError: if the graph or its table is damaged.
    """
    stored = np.memmap(folder / f"{contract.DECODER}.onnx.data", np.uint8, "r")
    weights = expansion.load(folder / expansion.TABLE, stored.size).weights
    memory = [_private(weight.nbytes) for weight in weights]
    given: dict[str, np.ndarray] = {}

    def expand(weight: expansion.Blocks, memory: mmap.mmap) -> None:
        integers = np.frombuffer(memory, np.int8).reshape(-1, weight.columns)
        weight.expand(stored, integers)
        given[weight.columns_name] = integers[: weight.rows]
        given[weight.scales_name] = weight.units(stored)

    with ThreadPoolExecutor(target.session.get("intra_op_num_threads") or os.cpu_count()) as pool:
        list(pool.map(expand, weights, memory))
    session = Session(folder / expansion.GRAPH, manifest.graphs[contract.DECODER], target, initializers=given)
    for pages in memory:  # the session has laid the integers out anew, and reads no more of them
        if hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)
    return session


def _private(size: int) -> mmap.mmap:
    """Memory that can be given back while arrays of it exist."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)  # Windows
