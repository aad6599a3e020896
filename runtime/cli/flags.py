"""The flags that commands share, each written once, and the groups of flags that make one object.

A command asks for a group by its type, such as `where: Where`; `expand` puts the group's flags in its place.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from ...graphs import InputError
from ...graphs.sampling import ANSWER, BEAMS
from ..options import FIELDS, Options
from ..providers.load_options import LoadOptions
from ..providers.options import parse
from .console import messages

if TYPE_CHECKING:
    from ..limits import Limits
    from ..model import VLM

RUN = "Where it runs"  #: a heading of `--help`


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


def parse_path(text: str) -> Path:
    """A path. The empty text is none: pathlib would read it as the working folder."""
    if not text:
        raise typer.BadParameter("the path is empty; give one, such as . for the working folder")
    return Path(text)


def check_bundle(bundle: str) -> str:
    """A bundle's folder or id, as it is. The empty text is none."""
    parse_path(bundle)
    return bundle


BundleName = Annotated[
    str,
    typer.Argument(
        parser=check_bundle,
        metavar="BUNDLE",
        help="Folder that an export wrote, an id on the Hub (user/name, or user/name@revision), or a URL.",
        show_default=False,
    ),
]
Prompt = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT", help='The question, such as "detect red circle".', show_default=False, callback=check_text
    ),
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", parser=parse_path, metavar="PATH", help="An image; may be given several times."),
]
Video = Annotated[
    Path | None,
    typer.Option(parser=parse_path, metavar="PATH", help="A video, or a folder with an image for each frame."),
]
EmbeddingFolder = Annotated[
    Path | None,
    typer.Option(
        parser=parse_path, metavar="DIR", help="Keep image embeddings here, for later runs.", rich_help_panel=RUN
    ),
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
    no_look_ahead: Annotated[
        bool, typer.Option("--no-look-ahead", help="Decode token by token, repeated ones too.", rich_help_panel=RUN)
    ] = False,
    expand_weights: Annotated[
        bool,
        typer.Option(
            "--expand-weights",
            help="Read prompts faster, with int4 weights in memory as int8 too (CPUs with VNNI).",
            rich_help_panel=RUN,
        ),
    ] = False,
    share_weights: Annotated[
        bool,
        typer.Option(
            "--share-weights", help="Share the weights' memory with other processes (CPU).", rich_help_panel=RUN
        ),
    ] = False,
) -> LoadOptions:
    options = parse(provider_option)
    return LoadOptions(provider, threads, options, allow_fallback, not no_look_ahead, expand_weights, share_weights)


def _bundle(bundle: BundleName) -> Path:
    """The folder of a bundle, fetched if it is on the Hub."""
    from ..hub.find import find

    return find(bundle)


METAVARS = {int: "N", float: "X", str: "TEXT", list[str]: "TEXT", list[int]: "ID"}
NEVER = "early_stopping_never"  #: a flag of its own, so that --early-stopping needs no value


def _answer_options(**values: Any) -> Options:
    """The options that were given.

    Raises:
        InputError: for flags that exclude each other, a text that is not UTF-8, or a value that cannot be read.
    """
    if values.pop(NEVER):
        if values["early_stopping"] is not None:
            raise InputError("--early-stopping-never and --early-stopping exclude each other; give one of them")
        values["early_stopping"] = "never"
    check_texts(values["stop"])
    options = {}
    for field in FIELDS:
        if (value := values[field.name]) not in (None, []):
            try:
                options[field.name] = field.kind.parse(value)
            except ValueError:
                raise InputError(f"{_flag(field.name)} is {value!r:.80}; give {field.kind.allowed}") from None
    return Options(**options)


def _answer_parameters() -> Iterator[inspect.Parameter]:
    """A flag for each option of an answer."""
    for field in FIELDS:
        text = field.help
        if field.name == "early_stopping":
            text = "with beams, stop when num_beams answers have ended"
            never = typer.Option(
                _flag(NEVER), help="With beams, stop when no answer can become better.", rich_help_panel=BEAMS
            )
            yield _parameter(NEVER, Annotated[bool, never], False)
        if get_origin(field.type) is list:
            text += "; may be given several times"
        metavar = field.kind.metavar or METAVARS.get(field.type)
        option = typer.Option(metavar=metavar, help=f"{text[0].upper()}{text[1:]}.", rich_help_panel=field.group)
        yield _parameter(field.name, Annotated[field.type | None, option], None)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _flags_of(make: Callable[..., Any]) -> Group:
    """The group whose flags are the parameters of the function that makes the object."""
    return Group(tuple(inspect.signature(make, eval_str=True).parameters.values()), make)


Bundle = Annotated[Path, _flags_of(_bundle)]
Where = Annotated[LoadOptions, _flags_of(_load_options)]
Answer = Annotated[Options, Group(tuple(_answer_parameters()), _answer_options)]


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
        for name, group in reversed(groups.items()):  # the bundle last: it may have to be fetched
            values[name] = group.make(**{flag.name: values.pop(flag.name) for flag in group.parameters})
        command(**values)

    flat = [flag.replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag in parameters]
    run.__signature__ = inspect.Signature(flat)
    run.__annotations__ = {flag.name: flag.annotation for flag in flat}
    return run


def load(bundle: Path, where: LoadOptions, embedding_folder: Path | None, limits: Limits | None = None) -> VLM:
    """The loaded model. If "auto" passed a GPU over, standard error says why."""
    from ..model import VLM

    vlm = VLM(bundle, where, limits, embedding_folder)
    for reason in vlm.passed_over:
        messages.print(f"on {vlm.provider}, as {reason}", markup=False, soft_wrap=True)
    return vlm
