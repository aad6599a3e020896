"""Options of providers: the one table of their names, what they mean, and what ONNX Runtime calls them.

Whatever is given is checked here by name and value, so that no option is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...graphs import InputError
from .table import PROVIDERS

MOST_THREADS = 1024  #: starting more takes minutes, and no machine's processors are as many
SESSION = "SessionOptions"  #: where an option goes that is none of a provider but an attribute of the session's options
_CUDA = PROVIDERS["cuda"].ort_name
_TENSORRT = PROVIDERS["tensorrt"].ort_name


@dataclass(frozen=True)
class Number:
    """An integer of at least `least` and at most `most`, or its text."""

    least: int
    most: int | None = None

    def __str__(self) -> str:
        return f"an integer of {self.least} " + ("or more" if self.most is None else f"to {self.most}")

    def read(self, value: Any) -> int:
        integer = value if isinstance(value, int) and not isinstance(value, bool) else int(str(value), 10)
        if integer < self.least or (self.most is not None and integer > self.most):
            raise ValueError
        return integer


@dataclass(frozen=True)
class Choice:
    """One of some words, and what ONNX Runtime takes for each."""

    words: Mapping[str, Any]

    def __str__(self) -> str:
        return " or ".join(map(repr, self.words))

    def read(self, value: Any) -> Any:
        if value not in self.words:
            raise ValueError
        return self.words[value]


@dataclass(frozen=True)
class Option:
    """An option: its meaning, its values, and for each provider that has it, the settings that it changes."""

    meaning: str
    values: Number | Choice
    goes: Mapping[str, Sequence[tuple[str, str]]]


def _with_cuda(name: str) -> dict[str, Sequence[tuple[str, str]]]:
    """An option of the CUDA provider; TensorRT leaves to that one what it does not take itself."""
    return {"cuda": [(_CUDA, name)], "tensorrt": [(_CUDA, name)]}


#: Defaults of the CUDA provider: float32 as the source model computes it.
DEFAULTS = {"use_tf32": "0"}
_SWITCH = Choice({"on": 1, "off": 0})

OPTIONS: Mapping[str, Option] = {
    "threads": Option(
        "threads that work on one operator on the CPU; one a core, or fewer within a container's quota, if not given",
        Number(1, MOST_THREADS),
        {provider: [(SESSION, "intra_op_num_threads")] for provider in PROVIDERS},
    ),
    "arena": Option(
        "keep freed memory for the next run ('on', the default)",
        Choice({"on": True, "off": False}),
        {"cpu": [(SESSION, "enable_cpu_mem_arena")]},
    ),
    "device_id": Option(
        "which GPU, as nvidia-smi numbers them; 0",
        Number(0),
        {"cuda": [(_CUDA, "device_id")], "tensorrt": [(_TENSORRT, "device_id"), (_CUDA, "device_id")]},
    ),
    "memory_limit": Option(
        "bytes that the arena on the GPU may grow to, of each graph", Number(1), _with_cuda("gpu_mem_limit")
    ),
    "arena_extend": Option(
        "how the arena on the GPU grows: to the next 'power_of_two' (the default) or 'exact'",
        Choice({"power_of_two": "kNextPowerOfTwo", "exact": "kSameAsRequested"}),
        _with_cuda("arena_extend_strategy"),
    ),
    "tf32": Option(
        "let float32 products round to 10 bits of mantissa on tensor cores; 'off' unless given",
        _SWITCH,
        _with_cuda("use_tf32"),
    ),
    "cuda_graph": Option(
        "replay a decoding step as one CUDA graph; 'off' unless given",
        _SWITCH,
        {"cuda": [(_CUDA, "enable_cuda_graph")]},
    ),
}


def parse(texts: Sequence[str] | None) -> dict[str, str]:
    """Options given as `name=value` on a command line.

    Raises:
        InputError: for one without a name or value, or that is given twice.
    """
    options: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"--provider-option {text!r} is not NAME=VALUE; names: {', '.join(OPTIONS)}")
        if name in options:
            raise InputError(f"--provider-option {name} is given twice; give it once")
        options[name] = value
    return options


def takes(provider: str, options: Mapping[str, Any]) -> bool:
    """Whether a provider has all these options."""
    return all(name not in OPTIONS or provider in OPTIONS[name].goes for name in options)


def resolve(provider: str, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each of ONNX Runtime's providers (texts by name) and of `SESSION` (values by attribute).

    Raises:
        InputError: for an unknown name or an invalid value.
    """
    resolved: dict[str, dict[str, Any]] = {
        name: {} for name in (SESSION, *(row.ort_name for row in PROVIDERS.values()))
    }
    if not PROVIDERS[provider].on_host:
        resolved[_CUDA] |= DEFAULTS
    for name, value in options.items():
        known = [key for key, option in OPTIONS.items() if provider in option.goes]
        if name not in known:
            elsewhere = [other for other in PROVIDERS if name in OPTIONS and other in OPTIONS[name].goes]
            also = f" ({name} is one of {', '.join(elsewhere)})" if elsewhere else ""
            raise InputError(f"provider {provider} has no option {name!r}{also}; it has: {', '.join(known)}")
        option = OPTIONS[name]
        try:
            read = option.values.read(value)
        except (ValueError, TypeError):
            raise InputError(f"provider option {name} is {value!r}; give {option.values}: {option.meaning}") from None
        for where, called in option.goes[provider]:
            resolved[where][called] = read if where == SESSION else str(read)
    return resolved
