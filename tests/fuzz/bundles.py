"""Damaged bundles: their manifests alone, and their files, with and without the sizes and checksums that they need."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
from onnx_vlm.graphs import manifest
from onnx_vlm.runtime import load
from onnx_vlm.runtime.cli.tables import describe
from onnx_vlm.runtime.verify import verify
from rich.console import Console

from .campaign import Files, Target, write
from .mutations import damage, damage_json

#: Bundles that are damaged. `--bundle` adds to them.
BASES = sorted((Path(__file__).parents[1] / "bundles").iterdir())
IMAGE = np.full((20, 30, 3), 200, np.uint8)
MANIFEST = manifest.FILE_NAME


def make_manifest(rng: random.Random) -> Files:
    base = rng.choice(BASES)
    return {f"{base.name}/{MANIFEST}": damage_json(rng, (base / MANIFEST).read_bytes())}


def make(rng: random.Random) -> Files:
    """One damaged file. Half of the time the manifest gets its new size and checksum."""
    base = rng.choice(BASES)
    if rng.random() < 0.3:
        return {f"{base.name}/{MANIFEST}": damage_json(rng, (base / MANIFEST).read_bytes())}
    name = rng.choice(sorted(json.loads((base / MANIFEST).read_bytes())["files"]))
    data = (base / name).read_bytes()
    if rng.random() < 0.03:
        changed = None
    elif name.endswith(".npy"):
        changed = damage(rng, data[:128]) + data[128:] if rng.random() < 0.8 else damage(rng, data)
    else:
        changed = damage_json(rng, data) if name.endswith(".json") else damage(rng, data)
    files: Files = {f"{base.name}/{name}": changed}
    if changed is not None and rng.random() < 0.5:
        files[f"{base.name}/{MANIFEST}"] = _sealed(base, name, changed)
    return files


def _sealed(base: Path, name: str, data: bytes) -> bytes:
    content = json.loads((base / MANIFEST).read_bytes())
    content["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return json.dumps(content).encode()


def _placed(files: Files, folder: Path) -> tuple[Path, Path]:
    """The damaged bundle, in `folder`, and the bundle that it was."""
    name = next(iter(files)).split("/")[0]
    base = next(base for base in BASES if base.name == name)
    if not (folder / name).exists():
        shutil.copytree(base, folder / name)
    write(files, folder)
    return folder / name, base


def run_manifest(files: Files, folder: Path) -> str:
    """Read and describe it."""
    bundle, base = _placed(files, folder)
    loaded = manifest.load(bundle)
    Console(file=io.StringIO()).print(describe(loaded))
    return "same" if loaded == manifest.load(base) else "another manifest"


def run(files: Files, folder: Path) -> str:
    """Load it and ask it; verify it if its proof is damaged, or the answer is another one.

    Files that have their checksums make another bundle, and so do values of the manifest: any answer is theirs. Damage
    against the checksum must not pass `verify`.
    """
    bundle, base = _placed(files, folder)
    sealed = any(name.endswith(MANIFEST) for name in files)
    try:
        if any("/proof/" in name for name in files):
            word = "proof"
        elif _answer(bundle) == _expected(base):
            return "same answer"
        else:
            word = "another answer"
        passed = all(check.passed for check in verify(bundle))
        assert sealed or not passed or not _differ(files, base), f"{word}, and verify passes"
        return f"{word}, verified" if passed else f"{word}, not verified"
    finally:
        write({name: (base.parent / name).read_bytes() for name in files}, folder)


def _differ(files: Files, base: Path) -> bool:
    """Whether the files are others than those of the bundle: some damage changes nothing."""
    return any(data != (base.parent / name).read_bytes() for name, data in files.items())


def _answer(bundle: Path) -> tuple[list[int], str]:
    generation = load(bundle, "cpu", threads=1).generate("what", IMAGE, max_new_tokens=4)
    return generation.token_ids, generation.text


@lru_cache
def _expected(base: Path) -> tuple[list[int], str]:
    return _answer(base)


MANIFESTS = Target("manifests", make_manifest, run_manifest)
TARGET = Target("bundles", make, run, share=4)
