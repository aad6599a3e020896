"""Jinja for templates of unknown origin: they reach no Python, and they end."""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any

import jinja2
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SECONDS = 1.0  #: of the processor's time, for one rendering; a real template takes a few milliseconds
LARGEST = 10_000_000  #: the longest text or list, in items, and the largest number
#: A width of eight digits or more in a format, of which Python would make that many spaces.
WIDE = re.compile(r"\{[^}]*\d{8}|%(\(\w*\))?[-+# .\d]*\d{8}")


class _Blocks(Extension):
    """`{% generation %}` marks what an assistant wrote, for training. Here it writes what is in it."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


class _Generator(CodeGenerator):
    """Checks what `~` joins, which is no operator to the sandbox."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: Any) -> None:  # noqa: N802
        self.write("environment.checked(")
        super().visit_Concat(node, frame)
        self.write(")")


class _Namespace(Namespace):
    """Jinja's, without names that Python itself looks up."""

    def __init__(*arguments: Any, **named: Any) -> None:  # unnamed, as `self` may be an attribute
        self, *values = arguments
        for name in dict(*values, **named):
            _check_name(name)
        Namespace.__init__(self, *values, **named)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose operators, functions and filters take and return nothing larger than `LARGEST`."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Blocks, loopcontrols])
        self.filters = {name: self._guarded(function) for name, function in self.filters.items()}
        self.globals["namespace"] = _Namespace

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = _size(left), _size(right)
        if (operator == "*" and sizes[0] * sizes[1] > LARGEST) or (operator == "**" and sizes[1] > 64):
            raise SecurityError(f"{operator} makes something too large")
        if operator == "%":
            _check_format(left)
        return self.checked(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *values: Any, **named: Any) -> Any:
        for value in (*values, *named.values()):
            self.checked(value)
        return super().call(context, function, *values, **named)

    def wrap_str_format(self, value: Any) -> Any:
        if getattr(value, "__name__", None) in ("format", "format_map"):
            _check_format(getattr(value, "__self__", None))
        return super().wrap_str_format(value)

    def checked(self, value: Any) -> Any:
        """The value, if it is not too large."""
        if _size(value) > LARGEST:
            raise SecurityError(f"a value is larger than {LARGEST:,}")
        return value

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def guarded(*values: Any, **named: Any) -> Any:
            for value in (*values, *named.values()):
                self.checked(value)
            if function is do_format:
                _check_format(values[0])
            return function(*values, **named)

        return guarded


def _size(value: Any) -> float:
    """The length of a text or list, or how large a number is."""
    if isinstance(value, (int, float)):
        return abs(value)
    if isinstance(value, tuple):
        return max((len(value), *map(_size, value)))
    return len(value) if isinstance(value, (str, list, dict)) else 0


def _check_format(text: Any) -> None:
    if isinstance(text, str) and (len(text) > 10_000 or WIDE.search(text)):
        raise SecurityError(f"the format {text!r:.80} is too long, or has a width of more than seven digits")


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace takes no attribute {name!r:.80}, which begins with an underscore")


class _TooLong(BaseException):
    """No Exception, which the code that runs might catch."""


@contextmanager
def limited_time(seconds: float = SECONDS) -> Iterator[None]:
    """Raise a TemplateError in the block if its Python code takes this thread longer than that."""
    end, events = time.thread_time() + seconds, itertools.count(1)

    def watch(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if next(events) % 64 == 0 and time.thread_time() > end:
            raise _TooLong
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    except _TooLong:
        raise jinja2.TemplateError(f"it takes more than {seconds:g} seconds") from None
    finally:
        sys.settrace(before)
