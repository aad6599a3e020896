"""Opening the graphs of a bundle as sessions, several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from ...graphs import contract
from ...graphs.manifest import Manifest
from ..providers import cuda, probe, tensorrt
from ..providers.targets import Target
from . import shared_weights
from .session import Session

#: Seconds within which ONNX Runtime begins to lay out weights, which it does without Python: before that Python code
#: runs, and other Python code would hold it up.
BEGINNING = 0.05


@dataclass(frozen=True)
class Opener:
    """Opens graphs of a bundle.

    Attributes:
        folder: the bundle.
        manifest: its description.
        share_weights: see `LoadOptions`.
        begun: called when ONNX Runtime is at work.
    """

    folder: Path
    manifest: Manifest
    share_weights: bool = False
    begun: Callable[[], None] = lambda: None

    def open(self, target: Target, names: Sequence[str]) -> dict[str, Session]:
        """The named graphs, each as a session that runs on the target.

        Raises:
            BundleError: if a graph cannot be loaded or breaks its contract.
            ProviderError: if the target cannot be used, or leaves nodes that matter to the CPU.
            InputError: if there is no room for weights that are to be shared.
        """
        if not target.row.on_host:
            probe.require(target)
        if self.share_weights:
            shared_weights.check(target)
        targets = dict.fromkeys(names, target)
        threads = len(names) or 1  # one thread lays out the weights of a session
        if target.row.builds_engines:
            targets = tensorrt.targets(self.manifest, target, cuda.machine(target.device_id))
            threads = 1  # TensorRT times kernels to choose among them, which other work would disturb
        with ThreadPoolExecutor(threads) as pool:
            opening = {name: pool.submit(self._session, name, targets[name]) for name in names}
            wait(opening.values(), BEGINNING)
            self.begun()
            return {name: session.result() for name, session in opening.items()}

    def _session(self, name: str, target: Target) -> Session:
        captures = target.captures and name == contract.DECODER and self.manifest.vectors is None
        if self.share_weights:
            return shared_weights.open_session(self.folder, name, self.manifest, target)
        return Session(self.folder / f"{name}.onnx", self.manifest.graphs[name], target, captures)
