"""The folder that an export makes: written aside, renamed when it is whole; refused where it has no room."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..graphs import ExportError, manifest


def check(target: Path, overwrite: bool) -> None:
    """Raise an ExportError if something is at `target` that may not be replaced."""
    if not target.exists():
        return
    if not overwrite:
        raise ExportError(f"{target} exists; choose another folder, or replace it with --overwrite (overwrite=True)")
    if not (target / manifest.FILE_NAME).is_file():
        raise ExportError(f"{target} exists and is no bundle, so it is not overwritten; choose another folder")


def check_room(folder: Path, needed: int) -> None:
    """Raise an ExportError if fewer than `needed` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"the bundle needs about {needed / 1e9:.2f} GB and {folder.parent} has {free / 1e9:.2f} GB free; make room,"
            " choose another disk or a smaller --precision"
        )


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its name when all went well and vanishes when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        folder.chmod(0o755)
        yield folder
        if target.exists():
            old = folder.with_name(f"{folder.name}.old")
            target.rename(old)
            folder.rename(target)
            shutil.rmtree(old)
        else:
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
