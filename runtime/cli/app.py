"""The command `onnx-vlm`: a shell over the Python functions. Standard output gets answers, standard error the rest."""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ...graphs import InputError, VLMError
from . import answers as talk
from . import flags
from .flags import AllowFallback, Provider, ProviderOptions

app = typer.Typer(
    help="Vision-language models as ONNX: export a checkpoint once, then ask about pictures without PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
messages = Console(stderr=True, highlight=False)


def main() -> None:
    """Run the command; errors meant for a user end it with their message and status, 2 for bad use or input."""
    try:
        app()
    except VLMError as error:
        messages.print(f"[bold red]error:[/] {_plain(error)}", soft_wrap=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.exit(1)


@app.command()
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder as save_pretrained writes it, or an id on the Hub.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to make, the bundle.", show_default=False)],
    precision: Annotated[str, typer.Option(help="Of the decoder: fp32, fp16, bf16, int8 or int4.")] = "fp32",
    vision_precision: Annotated[
        str | None, typer.Option(help="Of the vision encoder.", show_default="int8 for int4, else as the decoder")
    ] = None,
    block_size: Annotated[int, typer.Option(help="Weights that share a scale in int8 and int4: 32, 64 or 128.")] = 128,
    target: Annotated[
        str, typer.Option(help="onnxruntime, or portable: operators of the ONNX standard alone.")
    ] = "onnxruntime",
    adapter: Annotated[
        str | None, typer.Option(help="LoRA adapter to merge: folder as PEFT saves it, or an id on the Hub.")
    ] = None,
    mask_decoder: Annotated[
        Path | None, typer.Option(help="Published weights that make masks of <seg> codes, vae-oid.npz.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it is a bundle.")] = False,
    prove: Annotated[bool, typer.Option(help="Hold every stage to the source model, and keep the proof.")] = True,
) -> None:
    """Export a checkpoint to a bundle. Needs the extra `export` (torch, transformers)."""
    export_model = _exporting().export_model
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as bar:
        task = bar.add_task("start", total=None)

        def show(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total or None)

        export_model(
            checkpoint, output, precision=precision, vision_precision=vision_precision, block_size=block_size,
            target=target, adapter=adapter, mask_decoder=mask_decoder, overwrite=overwrite, prove=prove, progress=show,
            announce=lambda estimate: messages.print(str(estimate), style="dim", soft_wrap=True),
        )  # fmt: skip
    size = sum(file.stat().st_size for file in output.rglob("*"))
    messages.print(f"wrote [bold]{_plain(output)}[/], {size / 1e6:.1f} MB")


@app.command()
def generate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that an export wrote.", show_default=False)],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help='What to ask, such as "detect red circle".', show_default=False)
    ],
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be given several times.")] = None,
    video: Annotated[Path | None, typer.Option(help="A video, or a folder with a picture a frame.")] = None,
    provider: Provider = "auto",
    provider_option: ProviderOptions = None,
    allow_fallback: AllowFallback = False,
    threads: Annotated[int | None, typer.Option(help="Threads for one operator.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Where the answer is cut.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    do_sample: Annotated[bool | None, typer.Option(help="Draw tokens by their probability.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the draw: below 1 likely tokens get likelier.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among this many likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest that together reach this.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Draw among those this share as likely as the best.")] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds draw equal answers.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: tokens seen get less likely.")] = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(help="No so many tokens occur twice.")] = None,
    num_beams: Annotated[int | None, typer.Option(help="Follow so many answers for the likeliest as a whole.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="With beams: above 0 favours long answers.")] = None,
    early_stopping: Annotated[bool | None, typer.Option(help="With beams: stop once so many have ended.")] = None,
    constrain: Annotated[str | None, typer.Option(help="boxes: an answer of boxes and labels alone.")] = None,
    bboxes: Annotated[str | None, typer.Option(help="Boxes of the prompt's phrases, as JSON.")] = None,
    embedding_folder: Annotated[Path | None, typer.Option(help="Keep what pictures are encoded to here.")] = None,
    draw: Annotated[Path | None, typer.Option(help="Write the picture with boxes and masks drawn on it here.")] = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print as it comes.", show_default="on a terminal")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer a prompt about pictures or a video; what is left out is as generation_config.json of the model says."""
    from ..grounding import drawing
    from ..grounding import types as grounding
    from ..images.reading import read
    from . import tables as describe

    if draw is not None:
        _check_drawing(draw, image)
    vlm = flags.load(bundle, provider, threads, provider_option, allow_fallback, embedding_folder)
    options = {
        "max_new_tokens": max_new_tokens, "stop": stop, "do_sample": do_sample, "temperature": temperature,
        "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed, "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size, "num_beams": num_beams, "length_penalty": length_penalty,
        "early_stopping": early_stopping, "constrain": constrain,
    }  # fmt: skip
    pieces = vlm.stream(prompt, image, video, bboxes=_boxes(bboxes), **options)
    streaming = not as_json and (sys.stdout.isatty() if stream is None else stream)
    for piece in pieces:
        if streaming:
            print(piece, end="", flush=True)
    answer = pieces.generation
    if draw is not None and image:
        drawing.draw(read(image[0]), answer.boxes, answer.masks).save(draw)
    if as_json:
        print(json.dumps(dataclasses.asdict(answer), ensure_ascii=False, default=grounding.run_lengths))
        return
    print("" if streaming else answer.text if answer.caption is None else answer.caption)
    if answer.boxes:
        messages.print(describe.boxes(answer.boxes))
    messages.print(f"{describe.times(answer.timings)}  on {vlm.provider}", style="dim", soft_wrap=True)
    if draw is not None:
        messages.print(f"wrote [bold]{_plain(draw)}[/]")


app.command()(talk.chat)
app.command()(talk.score)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that an export wrote.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON object.")] = False,
) -> None:
    """Show what a bundle is: origin, sizes, precision, inputs and outputs, how it treats prompts and pictures."""
    from ...graphs import manifest
    from . import tables as describe

    found = manifest.load(bundle)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), ensure_ascii=False))
    else:
        Console(highlight=False, markup=False).print(describe.describe(found))


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that an export wrote.", show_default=False)],
    provider: Provider = "auto",
    provider_option: ProviderOptions = None,
    allow_fallback: AllowFallback = False,
    threads: Annotated[int | None, typer.Option(help="Threads for one operator.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Compare with this source model, run now, instead of the bundle's proof.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="The adapter that was merged, with --checkpoint.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hold a bundle to its proof: its files, and every stage and token of the source model. Status 1 if it fails."""
    from ..providers.options import parse
    from ..verify import verify as run
    from . import tables as describe

    if adapter is not None and checkpoint is None:
        raise InputError("--adapter goes with --checkpoint, the source model that it was merged into")
    with messages.status("verify") as status:
        if checkpoint is not None:
            _exporting()
            from ...export.proof.proof import live

            status.update(f"run {_plain(checkpoint)}")
        expected = live(checkpoint, adapter) if checkpoint is not None else None
        checks = run(
            bundle, provider, threads, expected, lambda step: status.update(_plain(step)),
            provider_options=parse(provider_option), allow_fallback=allow_fallback,
        )  # fmt: skip
    passed = all(check.passed for check in checks)
    if as_json:
        print(json.dumps({"passed": passed, "checks": [check.json() for check in checks]}, ensure_ascii=False))
    else:
        Console(highlight=False).print(describe.checks(checks))
        messages.print("[bold green]passed[/]" if passed else "[bold red]failed[/]")
    if not passed:
        raise typer.Exit(1)


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that an export wrote.", show_default=False)],
    image: Annotated[
        Path | None, typer.Option(help="A picture.", show_default="one of 640 x 480 pixels, drawn for this")
    ] = None,
    provider: Provider = "auto",
    provider_option: ProviderOptions = None,
    allow_fallback: AllowFallback = False,
    threads: Annotated[int | None, typer.Option(help="Threads for one operator.")] = None,
    new_tokens: Annotated[int, typer.Option(help="How many tokens to decode.")] = 32,
    repeats: Annotated[int, typer.Option(help="How often; the first is not counted.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a bundle on this machine: load, preprocess, vision, prefill, decode, memory."""
    from .. import bench
    from ..providers.options import parse
    from . import tables as describe

    with messages.status("load") as status:
        found = bench.measure(
            bundle, image, provider, threads, new_tokens, repeats, status.update,
            provider_options=parse(provider_option), allow_fallback=allow_fallback,
        )  # fmt: skip
    if as_json:
        print(json.dumps({**dataclasses.asdict(found), "limit_share": found.limit_share}))
    else:
        Console(highlight=False).print(describe.figures(found))


@app.command()
def doctor(
    provider: Annotated[str, typer.Option(help="The one that must run: auto, cpu, cuda or tensorrt.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Try every provider on this machine: what runs, why not, and what to do. Status 1 if --provider does not run.

    That of auto is cuda where onnxruntime-gpu is installed, and cpu where it is not.
    """
    from ..providers import doctor
    from ..providers.targets import targets
    from . import tables as describe

    targets(provider)
    with messages.status("try providers"):
        found = doctor.examine()
    if as_json:
        print(json.dumps(found.json(provider), ensure_ascii=False))
    else:
        Console(highlight=False).print(describe.report(found))
    if not found.sound(provider):
        raise typer.Exit(1)


@app.command()
def warmup(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that an export wrote.", show_default=False)],
    provider: Annotated[str, typer.Option(help="tensorrt.")] = "tensorrt",
    provider_option: ProviderOptions = None,
) -> None:
    """Build what a provider builds of a bundle, once: TensorRT's engines, which take minutes."""
    from ..providers.options import parse
    from ..warmup import warmup as run

    with messages.status("warm up") as status:
        folder = run(bundle, provider, parse(provider_option), status.update)
    messages.print(f"engines are in [bold]{_plain(folder)}[/]")


def _exporting() -> ModuleType:
    """The room that exports, or an error that says what to install."""
    gc.disable()  # nothing that is loaded is garbage, and a fifth of the time would go into looking for it
    try:
        with messages.status("loading torch and transformers"):
            from ... import export
    except ImportError as error:
        raise InputError(f"{error}; exporting needs: pip install 'onnx-vlm[export]'") from error
    finally:
        gc.freeze()
        gc.enable()
    return export


def _boxes(text: str | None) -> list | None:
    """The boxes of --bboxes."""
    if text is None:
        return None
    try:
        boxes = json.loads(text)
    except ValueError as error:
        raise InputError(f"--bboxes is not JSON: {error}") from None
    if not isinstance(boxes, list):
        raise InputError(f"--bboxes is a list with an entry for each phrase, not {text}")
    return boxes


def _check_drawing(draw: Path, images: list[Path] | None) -> None:
    """Find out before the model runs whether the drawing can be written."""
    if not images:
        raise InputError("--draw draws on a picture; give one with --image")
    if draw.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"--draw {draw}: the name must end like a picture's, such as .png or .jpg")
    if not draw.parent.is_dir():
        raise InputError(f"--draw {draw}: there is no folder {draw.parent}")


def _plain(text: object) -> str:
    """Text that rich prints as it is."""
    return str(text).replace("[", r"\[")
