"""The flags that commands share, each written once, and the groups of flags that make one object.

A command asks for a group by its type, such as `where: Where`; `expand` puts the group's flags in its place.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from ...graphs import InputError
from ..options import Options
from ..providers.load_options import LoadOptions
from ..providers.options import parse
from .console import messages

if TYPE_CHECKING:
    from ..model import VLM

ANSWER = "Answer"  #: headings of `--help`
RUN = "Where it runs"


def check_text(text: str | None) -> str | None:
    """A text as it is, or an InputError if bytes that are no UTF-8 are in it."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise InputError(f"{text!a:.80} is not UTF-8; give text in UTF-8") from None
    return text


def check_texts(texts: list[str] | None) -> list[str] | None:
    """`check_text` of each."""
    for text in texts or ():
        check_text(text)
    return texts


Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that an export wrote.", show_default=False)]
Prompt = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT", help='The question, such as "detect red circle".', show_default=False, callback=check_text
    ),
]
Images = Annotated[
    list[Path] | None, typer.Option("--image", metavar="PATH", help="An image; may be given several times.")
]
Video = Annotated[Path | None, typer.Option(metavar="PATH", help="A video, or a folder with an image for each frame.")]
EmbeddingFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Keep image embeddings here, for later runs.", rich_help_panel=RUN)
]
MaxNewTokens = Annotated[
    int | None, typer.Option(metavar="N", help="Cut an answer after this many tokens.", rich_help_panel=ANSWER)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Provider = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="auto, cpu, cuda or tensorrt. All but auto run there or fail.", rich_help_panel=RUN
    ),
]
ProviderOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--provider-option",
        metavar="NAME=VALUE",
        help="Such as device_id=1; may be given several times.",
        rich_help_panel=RUN,
    ),
]


@dataclass(frozen=True)
class Group:
    """Flags that make one object: `Annotated[T, Group(...)]` as the type of a command's parameter."""

    parameters: tuple[inspect.Parameter, ...]
    make: Callable[..., Any]


def _load_options(
    provider: Provider = "auto",
    provider_option: ProviderOptions = None,
    allow_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-fallback", help="Let the CPU run what the provider has no kernel for.", rich_help_panel=RUN
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads for one operator on the CPU.", rich_help_panel=RUN)
    ] = None,
) -> LoadOptions:
    return LoadOptions(provider, threads, parse(provider_option), allow_fallback)


#: The options of an answer, by their names in `Options`.
HELP = {
    "max_new_tokens": "Cut the answer after this many tokens.",
    "stop": "End before this text; may be given several times.",
    "do_sample": "Draw each token by its probability.",
    "temperature": "Divide logits by this before a draw.",
    "top_k": "Draw among this many likeliest tokens.",
    "top_p": "Draw among the likeliest tokens that together reach this probability.",
    "min_p": "Draw among tokens at least this share as likely as the likeliest.",
    "seed": "Equal seeds draw equal answers.",
    "repetition_penalty": "Above 1: make tokens of prompt and answer less likely.",
    "no_repeat_ngram_size": "Write no sequence of this many tokens twice.",
    "num_beams": "Follow this many answers, for the likeliest as a whole.",
    "num_return_sequences": "Return this many answers, the best first.",
    "length_penalty": "With beams: above 0 favours long answers.",
    "early_stopping": "With beams: stop when as many answers have ended.",
    "constrain": "boxes: an answer of boxes and labels alone.",
}
#: Types that a flag has other than the option. "never" of early_stopping is a flag of its own.
TYPES: Mapping[str, Any] = {"stop": list[str] | None, "early_stopping": bool | None, "constrain": str | None}
METAVARS = {int: "N", float: "X", str: "TEXT", list[str]: "TEXT"}


def _answer_options(early_stopping_never: bool = False, **values: Any) -> Options:
    if early_stopping_never:
        if values["early_stopping"] is not None:
            raise InputError("--early-stopping-never and --early-stopping exclude each other; give one of them")
        values["early_stopping"] = "never"
    check_texts(values["stop"])
    return Options(**values)


def _answer_parameters() -> tuple[inspect.Parameter, ...]:
    hints = get_type_hints(Options) | TYPES
    flags = []
    for name, text in HELP.items():
        kind = get_args(hints[name])[0]
        option = typer.Option(metavar=METAVARS.get(kind), help=text, rich_help_panel=ANSWER)
        flags.append(_parameter(name, Annotated[hints[name], option], None))
    never = typer.Option(
        "--early-stopping-never", help="With beams: stop when no answer can become better.", rich_help_panel=ANSWER
    )
    return (*flags, _parameter("early_stopping_never", Annotated[bool, never], False))


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


_loading = tuple(inspect.signature(_load_options, eval_str=True).parameters.values())
Where = Annotated[LoadOptions, Group(_loading, _load_options)]
Answer = Annotated[Options, Group(_answer_parameters(), _answer_options)]


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are groups are replaced by their flags."""
    parameters, groups = [], {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = next((mark for mark in get_args(parameter.annotation)[1:] if isinstance(mark, Group)), None)
        if group is None:
            parameters.append(parameter)
        else:
            groups[parameter.name] = group
            parameters += group.parameters

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group.make(**{flag.name: values.pop(flag.name) for flag in group.parameters})
        command(**values)

    flat = [flag.replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag in parameters]
    run.__signature__ = inspect.Signature(flat)
    run.__annotations__ = {flag.name: flag.annotation for flag in flat}
    return run


def load(bundle: Path, where: LoadOptions, embedding_folder: Path | None) -> VLM:
    """The loaded model. If "auto" passed a GPU over, standard error says why."""
    from ..model import VLM

    vlm = VLM(bundle, where, embedding_folder=embedding_folder)
    for reason in vlm.passed_over:
        messages.print(f"on {vlm.provider}, as {reason}", markup=False, soft_wrap=True)
    return vlm
