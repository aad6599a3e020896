"""ONNX Runtime sessions of a bundle's graphs, held to the bundle's contract when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

try:
    import onnxruntime as ort
except ImportError as error:
    raise ImportError(
        "onnxruntime is not installed; install one: pip install 'onnx-vlm[cpu]' or pip install 'onnx-vlm[gpu]'"
    ) from error

from ..graphs import BundleError, GenerationError, GraphSpec, InputError, ProviderError, TensorSpec

PROVIDERS = {"cpu": "CPUExecutionProvider"}
#: A setting of ONNX Runtime. Without it, CPUs that have no dot product of bytes add pairs of products in 16 bits, which
#: overflow.
EXACT_INTEGERS = "session.x64quantprecision"


def provider_name(provider: str) -> str:
    """ONNX Runtime's name of a provider; "auto" is the best that this version runs on."""
    if provider == "auto":
        provider = "cpu"
    if provider not in PROVIDERS:
        raise ProviderError(f"provider {provider!r} is not supported; supported: auto, {', '.join(PROVIDERS)}")
    return PROVIDERS[provider]


def session_options(threads: int | None = None) -> ort.SessionOptions:
    """How a graph is run: by `threads` threads an operator, as many as there are cores if None."""
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; give 1 or more, or leave it out")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry(EXACT_INTEGERS, "1")
    return options


class Session:
    """One graph, ready to run.

    Args:
        path: the .onnx file.
        spec: what it must take and give.
        provider: ONNX Runtime's name of an execution provider.
        threads: how many threads work on one operator; ONNX Runtime decides if None.

    Raises:
        BundleError: if the graph cannot be loaded or breaks its contract.
    """

    def __init__(self, path: Path, spec: GraphSpec, provider: str, threads: int | None = None) -> None:
        try:
            self._session = ort.InferenceSession(path, session_options(threads), [provider])
        except Exception as error:  # ONNX Runtime's exceptions share no class of their own
            raise BundleError(f"{path} does not load: {error}; export the bundle again") from error
        problems = spec.mismatches(_specs(self._session.get_inputs()), _specs(self._session.get_outputs()))
        if problems:
            raise BundleError(f"{path} is not the graph of its manifest:\n" + "\n".join(f"  {p}" for p in problems))
        self.spec = spec

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs, in the order of the contract."""
        try:
            return self._session.run([output.name for output in self.spec.outputs], dict(inputs))
        except Exception as error:
            raise GenerationError(f"the graph failed: {error}") from error

    def binding(self) -> ort.IOBinding:
        return self._session.io_binding()

    def run_bound(self, binding: ort.IOBinding) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise GenerationError(f"the graph failed: {error}") from error


def _specs(nodes: list[ort.NodeArg]) -> list[TensorSpec]:
    kinds = {"float": "float32", "double": "float64"}
    return [
        TensorSpec(node.name, kinds.get(kind := node.type[len("tensor(") : -1], kind), tuple(_sizes(node.shape)))
        for node in nodes
    ]


def _sizes(shape: list[int | str | None]) -> list[int | str]:
    return ["?" if size is None else size for size in shape]
