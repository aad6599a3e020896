"""The command `generate`."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ...graphs import InputError, VLMError
from . import flags
from .console import explain, messages, print_json

if TYPE_CHECKING:
    from ..model import VLM
    from ..options import Options
    from ..results import Generation


def generate(
    bundle: flags.Bundle,
    prompt: flags.Prompt,
    *,
    image: flags.Images = None,
    video: flags.Video = None,
    bboxes: Annotated[str | None, typer.Option(metavar="JSON", help="Boxes of the prompt's phrases.")] = None,
    draw: Annotated[
        Path | None,
        typer.Option(
            parser=flags.parse_path, metavar="PATH", help="Write the image here with boxes and masks drawn on it."
        ),
    ] = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print as it comes.", show_default="on a terminal")
    ] = None,
    as_json: flags.AsJson = False,
    options: flags.Answer,
    where: flags.Where,
    embedding_folder: flags.EmbeddingFolder = None,
) -> None:
    """Answer a prompt about images or a video.

    Options of the answer that are left out are those of the checkpoint's generation_config.json.
    """
    if draw is not None:
        _check_drawing(draw, image)
    boxes = _read_boxes(bboxes)
    vlm = flags.load(bundle, where, embedding_folder)
    if stream is None:
        stream = sys.stdout.isatty()
    stream = stream and not as_json and _answers(options, vlm) == 1
    if stream:
        pieces = vlm.stream(prompt, image, video, bboxes=boxes, **options)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        answer = pieces.generation
    else:
        answer = vlm.generate(prompt, image, video, bboxes=boxes, **options)
    if as_json:
        from ..grounding.types import run_lengths

        print_json(dataclasses.asdict(answer), default=run_lengths)
    else:
        _print(answer, f"on {vlm.provider}", texts=not stream)
    if draw is not None and image:
        _draw(answer, image[0], draw, quiet=as_json)


def _answers(options: Options, vlm: VLM) -> int:
    """How many answers are asked for."""
    from ..options import resolve

    return resolve(options, vlm.manifest.generation).num_return_sequences


def _print(answer: Generation, where: str, texts: bool) -> None:
    """Print the texts of an answer and its alternatives on standard output, boxes and times on standard error."""
    from . import tables

    if texts:
        for generation in (answer, *answer.alternatives):
            print(generation.text if generation.caption is None else generation.caption, flush=True)
    if answer.boxes:
        messages.print(tables.boxes(answer.boxes))
    messages.print(f"{tables.times(answer.timings)}  {where}", style="dim", soft_wrap=True)


def _read_boxes(text: str | None) -> list | None:
    """The boxes of --bboxes."""
    if text is None:
        return None
    try:
        boxes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--bboxes is not JSON: {error}") from None
    if not isinstance(boxes, list):
        raise InputError(f"--bboxes is {text:.80}; give a list with an entry for each phrase")
    return boxes


def _check_drawing(path: Path, images: list[Path] | None) -> None:
    """Find out before the model runs whether a drawing can be written to `path`, which is left as it was."""
    from PIL import Image

    if not images:
        raise InputError("--draw draws on an image; give one with --image")
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), Image.registered_extensions()[path.suffix.lower()])
    except (KeyError, OSError, ValueError):  # a format that Pillow does not write, or not in colour
        raise InputError(f"--draw {path}: give the name of an image file, such as one in .png or .jpg") from None
    try:
        if not path.parent.is_dir():
            raise InputError(f"--draw {path}: there is no folder {path.parent}")
        exists = os.path.lexists(path)
        if exists and not path.is_file():
            raise InputError(f"--draw {path} exists and is no file; give another name")
        path.open("ab").close()
        if not exists:
            path.unlink()
    except OSError as error:
        raise InputError(f"--draw cannot be written: {explain(error)[0]}") from None


def _draw(answer: Generation, image: Path, path: Path, quiet: bool) -> None:
    """Write the image with the boxes and masks of an answer on it."""
    from ..grounding.drawing import draw
    from ..images.reading import read

    try:
        draw(read(image), answer.boxes, answer.masks).save(path)
    except Exception as error:  # the answer is printed already, whatever Pillow raises
        raise VLMError(f"the answer is complete, its drawing is not: {explain(error)[0]}") from error
    if not quiet:
        messages.print(f"wrote [bold]{escape(str(path))}[/]")
