"""The command `batch`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ....graphs import InputError
from .. import flags
from ..console import messages, print_json

JOB = "The job"  #: a heading of `--help`


def batch(
    bundle: flags.BundleName,
    input: Annotated[
        Path,
        typer.Argument(
            parser=flags.parse_path,
            metavar="INPUT",
            help="A folder of images, a .jsonl, .csv or .parquet file, or a dataset saved by `datasets`.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(parser=flags.parse_path, metavar="OUTPUT", help="Folder for the results.", show_default=False),
    ],
    *,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Of rows that have none.", callback=flags.check_text)
    ] = None,
    task: Annotated[
        str, typer.Option(metavar="NAME", help="generate, score for --candidate, or embed for vectors.")
    ] = "generate",
    candidate: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A possible answer to score; once for each.", callback=flags.check_texts),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=NAME", help="The column for id, prompt, image, ..., if it has another name."),
    ] = None,
    carry: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Copy this column of the input to the results.")
    ] = None,
    allow_media_domain: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="Let rows name https URLs of this host.")
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="NAME", help="Of the results: jsonl or parquet.", rich_help_panel=JOB)
    ] = "jsonl",
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Answer rows anew that failed before.", rich_help_panel=JOB)
    ] = False,
    mix_providers: Annotated[
        bool,
        typer.Option("--mix-providers", help="Go on also where another provider answered before.", rich_help_panel=JOB),
    ] = False,
    shard_rows: Annotated[int, typer.Option(metavar="N", help="Results in one file.", rich_help_panel=JOB)] = 256,
    report: Annotated[
        Path | None,
        typer.Option(
            parser=flags.parse_path, metavar="PATH", help="Write a page about the results.", rich_help_panel=JOB
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each event.", rich_help_panel=JOB)
    ] = False,
    max_rows: Annotated[
        int, typer.Option(metavar="N", help="Rows that are answered together.", rich_help_panel=flags.RUN)
    ] = 8,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="local, or ray for more machines.", rich_help_panel=flags.RUN)
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Of the cluster.", show_default="one of this machine", rich_help_panel=flags.RUN
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Processes that read images; with ray, the most actors.",
            show_default="as many as CPUs; 1 actor",
            rich_help_panel=flags.RUN,
        ),
    ] = None,
    options: flags.Answer,
    where: flags.Where,
) -> None:
    """Answer the rows of a table, or ask about each image of a folder.

    A job that was stopped goes on where it was. A row that fails has its error in the results; the others go on.
    """
    from ...batch import Batch, Spec, run
    from ...batch.progress import Lines, Shown, summary
    from ...batch.ray_engine import on_ray
    from ...batch.run import ENGINES, answer_here
    from ...hub.find import find

    if task == "embed" and report is not None:
        raise InputError("--report shows answers, and the task embed makes vectors; leave it out")
    if engine not in ENGINES:
        raise InputError(f"the engine is {engine!r}; give one of {', '.join(ENGINES)}")

    folder = find(bundle)
    spec = Spec(
        bundle=folder,
        base=Path(),
        task=task,
        prompt=prompt,
        candidates=tuple(candidate or ()),
        options=options,
        columns=_columns(column or []),
        carry=tuple(carry or ()),
        media_domains=tuple(allow_media_domain or ()),
        where=where,
        max_rows=max_rows,
        threads=_readers(engine, workers),
        apart=engine == "local",  # Ray counts the CPUs of its actors, and they are processes themselves
        fetched_from=None if folder == Path(bundle) else bundle,
    )
    asked = Batch(input, output, spec, format, shard_rows, retry_errors, mix_providers)
    shown = Lines(print_json) if as_json else Shown(messages)
    with _ends_by_terminate(), shown:
        answer = answer_here if engine == "local" else on_ray(input, ray_address, workers or 1)
        progress = run(asked, answer, shown.start, shown.row, shown.shard)
    if not as_json:
        messages.print(summary(progress))
        messages.print(f"the results are in [bold]{escape(str(output))}[/]", soft_wrap=True)
    if report is not None:
        from ...batch.report import write_report

        write_report(report, asked, progress)
        if not as_json:
            messages.print(f"wrote [bold]{escape(str(report))}[/]")


def _readers(engine: str, workers: int | None) -> int:
    """How many read images: processes, or with Ray threads of each actor."""
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}; give 1 or more")
    return 2 if engine == "ray" else workers or os.cpu_count() or 1


def _columns(pairs: list[str]) -> dict[str, str]:
    """The columns of --column."""
    columns: dict[str, str] = {}
    for pair in pairs:
        role, equals, name = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--column is {pair!r:.80}; give ROLE=NAME, such as image=photo")
        columns[role] = name
    return columns


@contextmanager
def _ends_by_terminate() -> Iterator[None]:
    """Let SIGTERM end the job as Ctrl-C does, so that what is done is written."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
