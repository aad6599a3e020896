"""Sessions of ONNX Runtime, with the settings that all of them have."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ...graphs import ProviderError
from . import onnx_bytes
from .targets import Target

#: A setting of ONNX Runtime that turns weights of int8 into uint8: products of these do not overflow, and are up to 3.6
#: times slower where a CPU has a dot product of bytes.
EXACT_INTEGERS = "session.x64quantprecision"
#: For how many microseconds a session's threads look for work in a loop before they sleep. ONNX Runtime's own choice is
#: longer, and takes half of the speed of small models where other threads work, as those that read images. Steps of a
#: decoder of 1.2 billion weights take as long with either.
SPIN, MICROSECONDS = "session.intra_op.spin_duration_us", "50"
#: Bytes of weights that are kept apart from a written graph. ONNX Runtime puts those of more at a multiple of 4,096 in
#: their file, and others anywhere.
LARGE = 1 << 20
ALIGNMENT = 64  #: what kernels take their weights to be at a multiple of: where they are not, results are wrong
RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"  #: have a session say which nodes are where


@functools.cache
def integers_overflow() -> bool:
    """Whether products of bytes come out wrong here: CPUs without a dot product of bytes add pairs in 16 bits."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(onnx_bytes.integer_product(), options, providers=["CPUExecutionProvider"])
    terms = 64
    (products,) = session.run(None, {"a": np.full((4, terms), 255, np.uint8), "b": np.full((terms, 32), 127, np.int8)})
    return bool((products != terms * 255 * 127).any())


def session_options(attributes: Mapping[str, Any] | None = None) -> ort.SessionOptions:
    """The options of every session, whatever its graph, and some `attributes` of them."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(EXACT_INTEGERS, "1" if integers_overflow() else "0")
    options.add_session_config_entry(RECORD_PLACEMENT, "1")
    options.add_session_config_entry(SPIN, MICROSECONDS)
    for name, value in (attributes or {}).items():
        setattr(options, name, value)
    return options


def create(
    model: Path | bytes,
    target: Target,
    captures: bool = False,
    initializers: Mapping[str, np.ndarray] | None = None,
) -> ort.InferenceSession:
    """A session that has its target's provider, and never changes to another one.

    `initializers` are weights that the model's file does not have. On the CPU their memory is used as it is: they must
    stay as long as the session.

    ONNX Runtime itself only warns of a provider that does not load, and goes on without it.

    Raises:
        ProviderError: if the provider does not load; ONNX Runtime's own for whatever else there is.
    """
    entries = target.entries(captures)
    options = session_options(target.session)
    if initializers:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in initializers.values()]
        options.add_external_initializers([*initializers], values)
    session = ort.InferenceSession(model, options, entries, enable_fallback=False)
    missing = [name for name, _ in entries if name not in session.get_providers()]
    if missing:
        raise ProviderError(f"{', '.join(missing)} did not load; `onnx-vlm doctor` says why")
    return session


def write_laid_out(model: Path, target: Target, path: Path) -> None:
    """Write a model as a session has it, its weights also as the CPU's kernels take them.

    Args:
        path: the .onnx file to be written; large weights go into a file beside it, as external data, smaller ones
            into itself, as they are.

    Raises:
        OSError: if that is not possible.
    """
    options = session_options(target.session)
    options.optimized_model_filepath = str(path)
    for setting, value in {
        "optimized_model_external_initializers_file_name": f"{path.name}.data",
        "optimized_model_external_initializers_min_size_in_bytes": str(LARGE),
        "save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(f"session.{setting}", value)
    ort.InferenceSession(model, options, target.entries(), enable_fallback=False)


def aligned(path: Path) -> bool:
    """Whether weights that `write_laid_out` has written are where kernels can take them.

    ONNX Runtime names each layout in the graph, by the operator and a checksum, and says where it is in the file, by
    offset, length and another number.
    """
    graph = path.read_bytes()
    places = re.findall(rb"prepacked_\d+.{1,6}?\w+\+\d+\|(\d+;\d+;\d+(?:;\d+;\d+;\d+)*)", graph, re.DOTALL)
    offsets = [int(number) for place in places for number in place.split(b";")[::3]]
    return len(places) == graph.count(b"prepacked_") and all(offset % ALIGNMENT == 0 for offset in offsets)
