"""The command `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...graphs import InputError
from ..hub.find import find, name_of
from ..limits import MAX_PIXELS, Limits
from . import flags
from .console import messages

if TYPE_CHECKING:
    from ..model import VLM

ACCESS, BOUNDS = "Who may ask", "How much may be asked for"  #: headings of `--help`


def _bound(text: str, metavar: str = "N") -> typer.models.OptionInfo:
    return typer.Option(metavar=metavar, help=text, rich_help_panel=BOUNDS)


def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(metavar="BUNDLE[=NAME]...", help="Folders or ids of bundles, each with its name for clients."),
    ],
    *,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Address to listen at.", rich_help_panel=ACCESS)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 for any that is free.", rich_help_panel=ACCESS)] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="ONNX_VLM_API_KEY",
            help="What clients must send; better in the environment, where other users do not see it.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name that requests may call this server by, besides localhost; only checked on a loopback address.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    allow_media_domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DOMAIN",
            help="A host that images may be fetched from, over https; without it they come as data URIs.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="A site whose pages may use this server from a browser.", rich_help_panel=ACCESS
        ),
    ] = None,
    max_rows: Annotated[int, _bound("Answers, beams and candidates computed together.")] = 8,
    max_queue: Annotated[int, _bound("Requests that may wait; more get status 429.")] = 64,
    max_seconds: Annotated[float, _bound("For one answer; then status 504.", "SECONDS")] = 600,
    max_body: Annotated[int, _bound("Bytes of a request; more get status 413.", "BYTES")] = 20 << 20,
    max_pixels: Annotated[int, _bound("Pixels of an image.")] = MAX_PIXELS,
    max_images: Annotated[int | None, _bound("Images and videos of a request.")] = None,
    max_prompt_tokens: Annotated[int | None, _bound("Tokens of a prompt, images included.")] = None,
    max_new_tokens: Annotated[int | None, _bound("Tokens of an answer.")] = None,
    max_memory: Annotated[int | None, _bound("Bytes of KV cache and prefill.", "BYTES")] = None,
    where: flags.Where,
    embedding_folder: flags.EmbeddingFolder = None,
) -> None:
    """Answer requests over HTTP as OpenAI's servers do, until a signal ends it. Needs the extra `serve`.

    It listens on this machine alone unless --host says otherwise. The first signal lets running requests end, the
    second does not.
    """
    try:
        from ..server import app, models, process
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}; install it: pip install 'onnx-vlm[serve]'") from None

    positive = {"max-rows": max_rows, "max-queue": max_queue, "max-seconds": max_seconds, "max-body": max_body}
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise InputError(f"--{name} is {value}; give more than 0")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise InputError("the API key must be printable ASCII, not empty, without spaces around it")
    limits = Limits(max_prompt_tokens, max_new_tokens, max_images, max_pixels, max_rows=max_rows, max_memory=max_memory)
    with process.ended_by_sigterm():  # a bundle may have to be fetched
        folders = {name: find(bundle) for name, bundle in name_bundles(bundles).items()}
    access = app.Access(
        api_key,
        hosts=(*app.LOOPBACK, *(name.lower() for name in allow_host or ())) if is_loopback(host) else None,
        media_domains=allow_media_domain or (),
        cors_origins=cors_origin or (),
        max_body=max_body,
        max_seconds=max_seconds,
    )
    listener = process.listen(host, port)
    if api_key is None and not is_loopback(host):
        messages.print(f"anyone who reaches {host} may use this server; --api-key asks for a key", markup=False)

    def load(folder: Path) -> VLM:
        return flags.load(folder, where, embedding_folder, limits)

    process.run(listener, models.Models(folders, load, max_rows, max_queue), access)


def name_bundles(arguments: list[str]) -> dict[str, str]:
    """The folders and ids of `BUNDLE[=NAME]...` by name, which is that of the folder or repository if none is given.

    Raises:
        InputError: for a name that is given twice, or none.
    """
    folders: dict[str, str] = {}
    for argument in arguments:
        folder, equals, name = argument.rpartition("=")
        if not equals or Path(argument).exists():
            folder, name = argument, name_of(argument)
        if not folder or not name:
            raise InputError(f"{argument!r:.80}: give BUNDLE or BUNDLE=NAME")
        flags.check_text(name)
        if name in folders:
            raise InputError(f"two bundles have the name {name!r}; give each one with BUNDLE=NAME")
        folders[name] = folder
    return folders


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    return host in ("localhost", "::1") or host.startswith("127.")
