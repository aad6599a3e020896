"""The folder that an export makes: written beside its final name, and renamed when it is complete.

An export works in a folder `.onnx-vlm.*` beside its output, which it holds a lock on. The bundle grows in `new/NAME`
there; a bundle that is being replaced goes to `old/NAME` for the moment between two renames. An export that was killed
leaves its folder, but no lock: the next export to the same parent folder puts `old/NAME` back where NAME is missing,
and removes the rest.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..graphs import ExportError, manifest

PREFIX = ".onnx-vlm."


def check(output: Path, overwrite: bool) -> None:
    """Raise an ExportError if something is at `output` that may not be replaced."""
    if not output.exists():
        return
    if not overwrite:
        raise ExportError(f"{output} exists; choose another folder, or replace it with --overwrite (overwrite=True)")
    if not (output / manifest.FILE_NAME).is_file():
        raise ExportError(f"{output} exists and is no bundle, so it is not overwritten; choose another folder")


def check_room(parent: Path, needed: int) -> None:
    """Raise an ExportError if fewer than `needed` bytes are free in `parent`."""
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ExportError(
            f"the bundle needs about {needed / 1e9:.2f} GB and {parent} has {free / 1e9:.2f} GB free; make room,"
            " choose another disk or a smaller --precision"
        )


@contextmanager
def written_aside(output: Path, overwrite: bool) -> Iterator[Path]:
    """Make a folder that is renamed to `output` when the block ends, and removed if the block raises."""
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output.parent)
    with _locked_folder(output.parent) as working:
        new, old = working / "new" / output.name, working / "old" / output.name
        new.mkdir(parents=True)
        yield new
        check(output, overwrite)
        if output.exists():
            old.parent.mkdir()
            output.rename(old)
        new.rename(output)


def remove_leftovers(parent: Path) -> None:
    """Remove the working folders of exports to `parent` that were killed; those of running exports are locked."""
    for working in parent.glob(f"{PREFIX}*"):
        if working.is_symlink():
            continue
        try:
            with FileLock(working / "lock", timeout=0):
                _close(working)
        except (Timeout, OSError):
            continue  # a running export's, or another user's


@contextmanager
def _locked_folder(parent: Path) -> Iterator[Path]:
    """A new working folder, locked until it is removed at the end."""
    while True:
        working = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = FileLock(working / "lock")
        with suppress(FileNotFoundError):
            lock.acquire()
        if lock.is_locked and working.exists():
            break  # else another export took it for a leftover in the moment before it was locked
    try:
        yield working
    finally:
        _close(working)
        lock.release()


def _close(working: Path) -> None:
    """Put back a bundle that was moved away and not replaced, and remove the folder."""
    for old in working.glob("old/*"):
        name = working.parent / old.name
        # A replaced bundle is moved first: an interrupted removal must leave nothing that would be put back.
        old.rename(working / "replaced" if name.exists() else name)
    shutil.rmtree(working, ignore_errors=True)
