"""The folder that a user gives for calibration: pictures, and prompts if they are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...graphs import ExportError, InputError
from ...runtime.images import reading

PROMPTS = "prompts.txt"  #: a prompt a line
MOST = 64  #: pictures; of a folder with more so many are taken, evenly by their names


@dataclass(frozen=True)
class Pictures:
    """Pictures and prompts of a folder; `prompts` are empty where it has none."""

    paths: tuple[Path, ...]
    prompts: tuple[str, ...]

    def questions(self, examples: tuple[str, ...]) -> Iterator[tuple[Image.Image, str]]:
        """Each picture with one of the prompts in turn, or of `examples` where there are none."""
        prompts = self.prompts or examples
        for index, path in enumerate(self.paths):
            yield reading.read(path), prompts[index % len(prompts)]


def find(folder: Path, precision: str = "int4") -> Pictures:
    """The pictures in a folder and the prompts in its `prompts.txt`.

    Args:
        precision: of the decoder that is to be calibrated.

    Raises:
        ExportError: if it is no folder, has no pictures or one that cannot be read, or if its prompts are no text; for
            a precision that is not calibrated.
    """
    if precision != "int4":
        raise ExportError(f"--calibrate is for a decoder of int4, and this one is {precision}; give --precision int4")
    if not folder.is_dir():
        raise ExportError(f"{folder} is no folder; give --calibrate a folder of pictures")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in reading.SUFFIXES and path.is_file())
    if not found:
        endings = ", ".join(sorted(reading.SUFFIXES))
        raise ExportError(f"{folder} has no pictures; give some like those to be asked about: {endings}")
    chosen = found if len(found) <= MOST else [found[index * len(found) // MOST] for index in range(MOST)]
    for path in chosen:  # before anything else is done
        try:
            reading.read(path)
        except InputError as error:
            raise ExportError(f"{error}; mend it, or take it out of the folder for --calibrate") from None
    return Pictures(tuple(chosen), _prompts(folder / PROMPTS))


def _prompts(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ExportError(f"{path} is not UTF-8: {error}; save it as UTF-8, a prompt a line") from None
    prompts = tuple(line for line in lines if line.strip())
    if not prompts:
        raise ExportError(f"{path} has no prompts; write one a line, or remove the file")
    return prompts
