"""Command lines with flags, values and files that a user may give by mistake, run in this process."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import sys
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from unittest import mock

import numpy as np
import typer
from onnx_vlm.runtime import cli
from PIL import Image

from .campaign import Files, Target

import_module("onnx_vlm.export")  # here and not in a case, as it takes seconds

BUNDLE = sorted((Path(__file__).parents[1] / "bundles").iterdir())[-1]
NUMBERS = ("-1", "0", "1", "2", "3", "0.5", "1.5", "-0.5", "1e400", "nan", "inf", "9" * 12, "9" * 30, "1_0", "0x1", "")
TEXTS = ("", " ", "x", "a b", "é", "\udce9", "[/]", "[bold]", "{}", "{0}", "%s", "--", "-", "\n", "x" * 5000, "boxes")
PATHS = (
    "bundle",
    "bundle",
    "bundle",
    "bundle/manifest.json",
    "image.png",
    "image.png",
    "cut.png",
    "text.txt",
    "empty",
    "none",
    "no/such/folder",
    "/dev/null",
    "/proc/self/mem",
    ".",
    "..",
    "out.png",
    "out.jpg",
    "out.xyz",
    "bundle/x.png",
    "https://example.org/x.png",
    "file:///etc/passwd",
    "name/name",
)
JSON = ("[]", "[[0, 0, 1, 1]]", "[[3, 5]]", "[null]", "{}", "nul", "[[1e999]]", "[" * 5000, "[[[[0,0,1,1]]]]", '["x"]')
PROVIDERS = ("cpu", "cpu", "auto", "cuda", "tensorrt", "CPU", "", "x")
#: Commands by how often they come. `bench` and `doctor` take seconds if they run, so they come seldom.
COMMANDS = {
    "generate": 40,
    "score": 15,
    "inspect": 12,
    "verify": 12,
    "chat": 12,
    "export": 5,
    "warmup": 3,
    "": 1,
    "x": 1,
}
SELDOM = {"bench": 0.3, "doctor": 0.3}


@lru_cache
def _parameters() -> dict[str, list[typer.core.TyperOption | typer.core.TyperArgument]]:
    """The parameters of each command."""
    return {name: command.params for name, command in typer.main.get_command(cli.app).commands.items()}


def make(rng: random.Random) -> Files:
    (command,) = rng.choices(list(COMMANDS), list(COMMANDS.values()))
    arguments = [command]
    for parameter in _parameters().get(command, []):
        if parameter.param_type_name == "argument":
            arguments += _argument(rng, command, parameter.name)
        elif rng.random() < (0.5 if parameter.name in ("image", "candidate") else 0.1):
            arguments += _flag(rng, parameter)
    if rng.random() < 0.1:
        arguments.insert(rng.randrange(len(arguments) + 1), rng.choice((*TEXTS, "--no-such-flag", "-x", "--help")))
    if rng.random() < 0.05:
        rng.shuffle(arguments)
    lines = [rng.choice((*TEXTS, "what", "/image image.png", "/quit")) for _ in range(rng.randrange(4))]
    return {"command.json": json.dumps({"arguments": arguments, "input": "\n".join(lines)}).encode()}


def _argument(rng: random.Random, command: str, name: str) -> list[str]:
    if name in ("bundle", "checkpoint", "output"):
        usual = name == "bundle" and rng.random() < 0.8
        # A valid checkpoint would be exported, which takes long: there is none among the paths.
        return ["bundle" if usual else rng.choice(PATHS)] if rng.random() < 0.97 else []
    return [rng.choice((*TEXTS, "what", "what", "what"))] * (rng.random() < 0.95)


def _flag(rng: random.Random, parameter: typer.core.TyperOption) -> list[str]:
    flag = rng.choice(parameter.opts + parameter.secondary_opts)
    if parameter.is_flag:
        return [flag]
    if parameter.name == "bboxes":
        values = JSON
    elif parameter.name == "provider":
        values = PROVIDERS
    elif parameter.name == "provider_option":
        values = ("device_id=0", "x=1", "=", "x", "", "device_id=-1", "x=" * 9)
    elif parameter.metavar in ("N", "X"):
        values = NUMBERS[2:4] if parameter.name in ("repeats", "num_beams") and rng.random() < 0.5 else NUMBERS
    else:
        values = PATHS if parameter.metavar in ("PATH", "DIR") else (*TEXTS, *NUMBERS, *PATHS)
    return [flag, rng.choice(values)] if rng.random() < 0.97 else [flag]


def _fill(folder: Path) -> None:
    """The files that the paths name."""
    if folder.exists():
        return
    shutil.copytree(BUNDLE, folder / "bundle")
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(folder / "image.png")
    (folder / "cut.png").write_bytes((folder / "image.png").read_bytes()[:40])
    (folder / "text.txt").write_text("text")
    (folder / "empty").touch()


def run(files: Files, folder: Path) -> str:
    """Status 0, 1 or 2 and never a traceback; a sentence where it is not 0."""
    _fill(folder)
    command = json.loads(files["command.json"])
    output, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, HF_HUB_OFFLINE="1", ONNX_VLM_DEBUG="1"),
        mock.patch.object(sys, "argv", ["onnx-vlm", *command["arguments"]]),
        mock.patch.object(sys, "stdin", io.StringIO(command["input"])),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        status = _status()
    said = _text(errors)
    assert status in (0, 1, 2), (status, said)
    assert "Traceback" not in said, said
    assert status == 0 or said.strip() or _text(output).strip(), "no sentence"
    flags = set(itertools.takewhile(lambda argument: argument != "--", command["arguments"]))
    if status == 0 and "--json" in flags and "--help" not in flags:
        for line in _text(output).splitlines():
            json.loads(line)
    return f"status {status}"


def _status() -> int:
    try:
        cli.main()
    except SystemExit as ended:
        return {None: 0}.get(ended.code, ended.code)
    return 0


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()


TARGET = Target("command_lines", make, run, share=3, memory=2 << 30)
