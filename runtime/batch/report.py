"""A page about the results of a job: one file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...graphs import VLMError
from ..grounding.drawing import draw
from ..grounding.types import Box
from ..hub.find import name_of
from ..images.reading import read
from .progress import Progress
from .records import Record
from .rows import Reader, Row
from .run import Batch, open_results
from .shards import write_whole

SAMPLE = 12  #: rows that are shown
BINS = 24
WIDEST = 320  #: pixels of an image that is shown
STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #1f6fd8; --bad: #c8102e; }
@media (prefers-color-scheme: dark) { :root { --bar: #6aa9ff; --bad: #ff6b7d; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; } .numbers b { display: block; font-size: 1.6rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr));
gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .6rem; overflow-wrap: anywhere; }
figure img { display: block; margin: 0 auto .5rem; max-width: 100%; max-height: 320px; }
figcaption { font-size: .85rem; } figcaption small { opacity: .7; display: block; }
table { border-collapse: collapse; } td { border-top: 1px solid var(--line); padding: .3rem .8rem .3rem 0;
overflow-wrap: anywhere; } td:first-child { text-align: right; }
.charts { display: flex; flex-wrap: wrap; gap: 2rem; } .charts div { max-width: 100%; }
svg { max-width: 100%; height: auto; } svg rect { fill: var(--bar); }
svg text { fill: currentColor; font-size: 11px; } .bad { color: var(--bad); }
"""


@dataclass
class Seen:
    """What is kept of the results in one pass over them.

    Attributes:
        sample: rows that were answered, drawn at random, by their ids.
        values: by column, its values; at most `MOST` of them, drawn at random.
    """

    sample: list[Record] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=lambda: {"seconds": [], "tokens": []})


MOST = 20_000


def write_report(path: Path, batch: Batch, progress: Progress) -> None:
    """Write the page.

    Args:
        path: an HTML file.
        batch: the job, which has ended.
        progress: its counts.

    Raises:
        InputError: if input or results cannot be read.
    """
    source, reader, shards = open_results(batch)
    seen = Seen()
    keep_rows = Draw(seen.sample, SAMPLE)
    keep_values = {name: Draw(values, MOST) for name, values in seen.values.items()}
    for record in shards.read():
        if record["error"] is None:
            keep_rows.see(record)
            for name, keep in keep_values.items():
                if record.get(name) is not None:
                    keep.see(record[name])
    drawn = {record["id"]: record for record in seen.sample}
    figures = []
    for row in reader.rows(source.read(None)):
        if record := drawn.pop(row.id, None):
            figures.append(_figure(reader, row, record))
        if not drawn:
            break
    page = _page(batch, progress, seen, figures)
    write_whole(path, lambda unfinished: unfinished.write_text(page, encoding="utf-8") and None)


class Draw:
    """Keeps some of many values, each as likely as any other (reservoir sampling); equal runs keep equal ones."""

    def __init__(self, kept: list[Any], most: int) -> None:
        self._kept, self._most, self._seen, self._random = kept, most, 0, random.Random(0)

    def see(self, value: Any) -> None:
        """Keep a value, or not."""
        self._seen += 1
        if len(self._kept) < self._most:
            self._kept.append(value)
        elif (index := self._random.randrange(self._seen)) < self._most:
            self._kept[index] = value


def _page(batch: Batch, progress: Progress, seen: Seen, figures: Sequence[str]) -> str:
    event = progress.event()
    failed = event["failed"]
    numbers = {
        "rows": f"{event['rows']:,}",
        "answered": f"{event['done'] - failed:,}",
        "failed": f"{failed:,}",
    }
    if progress.rows_per_second:
        numbers["rows a second in the last run"] = f"{progress.rows_per_second:.2f}"
    shown = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in numbers.items())
    errors = "".join(f"<tr><td>{count:,}</td><td>{_text(kind)}</td></tr>" for kind, count in event["errors"].items())
    charts = "".join(
        histogram(title, seen.values[name], unit)
        for name, title, unit in (
            ("seconds", "Seconds of a row", lambda value: f"{value:.2f}"),
            ("tokens", "Tokens of an answer", lambda value: f"{value:.0f}"),
        )
        if seen.values[name]
    )
    prompt = f"<p>Prompt: <code>{_text(batch.spec.prompt)}</code></p>" if batch.spec.prompt is not None else ""
    bundle = name_of(batch.spec.fetched_from or str(batch.spec.bundle))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{_text(batch.output.name)}: {numbers["answered"]} of {numbers["rows"]} rows</title><style>{STYLE}</style>
<h1>{_text(batch.input.name)} answered by {_text(bundle)}</h1>{prompt}
<div class="numbers">{shown}</div>
{f'<h2 class="bad">Errors, the commonest first</h2><table>{errors}</table>' if errors else ""}
{f'<h2>Distributions</h2><div class="charts">{charts}</div>' if charts else ""}
<h2>{len(figures)} rows, drawn at random</h2><div class="grid">{"".join(figures)}</div>
</html>
"""


def _figure(reader: Reader, row: Row, record: Record) -> str:
    """A row: its first image with the boxes, its prompt if it has its own, and the answer."""
    try:
        question = reader.question(row)
        images, prompt = question.request.images, question.request.prompt
        image = f'<img alt="" src="{_thumbnail(images[0], record)}">' if images else ""
    except VLMError as error:  # it was there when it was answered
        image, prompt = f'<p class="bad">{_text(error)}</p>', ""
    asked = "" if prompt == reader.prompt or not isinstance(prompt, str) else f"<small>{_text(prompt)}</small>"
    labels = ", ".join(box["label"] for box in record.get("boxes") or () if box["label"])  # not the codes of places
    answer = record.get("caption") or labels or record["text"] or ""
    return (
        f"<figure>{image}<figcaption>{asked}{_text(answer)}<small>{_text(record['id'])}</small></figcaption></figure>"
    )


def _thumbnail(image: Any, record: Record) -> str:
    """An image as a data URI, small, with boxes drawn."""
    opened = read(image)
    scale = min(1.0, WIDEST / max(opened.size))
    small = opened.resize([max(1, round(side * scale)) for side in opened.size], Image.Resampling.LANCZOS)
    described = [
        *(record.get("boxes") or ()),
        *(box for entity in record.get("entities") or () for box in entity["boxes"]),
    ]
    boxes = [Box(box["label"], *(box[side] * scale for side in ("xmin", "ymin", "xmax", "ymax"))) for box in described]
    buffer = io.BytesIO()
    draw(small, boxes).save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def histogram(title: str, values: Sequence[float], show: Callable[[float], str]) -> str:
    """A distribution as an image in SVG, up to its 99th percentile, with its median.

    Args:
        show: writes a value.
    """
    array = np.asarray(values, float)
    middle, end = np.percentile(array, [50, 99])
    start = min(array.min(), end)
    counts, _ = np.histogram(array[array <= end], BINS, (start, end if end > start else start + 1))
    width, height = 480, 140
    step = width / BINS
    bars = "".join(
        f'<rect x="{index * step:.1f}" y="{height - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}"/>'
        for index, tall in enumerate(counts / max(1, counts.max()) * height)
    )
    return (
        f'<div><b>{_text(title)}</b><br><svg viewBox="0 0 {width} {height + 18}" width="{width}" role="img">{bars}'
        f'<text x="0" y="{height + 14}">{show(start)}</text>'
        f'<text x="{width / 2}" y="{height + 14}" text-anchor="middle">median {show(middle)}</text>'
        f'<text x="{width}" y="{height + 14}" text-anchor="end">{show(end)} (99 %)</text></svg></div>'
    )


def _text(value: object) -> str:
    return html.escape(str(value))
