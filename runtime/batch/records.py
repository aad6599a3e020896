"""What stands in the results: a record for each row, the same in JSONL and Parquet."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from ...graphs import InputError
from ..grounding.types import Mask, run_lengths
from ..results import Generation, Score
from .packages import pyarrow
from .rows import Reader, Row, plain_text

Task: TypeAlias = Literal["generate", "score", "embed"]
Record: TypeAlias = dict[str, Any]
TASKS: tuple[Task, ...] = ("generate", "score", "embed")
FORMAT = 1  #: of the records; a job of another one is not gone on with

#: The columns of each task, with their types as `_arrow` reads them.
BOX = {"label": "string", "xmin": "double", "ymin": "double", "xmax": "double", "ymax": "double"}
ANSWER = {"text": "string", "tokens": "int64", "finish_reason": "string", "score": "double"}
TOKEN = {"id": "int64", "logprob": "double"}
COLUMNS: dict[Task, dict[str, Any]] = {
    "generate": {
        "text": "string",
        "tokens": "int64",
        "prompt_tokens": "int64",
        "finish_reason": "string",
        "caption": "string",
        "boxes": [BOX],
        "entities": [{"label": "string", "start": "int64", "end": "int64", "boxes": [BOX]}],
        "masks": [{"label": "string", "box": BOX, "codes": ["int64"], "size": ["int64"], "counts": ["int64"]}],
        "score": "double",
        "logprobs": [{**TOKEN, "top": [TOKEN]}],
        "alternatives": [ANSWER],
    },
    "score": {
        "text": "string",
        "score": "double",
        "scores": [{"text": "string", "log_probability": "double"}],
    },
    "embed": {"vectors": [["float"]], "tokens": "int64"},
}
#: Columns of all tasks. `input` is the digest of the row; `error_kind` is `error` without what is of one row alone.
FRAME = {"seconds": "double", "error": "string", "error_kind": "string", "input": "string"}


def columns(task: Task) -> dict[str, Any]:
    """The columns of a task's results, in their order, and their types."""
    return {"id": "string", **COLUMNS[task], **FRAME}


def schema(task: Task, carry: Sequence[str], types: Any) -> Any:
    """The columns as a schema of pyarrow.

    Args:
        carry: columns of the input that are carried along.
        types: their types, where the input says; they are text if None, anything but a text as JSON.
    """
    arrow = pyarrow("pyarrow", "writing Parquet")
    fields = {name: _arrow(arrow, kind) for name, kind in columns(task).items()}
    carried = {name: arrow.string() if types is None else types.field(name).type for name in carry}
    return arrow.schema({**fields, **carried})


def _arrow(arrow: Any, kind: Any) -> Any:
    if isinstance(kind, list):
        return arrow.list_(_arrow(arrow, kind[0]))
    if isinstance(kind, dict):
        return arrow.struct({name: _arrow(arrow, inner) for name, inner in kind.items()})
    return arrow.type_for_alias(kind)


class Recorder:
    """Makes records.

    Args:
        carry: columns of the input that are carried along.
        as_text: carry them as text, for a file whose columns have one type.
    """

    def __init__(self, task: Task, reader: Reader, carry: Sequence[str] = (), as_text: bool = False) -> None:
        self._reader, self._carry, self._as_text = reader, carry, as_text
        self._empty = dict.fromkeys(columns(task))
        if taken := sorted(set(carry) & self._empty.keys()):
            raise InputError(f"the column {taken[0]!r} cannot be carried along: the results have one of that name")

    def record(self, row: Row, result: Generation | list[Score] | np.ndarray | Exception) -> Record:
        """The record of a row, by what came of it."""
        if isinstance(result, Exception):
            values = self._error(row, result)
        elif isinstance(result, np.ndarray):
            values = {"vectors": list(result), "tokens": len(result)}
        else:
            values = _scores(result) if isinstance(result, list) else _generation(result)
        cells = {} if isinstance(row.cells, InputError) else row.cells
        carried = {name: self._carried(cells.get(name)) for name in self._carry}
        return {**self._empty, "id": row.id, **values, "input": f"{row.digest:016x}", **carried}

    def _carried(self, value: Any) -> Any:
        if not self._as_text or value is None:
            return value
        return plain_text(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def _error(self, row: Row, error: Exception) -> Record:
        message = plain_text(str(error) or type(error).__name__)
        kind = message
        for name in self._reader.names(row):
            kind = kind.replace(plain_text(name), "...")
        kind = re.sub(r"\d+", "N", kind.partition("\n")[0])
        return {"error": message, "error_kind": f"{type(error).__name__}: {kind:.200}"}


def _generation(answer: Generation) -> Record:
    logprobs = answer.logprobs and [
        {"id": token.id, "logprob": _finite(token.logprob), "top": [_token(*pair) for pair in token.top]}
        for token in answer.logprobs
    ]
    stages = answer.timings.keys() - {"queue", "tokens_per_second"}
    return {
        **_answer(answer),
        "prompt_tokens": answer.prompt_tokens,
        "caption": answer.caption,
        "boxes": [dataclasses.asdict(box) for box in answer.boxes],
        "entities": [dataclasses.asdict(entity) for entity in answer.entities],
        "masks": [_mask(mask) for mask in answer.masks],
        "logprobs": logprobs,
        "alternatives": [_answer(other) for other in answer.alternatives],
        "seconds": round(sum(answer.timings[name] for name in stages), 4),
    }


def _answer(answer: Generation) -> Record:
    return {
        "text": answer.text,
        "tokens": len(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "score": _finite(answer.score),
    }


def _mask(mask: Mask) -> Record:
    shape = {"size": None, "counts": None} if mask.pixels is None else run_lengths(mask.pixels)
    return {"label": mask.label, "box": dataclasses.asdict(mask.box), "codes": list(mask.codes), **shape}


def _scores(scores: list[Score]) -> Record:
    best = max(scores, key=lambda entry: entry.log_probability)
    return {
        "text": best.text,
        "score": _finite(best.log_probability),
        "scores": [{"text": entry.text, "log_probability": _finite(entry.log_probability)} for entry in scores],
    }


def _token(token: int, logprob: float) -> Record:
    return {"id": token, "logprob": _finite(logprob)}


def _finite(value: float | None) -> float | None:
    """A number; None for one that JSON has not."""
    return value if value is not None and math.isfinite(value) else None


def for_json(value: Any) -> Any:
    """A value that JSON has not: a vector as a list, bytes as base64, others as their text."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
