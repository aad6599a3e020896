"""JSON read into dataclasses; unknown keys, missing keys without a default and values of other types are problems."""

from __future__ import annotations

import dataclasses
import sys
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def read(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`value` from JSON as an object of the type `kind`; None or incomplete where there are problems.

    Args:
        where: the name of the value, for messages; "" or with a dot at its end.
        problems: takes a sentence for each unknown key, missing key and value of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if type(value) in arguments:
            return value
        return read(_variant(arguments, value), value, where, problems)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        problems.extend(f"{where}{key}: unknown" for key in sorted(value.keys() - hints.keys()))
        missing = sorted(_required(kind) - value.keys())
        problems.extend(f"{where}{key}: missing" for key in missing)
        fields = {k: read(hint, value[k], f"{where}{k}.", problems) for k, hint in hints.items() if k in value}
        for field in dataclasses.fields(kind):
            if not field.init:  # the class gives it
                fields.pop(field.name, None)
        return None if missing else kind(**fields)
    if origin is dict and isinstance(value, dict):
        return {key: read(arguments[1], item, f"{where}{key}.", problems) for key, item in value.items()}
    if origin is tuple and isinstance(value, list) and (arguments[-1] is ... or len(arguments) == len(value)):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(read(k, item, f"{where}{i}.", problems) for i, (k, item) in enumerate(zip(kinds, value)))
    if origin is Literal and any(type(value) is type(allowed) and value == allowed for allowed in arguments):
        return value
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:  # not infinite, not NaN
        return float(value)
    if kind is not float and isinstance(kind, type) and type(value) is kind:
        return value
    problems.append(f"{where.rstrip('.')}: {value!r:.60} is not {getattr(kind, '__name__', kind)}")
    return None


def _required(kind: Any) -> set[str]:
    """The fields of a dataclass that have no default, or have a value that the class alone gives, as `kind`."""
    return {
        field.name
        for field in dataclasses.fields(kind)
        if not field.init or (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
    }


def _variant(kinds: tuple[Any, ...], value: Any) -> Any:
    """The dataclass whose `kind` a JSON object names; the first one if it names none."""
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    named = value.get("kind") if isinstance(value, dict) else None
    matching = [kind for kind in kinds if named in get_args(get_type_hints(kind).get("kind"))]
    return (*matching, *kinds)[0]
