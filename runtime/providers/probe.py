"""Whether a provider runs on this machine, tried for real, and if not, what is missing and how to get it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ...graphs import ProviderError, VLMError
from ..inference import session
from . import onnx_bytes as small_graphs
from . import targets as providers
from .options import PROVIDERS
from .targets import Target

GPU_PACKAGE = "onnxruntime-gpu[cuda,cudnn]"
DRIVER, TENSORRT = "cuda", "nvinfer"  #: libraries that come with neither onnxruntime-gpu nor its extras
#: What the CUDA provider links to, and cuDNN, which it loads for convolutions; None for the version of CUDA itself.
CUDA_LIBRARIES = {"cudart": None, "cublasLt": None, "cublas": None, "curand": 10, "cudnn": 9}
TENSORRT_LIBRARIES = {TENSORRT: 10, "nvonnxparser": 10}


@dataclass(frozen=True)
class Library:
    """A shared library by its file name; `error` is None if it loads, or else the system's words."""

    name: str
    error: str | None


@dataclass(frozen=True)
class Attempt:
    """What came of trying a provider.

    Attributes:
        provider: "cpu", "cuda" or "tensorrt".
        built: whether the installed ONNX Runtime has the provider.
        libraries: what it needs, each loaded.
        devices: the names of its GPUs.
        reason: why it does not run; None if a graph of one node ran on it and gave the right numbers.
        remedy: what to do about that.
    """

    provider: str
    built: bool
    libraries: tuple[Library, ...] = ()
    devices: tuple[str, ...] = ()
    reason: str | None = None
    remedy: str | None = None

    @property
    def runs(self) -> bool:
        return self.reason is None


def attempt(target: Target) -> Attempt:
    """Load a provider's libraries, look for its devices and run a graph of one node on it."""
    provider = target.provider
    name = PROVIDERS[provider]
    if name not in ort.get_available_providers():
        reason = f"{package()} {ort.__version__} is built without {name}"
        remedy = f"pip uninstall -y {' '.join(packages())} && pip install '{GPU_PACKAGE}'"
        return Attempt(provider, False, reason=reason, remedy=remedy)
    if provider == "cpu":
        return _run(target, Attempt(provider, True))
    libraries = tuple(load_libraries(provider))
    missing = [library.name for library in libraries if library.error is not None]
    if missing:
        return Attempt(provider, True, libraries, (), f"libraries do not load: {', '.join(missing)}", _install(missing))
    devices, problem = cuda_devices()
    if problem is not None:
        return Attempt(provider, True, libraries, (), problem, _driver_remedy())
    if target.device_id >= len(devices):
        problem = f"there is no GPU {target.device_id}; there are {len(devices)}, numbered from 0"
        return Attempt(provider, True, libraries, tuple(devices), problem, "choose another device_id")
    return _run(target, Attempt(provider, True, libraries, tuple(devices)))


def require(target: Target) -> None:
    """Make sure that a provider runs.

    Raises:
        ProviderError: if not, with what is missing and how to get it.
    """
    found = attempt(target)
    if not found.runs:
        both = clash()
        raise ProviderError(
            f"provider {target.provider} cannot be used: {found.reason}; {both or f'to get it: {found.remedy}'}"
        )


def package() -> str:
    """The name of the installed package that onnxruntime comes from."""
    return (packages() or ["onnxruntime"])[-1]


def packages() -> list[str]:
    """The installed packages that bring the module onnxruntime; more than one overwrite each other's files."""
    found = importlib.metadata.packages_distributions().get("onnxruntime", ())
    return sorted(set(found))


def clash() -> str | None:
    """What is wrong and what to do where several packages bring onnxruntime."""
    found = packages()
    if len(found) < 2:
        return None
    return (
        f"{' and '.join(found)} are installed at once: they share one folder, so the one installed last overwrote the"
        f" other, and removing one breaks both. Keep one: pip uninstall -y {' '.join(found)} && pip install"
        f" '{GPU_PACKAGE}' (or onnxruntime, for the CPU alone)"
    )


def load_libraries(provider: str) -> list[Library]:
    """Load what a provider's own library links to, from NVIDIA's wheels or wherever the system looks."""
    # It prints what it misses; each library is tried below anyway.
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    major = int((ort.cuda_version or "13").split(".")[0])
    versions = {DRIVER: 1, **{name: version or major for name, version in CUDA_LIBRARIES.items()}}
    folder = None
    if provider == "tensorrt":
        versions |= TENSORRT_LIBRARIES
        wheel = importlib.util.find_spec("tensorrt_libs")
        folder = Path(wheel.origin).parent if wheel and wheel.origin else None
    return [_load(file_name(name, version), folder) for name, version in versions.items()]


def file_name(library: str, version: int) -> str:
    """The file of a library, such as libcublas.so.13."""
    if sys.platform == "win32":
        return "nvcuda.dll" if library == DRIVER else f"{library}64_{version}.dll"
    return f"lib{library}.so.{version}"


def cuda_devices() -> tuple[list[str], str | None]:
    """The names of the GPUs that the driver finds; and why there is none, if so."""
    try:
        driver = ctypes.CDLL(file_name(DRIVER, 1))
    except OSError as error:
        return [], f"the NVIDIA driver does not load: {error}"
    count, status = ctypes.c_int(), driver.cuInit(0)
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        return [], "the NVIDIA driver finds no GPU" + (f" (CUDA error {status})" if status else "")
    names = []
    for number in range(count.value):
        name = ctypes.create_string_buffer(256)
        driver.cuDeviceGetName(name, len(name), number)
        names.append(name.value.decode(errors="replace"))
    return names, None


def _load(name: str, folder: Path | None) -> Library:
    local = folder / name if folder else None
    try:
        ctypes.CDLL(str(local) if local and local.is_file() else name)
    except OSError as error:
        return Library(name, str(error))
    return Library(name, None)


def _run(target: Target, found: Attempt) -> Attempt:
    """`found`, with the reason why a graph of one node does not run, if so."""
    given = np.arange(4, dtype=np.float32)
    try:
        made = session.create(small_graphs.doubling(), target)
        providers.check_placement("a graph of one node", providers.placement(made), target)
        (result,) = made.run(None, {"x": given})
        reason = None if np.array_equal(result, given + given) else f"a graph of one node gave {result}"
    except VLMError as error:
        reason = str(error)
    except Exception as error:  # ONNX Runtime's exceptions share no class of their own
        reason = " ".join(str(error).split())
    remedy = None if reason is None else "update the NVIDIA driver, or install the ONNX Runtime made for it"
    if target.provider == "cpu" and reason is not None:
        remedy = f"install it again: pip install --force-reinstall {package()}"
    return Attempt(found.provider, True, found.libraries, found.devices, reason, remedy)


def _install(missing: Sequence[str]) -> str:
    """How to get libraries that are missing."""
    ways = []
    tensorrt = {file_name(name, version) for name, version in TENSORRT_LIBRARIES.items()}
    driver = file_name(DRIVER, 1)
    if set(missing) - tensorrt - {driver}:
        ways.append(f"pip install '{GPU_PACKAGE}'")
    if set(missing) & tensorrt:
        ways.append("pip install 'tensorrt==10.*'")
    if driver in missing:
        ways.append(_driver_remedy())
    return "; ".join(ways)


def _driver_remedy() -> str:
    return "install NVIDIA's driver on a machine with an NVIDIA GPU (nvidia-smi must list it)"
