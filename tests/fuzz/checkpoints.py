"""Damaged JSON files of checkpoints, read by an export up to the point where it would trace the model."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from onnx_vlm.export import export_model

from .campaign import Files, Target, write
from .mutations import damage_json

BASES = sorted(
    path for path in (Path(__file__).parents[1] / "checkpoints").iterdir() if (path / "config.json").exists()
)


class _AcceptedError(Exception):
    """All files of the checkpoint are read, and the export would go on."""


def make(rng: random.Random) -> Files:
    base = rng.choice(BASES)
    # config.json most often: it says most.
    names = [path.name for path in sorted(base.glob("*.json"))] + ["config.json"] * 4
    name = rng.choice(names)
    return {f"{base.name}/{name}": damage_json(rng, (base / name).read_bytes())}


def run(files: Files, folder: Path) -> str:
    """A checkpoint is refused, or its settings and the shapes of its weights fit together."""
    (path,) = files
    base = next(base for base in BASES if base.name == path.split("/")[0])
    if not (folder / base.name).exists():
        shutil.copytree(base, folder / base.name)
    write(files, folder)
    try:
        export_model(folder / base.name, folder / "bundle", prove=False, announce=_stop)
    except _AcceptedError:
        return "accepted"
    finally:
        write({path: (base.parent / path).read_bytes()}, folder)
        left = sorted(file.name for file in folder.iterdir() if file.name not in {one.name for one in BASES})
        assert not left, left
    raise AssertionError("the export was not stopped")


def _stop(estimate: object) -> None:
    raise _AcceptedError


TARGET = Target("checkpoints", make, run, share=2)
