"""The command `score`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from . import flags
from .console import print_json


def score(
    bundle: flags.Bundle,
    prompt: flags.Prompt,
    *,
    candidate: Annotated[
        list[str],
        typer.Option(
            metavar="TEXT",
            help="A possible answer; given once for each.",
            show_default=False,
            callback=flags.check_texts,
        ),
    ],
    image: flags.Images = None,
    video: flags.Video = None,
    as_json: flags.AsJson = False,
    where: flags.Where,
    embedding_folder: flags.EmbeddingFolder = None,
) -> None:
    """Print the log-probability of each of several answers, the likeliest first."""
    vlm = flags.load(bundle, where, embedding_folder)
    scores = sorted(vlm.score(prompt, image, candidate, videos=video), key=lambda entry: -entry.log_probability)
    if as_json:
        print_json({"scores": [dataclasses.asdict(entry) for entry in scores]})
        return
    for entry in scores:
        print(f"{entry.log_probability:10.4f}  {entry.text}")
