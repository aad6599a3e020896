"""Weights as the kernels of this CPU take them, in files, so that processes on one machine share the memory.

ONNX Runtime lays weights out anew for the kernels that multiply them, in memory of its own. It can write a graph with
these layouts, and maps them from the file when it reads that graph. It still makes each layout to compare it with the
written one, but keeps the pages of the file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import onnxruntime as ort

from ...graphs import BundleError, InputError, ProviderError
from ...graphs.manifest import Manifest
from ..providers.caches import CACHE_VARIABLE, cache_root
from ..providers.ort_session import aligned, integers_overflow, write_laid_out
from ..providers.targets import Target
from .session import Session

MOST = 4  #: bundles whose weights are kept; those that were loaded last
ASIDE = ".making-"  #: how folders begin that are being written
OLD = 3600.0  #: seconds after which such a folder is that of a process that was killed
#: Bytes that are written for each of a graph: weights as they are are among them.
SIZE = 2.2


def check(target: Target) -> None:
    """Raise a ProviderError if graphs do not run on the CPU."""
    if not target.row.on_host:
        raise ProviderError(f"weights are shared on the CPU alone, not on {target.provider}; leave share_weights out")


def open_session(folder: Path, name: str, manifest: Manifest, target: Target) -> Session:
    """A session of a bundle's graph whose weights are shared with other processes. Writes them if nobody has.

    Raises:
        BundleError: if the graph cannot be loaded or breaks its contract.
        InputError: if the weights cannot be written.
    """
    graph, kept, spec = folder / f"{name}.onnx", weights_folder(manifest) / name, manifest.graphs[name]
    if kept.is_dir():
        _used(kept.parent)
        try:
            return Session(_written(kept, graph), spec, target)
        except BundleError:  # damaged: it is written anew
            shutil.rmtree(kept, ignore_errors=True)
    _write(graph, kept, target, manifest.graph_bytes(name))
    return Session(_written(kept, graph), spec, target)


def _written(kept: Path, graph: Path) -> Path:
    """The written graph; the bundle's own where it has no weights that can be shared."""
    return kept / graph.name if (kept / graph.name).exists() else graph


def weights_folder(manifest: Manifest) -> Path:
    """Where the weights of a bundle are kept for this CPU and version of ONNX Runtime.

    ONNX Runtime itself passes over a layout that is not what its kernels would make: weights of another CPU are not
    shared, but do no harm.
    """
    graphs = {name: file.sha256 for name, file in manifest.files.items() if ".onnx" in name}
    key = json.dumps([graphs, ort.__version__, _processor(), integers_overflow()], sort_keys=True)
    return cache_root() / "weights" / hashlib.sha256(key.encode()).hexdigest()[:24]


@functools.cache
def _processor() -> str:
    """What the choice of kernels may depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))


def _write(graph: Path, kept: Path, target: Target, size: int) -> None:
    """Write a graph with its weights laid out to the folder `kept`, which is there when it is whole."""
    root = kept.parent.parent
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=root))
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise InputError(
            f"{root} cannot hold weights to be shared: {error.strerror or error}; set {CACHE_VARIABLE} to a folder that"
            " can be written"
        ) from None
    try:
        if free < SIZE * size:
            raise InputError(
                f"{root} has {free / 1e9:.1f} GB left, and weights to be shared take {SIZE * size / 1e9:.1f} GB; make"
                f" room, or set {CACHE_VARIABLE} to another folder"
            )
        written = aside / "graph"
        written.mkdir()
        try:
            write_laid_out(graph, target, written / graph.name)
        except Exception as error:  # ONNX Runtime's exceptions share no class of their own
            raise BundleError(
                f"the weights of {graph} cannot be written to {root} to be shared: {error}; leave share_weights out, or"
                " export the bundle again"
            ) from error
        if not aligned(written / graph.name):
            shutil.rmtree(written)
            written.mkdir()
        try:
            written.rename(kept)
        except OSError as error:
            if not kept.is_dir():  # another process was faster
                raise InputError(f"{kept} cannot be made: {error.strerror or error}; leave share_weights out") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _used(kept.parent)
    _forget(root)


def _used(bundle: Path) -> None:
    try:
        os.utime(bundle)
    except OSError:  # a folder that others wrote
        return


def _forget(root: Path) -> None:
    """Remove the weights of all bundles but those loaded last, and what killed processes have left."""
    ages = {path: _age(path) for path in root.iterdir()}
    bundles = sorted((path for path in ages if not path.name.startswith(ASIDE)), key=lambda path: ages[path])
    left = [path for path, age in ages.items() if path.name.startswith(ASIDE) and age > OLD]
    for path in bundles[MOST:] + left:
        shutil.rmtree(path, ignore_errors=True)


def _age(path: Path) -> float:
    """Seconds since a folder was used; 0 where another process removes it."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
