"""The command `export`."""

from __future__ import annotations

import gc
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.markup import escape

from ...graphs import InputError
from ...graphs.errors import explain_import_error
from .console import messages
from .flags import parse_path


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder that save_pretrained wrote, or an id on the Hub.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(parser=parse_path, metavar="OUTPUT", help="Folder to make: the bundle.", show_default=False),
    ],
    *,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="Of the decoder: fp32, fp16, bf16, int8 or int4.")
    ] = "fp32",
    vision_precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of the vision encoder.", show_default="int8 for int4, else that of the decoder"
        ),
    ] = None,
    block_size: Annotated[
        int, typer.Option(metavar="N", help="Weights that share a scale in int8 and int4: 32, 64 or 128.")
    ] = 128,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="onnxruntime, or portable: operators of the ONNX standard alone.")
    ] = "onnxruntime",
    adapter: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="LoRA adapter to merge: a folder that PEFT saved, or an id on the Hub."),
    ] = None,
    mask_decoder: Annotated[
        Path | None,
        typer.Option(
            parser=parse_path, metavar="NPZ", help="Published weights that make masks of <seg> codes, vae-oid.npz."
        ),
    ] = None,
    kv_cache: Annotated[
        str, typer.Option(metavar="NAME", help="float, or int8: a KV cache of a quarter of the bytes, on the CPU.")
    ] = "float",
    calibrate: Annotated[
        Path | None,
        typer.Option(parser=parse_path, metavar="DIR", help="Round int4 weights for the pictures in this folder."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it is a bundle.")] = False,
    prove: Annotated[bool, typer.Option(help="Compare every stage with the source model, and keep the proof.")] = True,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Keep a bundle that loses more than its precision may.")
    ] = False,
) -> None:
    """Export a checkpoint to a bundle. Needs the extra `export` (torch, transformers)."""
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    export_model = import_export().export_model
    description = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), description, BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as bar:
        task = bar.add_task("start", total=None)
        export_model(
            checkpoint,
            output,
            precision=precision,
            vision_precision=vision_precision,
            block_size=block_size,
            target=target,
            adapter=adapter,
            mask_decoder=mask_decoder,
            kv_cache=kv_cache,
            calibrate=calibrate,
            overwrite=overwrite,
            prove=prove,
            accept_loss=accept_loss,
            progress=lambda step, done, total: bar.update(task, description=step, completed=done, total=total or None),
            announce=lambda estimate: messages.print(str(estimate), style="dim", markup=False, soft_wrap=True),
        )
    size = sum(file.stat().st_size for file in output.rglob("*"))
    messages.print(f"wrote [bold]{escape(str(output))}[/], {size / 1e6:.1f} MB")


def import_export() -> ModuleType:
    """Import `onnx_vlm.export`, which is slow.

    Raises:
        InputError: if the extra `export` is not installed, or does not work.
    """
    gc.disable()  # a fifth of the time would go into looking for garbage among modules
    try:
        with messages.status("loading torch and transformers"):
            from ... import export
    except ImportError as error:
        raise InputError(explain_import_error(error, "exporting")) from error
    finally:
        gc.freeze()
        gc.enable()
    return export
