"""The Dockerfile, read."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from helpers import REPOSITORY


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, its flags by name, and the rest of its line."""

    name: str
    flags: dict[str, str]
    rest: str

    @property
    def words(self) -> list[str]:
        """The rest in its JSON form, if it has that, or split at spaces."""
        return json.loads(self.rest) if self.rest.startswith("[") else self.rest.split()


def read_stages() -> list[list[Instruction]]:
    """The instructions of each stage; the last is that of the image."""
    text = re.sub(r"^\s*#.*\n", "", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: list[list[Instruction]] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip():
            continue
        name, rest = line.split(maxsplit=1)
        flags = dict(re.findall(r"(?:^|\s)--([\w-]+)=(\S+)", rest.partition("CMD")[0])) if name != "RUN" else {}
        rest = re.sub(r"^(--[\w-]+=\S+\s+)+", "", rest)
        if name == "FROM":
            stages.append([])
        stages[-1].append(Instruction(name, flags, rest))
    return stages


def image(name: str) -> Instruction:
    """The last instruction of that name in the image's own stage."""
    return [instruction for instruction in read_stages()[-1] if instruction.name == name][-1]


def health_check() -> list[str]:
    """The command that asks whether the server is healthy."""
    return json.loads(image("HEALTHCHECK").rest.removeprefix("CMD "))
