"""The commands `chat` and `score`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import flags
from .flags import AllowFallback, Provider, ProviderOptions

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that an export wrote.", show_default=False)]
Images = Annotated[list[Path] | None, typer.Option("--image", help="A picture; may be given several times.")]
Video = Annotated[Path | None, typer.Option(help="A video, or a folder with a picture a frame.")]
Threads = Annotated[int | None, typer.Option(help="Threads for one operator.")]
Folder = Annotated[Path | None, typer.Option(help="Keep what pictures are encoded to here.")]


def chat(
    bundle: Bundle,
    image: Images = None,
    video: Video = None,
    provider: Provider = "auto",
    provider_option: ProviderOptions = None,
    allow_fallback: AllowFallback = False,
    threads: Threads = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Where each answer is cut.")] = None,
    embedding_folder: Folder = None,
) -> None:
    """Answer questions about pictures or a video, a line of standard input each, until it ends.

    Where the model knows turns, a question may refer to those before it.
    """
    vlm = flags.load(bundle, provider, threads, provider_option, allow_fallback, embedding_folder)
    conversation = vlm.chat(image, video)
    asking = sys.stdin.isatty()
    while True:
        if asking:
            print("> ", end="", file=sys.stderr, flush=True)
        question = sys.stdin.readline()
        if not question:
            break
        if question.strip():
            for piece in conversation.stream(question.rstrip("\r\n"), max_new_tokens=max_new_tokens):
                print(piece, end="", flush=True)
            print(flush=True)


def score(
    bundle: Bundle,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What is asked.", show_default=False)],
    candidate: Annotated[list[str], typer.Option(help="An answer; given once for each.", show_default=False)],
    image: Images = None,
    video: Video = None,
    provider: Provider = "auto",
    provider_option: ProviderOptions = None,
    allow_fallback: AllowFallback = False,
    threads: Threads = None,
    embedding_folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the log-probability of each of several answers, the likeliest first."""
    vlm = flags.load(bundle, provider, threads, provider_option, allow_fallback, embedding_folder)
    scores = sorted(vlm.score(prompt, image, candidate, videos=video), key=lambda one: -one.log_probability)
    if as_json:
        print(json.dumps({"scores": [dataclasses.asdict(one) for one in scores]}, ensure_ascii=False))
        return
    for one in scores:
        print(f"{one.log_probability:10.4f}  {one.text}")
