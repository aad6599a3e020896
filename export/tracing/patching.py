"""The names that torch, onnxscript, timm and transformers keep private and the export borrows, all in one list.

They are looked up when they are used, because a new version of a package may rename them. Where a name is missing the
export takes the plain way, says so once, and its result is the same. A name without a plain way is required: an
ExportError then names the package, its version and the version that is tested.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

from ...graphs import ExportError

Result = TypeVar("Result")

#: The version of each package in which every name below was seen.
TESTED = {"torch": "2.13.0", "onnxscript": "0.7.2", "timm": "1.0.31", "transformers": "5.23.0"}


@dataclass(frozen=True)
class Borrowed:
    """A private name: an attribute of a module, or one of a class as `Class.name`.

    `module` is None where the owner depends on the model. `without` says what the export does where the name is
    missing; None if it cannot do without.
    """

    package: str
    module: str | None
    name: str
    without: str | None


FAKE_TENSORS = Borrowed("torch", "torch._subclasses.fake_tensor", "FakeTensorMode", None)
TYPE_PROMOTION = Borrowed(
    "torch", "torch.onnx._internal.exporter._fx_passes", "insert_type_promotion_nodes", "types are promoted twice"
)
PARSED_FUNCTION = Borrowed(
    "onnxscript", "onnxscript.values", "TracedOnnxFunction.function_ir", "translations are parsed for each graph"
)
NO_INITIALISATION = Borrowed(
    "transformers", "transformers.initialization", "no_init_weights", "weights are initialised before they are read"
)
KEY_CONVERSIONS = Borrowed("transformers", "transformers.conversion_mapping", "get_model_conversion_mapping", None)
KEY_RENAMING = Borrowed("transformers", "transformers.core_model_loading", "rename_source_key", None)
DECODER_ROTATION = Borrowed(
    "transformers", None, "apply_rotary_pos_emb", "the decoder graph also rotates by an angle of zero"
)
DECODER_MASK = Borrowed(
    "transformers", None, "_prepare_decoder_attention_mask", "a mask is traced that nothing uses, which takes longer"
)
PATCH_ROTATION = Borrowed(
    "timm", "timm.layers.attention", "apply_rot_embed_cat", "patches are rotated by several operators instead of one"
)
BLOCK_ROTATION = Borrowed(
    "timm", "timm.models.eva", "apply_rot_embed_cat", "patches are rotated by several operators instead of one"
)
DROP_PATH_RATES = Borrowed("timm", "timm.models.eva", "calculate_drop_path_rates", None)
BORROWED = tuple(value for value in globals().values() if isinstance(value, Borrowed))

_log = logging.getLogger("onnx_vlm.export")
_lock = threading.RLock()


def find(name: Borrowed, owner: Any = None) -> Any | None:
    """The value of a borrowed name, None if it is missing.

    Args:
        owner: the module or object that has it, where `name.module` is None.
    """
    try:
        return getattr(*_owner_and_attribute(name, owner))
    except (ImportError, AttributeError):
        _say_once(f"{_describe(name)}: {name.without}; onnx-vlm is tested with {name.package} {TESTED[name.package]}")
        return None


def require(name: Borrowed) -> Any:
    """The value of a borrowed name that the export cannot do without.

    Raises:
        ExportError: if it is missing.
    """
    try:
        return getattr(*_owner_and_attribute(name, None))
    except (ImportError, AttributeError):
        tested = f"{name.package}=={TESTED[name.package]}"
        raise ExportError(
            f"{_describe(name)}, which the export cannot do without; it is tested with: pip install '{tested}'"
        ) from None


@contextmanager
def changed(name: Borrowed, change: Callable[[Any], Any], owner: Any = None) -> Iterator[None]:
    """Swap the value of a borrowed name for `change(value)`, as `replaced` does; nothing where the name is missing."""
    value = find(name, owner)
    if value is None:
        yield
        return
    owner, attribute = _owner_and_attribute(name, owner)
    with replaced(owner, **{attribute: change(value)}):
        yield


@contextmanager
def replaced(owner: Any, **functions: Any) -> Iterator[None]:
    """Swap functions or properties of a module, class or object for a while, in the eyes of this thread alone.

    Other threads get what was there before, and wait if they are to replace something themselves.
    """
    with _lock:
        own = {name: vars(owner)[name] for name in functions if name in vars(owner)}
        for name, ours in functions.items():
            setattr(owner, name, _in_this_thread(ours, getattr(owner, name)))
        try:
            yield
        finally:
            for name in functions:
                if name in own:
                    setattr(owner, name, own[name])
                else:
                    delattr(owner, name)


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Build models without initial weights meanwhile, which saves time: weights are read from a checkpoint."""
    no_init_weights = find(NO_INITIALISATION)
    with alone(), no_init_weights() if no_init_weights is not None else nullcontext():
        yield


@contextmanager
def alone() -> Iterator[None]:
    """Let no other thread replace anything meanwhile."""
    with _lock:
        yield


def with_real_tensors(compute: Callable[[], Result]) -> Result:
    """The result of `compute`, run with real tensors even where new tensors are fake.

    Fake tensors are a mode of the thread, so another thread has none.
    """
    with ThreadPoolExecutor(1) as other:
        return other.submit(compute).result()


def warn_of_untested() -> None:
    """Warn once of each package whose version is newer than the tested one."""
    for package, tested in TESTED.items():
        installed = version(package)
        if _minor(installed) > _minor(tested):
            _say_once(f"{package} {installed} is newer than {tested}, with which onnx-vlm is tested")


def _owner_and_attribute(name: Borrowed, owner: Any) -> tuple[Any, str]:
    *classes, attribute = name.name.split(".")
    if name.module is not None:
        owner = importlib.import_module(name.module)
    for part in classes:
        owner = getattr(owner, part)
    return owner, attribute


def _in_this_thread(ours: Any, theirs: Any) -> Any:
    """A function that is `ours` in the thread that asks for it here and `theirs` in all others."""
    if isinstance(ours, property):
        return property(_in_this_thread(ours.fget, theirs.fget))
    thread = threading.get_ident()

    @functools.wraps(theirs)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (ours if threading.get_ident() == thread else theirs)(*args, **kwargs)

    return chosen


def _describe(name: Borrowed) -> str:
    return f"{name.package} {version(name.package)} has no {name.module or 'model'}:{name.name}"


@functools.cache
def _say_once(text: str) -> None:
    _log.warning(text)


def _minor(text: str) -> tuple[int, ...]:
    """Major and minor number of a version."""
    return tuple(int(digits) for digits in re.findall(r"\d+", text)[:2])
