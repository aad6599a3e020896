"""The terminal: the application, what is printed where, and how an error ends the command."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from ...graphs import VLMError

DEBUG = "ONNX_VLM_DEBUG"  #: environment variable; if set, an unexpected error shows its traceback
#: Reasons why a path cannot be used that its user can mend. Others, such as a full disk, are failures.
BAD_PATH = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG),
}

app = typer.Typer(
    help="Vision-language models as ONNX: export a checkpoint once, then ask about images without PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
messages = Console(stderr=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. An error ends it with a sentence and a status: 2 for bad use or input, 1 for a failure.

    Args:
        arguments: those after the command's name; None for those of this process.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # an answer may have letters that the terminal has not
    try:
        app(arguments)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if os.environ.get(DEBUG) and not isinstance(error, VLMError):
            raise
        sentence, status = explain(error)
        print_error(sentence)
        sys.exit(status)


def explain(error: Exception) -> tuple[str, int]:
    """A sentence about an error, and the status that the command ends with."""
    if isinstance(error, VLMError):
        return str(error), error.exit_status
    if isinstance(error, OSError) and error.strerror:
        where = f"{shorten(os.fsdecode(error.filename))}: " if isinstance(error.filename, (str, bytes)) else ""
        return f"{where}{error.strerror}; check the path and its permissions", 2 if error.errno in BAD_PATH else 1
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}; ask for less at once, or free memory", 1
    kind = type(error).__name__
    return (
        f"unexpected {kind}{f': {error}' if str(error) else ''}; this is a defect of onnx-vlm: please report it with"
        f" the traceback, which {DEBUG}=1 in the environment shows",
        1,
    )


def print_error(sentence: str) -> None:
    """Print an error on standard error."""
    messages.print(f"[bold red]error:[/] {escape(sentence)}", soft_wrap=True)


def print_json(value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Print one JSON object on standard output; a number that JSON has not (NaN, infinity) is null.

    Args:
        value: dictionaries, lists, tuples, texts, numbers, and whatever `default` turns into these.
        default: as for `json.dumps`.
    """
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(_finite(value), ensure_ascii=not is_utf8, allow_nan=False, default=default))


def shorten(text: str, length: int = 200) -> str:
    """A text, its middle left out if it is longer than `length`."""
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 2 :]}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
