"""ONNX Runtime sessions of a bundle's graphs, held to the bundle's contract when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ...graphs import BundleError, GenerationError, GraphSpec, ProviderError, TensorSpec
from ..providers.ort_session import create
from ..providers.placement import check_placement, placement
from ..providers.targets import Target


class Session:
    """One graph, ready to run.

    Args:
        path: the .onnx file.
        spec: what it must take and give.
        target: where it runs.
        captures: whether `run_bound` may replay its runs as CUDA graphs.
        initializers: weights that the file does not have, by their names.

    Raises:
        BundleError: if the graph cannot be loaded or breaks its contract.
        ProviderError: if the provider does not load, or leaves nodes that matter to the CPU.
    """

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        target: Target,
        captures: bool = False,
        initializers: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._initializers = initializers  # the session uses their memory
        try:
            self._session = create(path, target, captures, initializers)
        except ProviderError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no class of their own
            if captures and "graph capture" in str(error):
                raise ProviderError(
                    f"{path}: parts of it run on the host, so its steps cannot be replayed as a CUDA graph; leave the"
                    " option cuda_graph out"
                ) from error
            if not target.row.on_host:
                raise ProviderError(f"{path} does not load on {target.provider}: {error}") from error
            raise BundleError(f"{path} does not load: {error}; export the bundle again") from error
        try:
            inputs, outputs = _specs(self._session.get_inputs()), _specs(self._session.get_outputs())
        except UnicodeDecodeError as error:
            raise BundleError(f"{path} has names that are not UTF-8: {error}; export the bundle again") from None
        problems = spec.mismatches(inputs, outputs)
        if problems:
            raise BundleError(f"{path} is not the graph of its manifest:\n" + "\n".join(f"  {p}" for p in problems))
        self.spec = spec
        self.placement = placement(self._session)
        check_placement(path.name, self.placement, target)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        """The named outputs; all of them, in the order of the contract, if None."""
        try:
            return self._session.run(outputs or [output.name for output in self.spec.outputs], dict(inputs))
        except Exception as error:
            raise GenerationError(f"the graph failed: {error}") from error

    def binding(self) -> ort.IOBinding:
        return self._session.io_binding()

    def run_bound(self, binding: ort.IOBinding, options: ort.RunOptions | None = None) -> None:
        try:
            self._session.run_with_iobinding(binding, options)
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
