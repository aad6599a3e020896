"""The execution providers: one row each. `options.py` has their options, and a file of its own what else one needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime.

    Attributes:
        name: as users call it.
        ort_name: as ONNX Runtime calls it.
        device: where its tensors are, as ONNX Runtime calls it; "cpu" is the host.
        leaves_to: the providers that take the nodes it has no kernel for, in order.
        libraries: shared libraries that it loads, with their versions; None for that of CUDA itself.
        builds_engines: whether it compiles graphs ahead, for ranges of shapes.
    """

    name: str
    ort_name: str
    device: str = "cpu"
    leaves_to: tuple[str, ...] = ()
    libraries: Mapping[str, int | None] = field(default_factory=dict)
    builds_engines: bool = False

    @property
    def on_host(self) -> bool:
        return self.device == "cpu"


DRIVER = "cuda"  #: NVIDIA's driver, which comes with no Python package
#: Libraries that the CUDA provider links to, and cuDNN, which it loads for convolutions.
CUDA_LIBRARIES = {DRIVER: 1, "cudart": None, "cublasLt": None, "cublas": None, "curand": 10, "cudnn": 9}
TENSORRT_LIBRARIES = {"nvinfer": 10, "nvonnxparser": 10}

PROVIDERS: Mapping[str, Provider] = {
    row.name: row
    for row in (
        Provider("cpu", "CPUExecutionProvider"),
        Provider("cuda", "CUDAExecutionProvider", "cuda", ("cpu",), libraries=CUDA_LIBRARIES),
        Provider(
            "tensorrt",
            "TensorrtExecutionProvider",
            "cuda",
            ("cuda", "cpu"),
            libraries=CUDA_LIBRARIES | TENSORRT_LIBRARIES,
            builds_engines=True,
        ),
    )
}
#: The providers that "auto" tries, the best first. One that builds engines takes minutes, so it must be asked for.
AUTO = ("cuda", "cpu")
