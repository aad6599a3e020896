"""NVIDIA's libraries and driver, by ctypes: what loads, which GPUs there are, and what engines are built for."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from ...graphs import ProviderError
from .table import DRIVER, TENSORRT_LIBRARIES, Provider

CAPABILITY = 75, 76  #: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Library:
    """A shared library by its file name; `error` is None if it loads, or else the system's words."""

    name: str
    error: str | None


@dataclass(frozen=True)
class Machine:
    """The machine that engines are built for: its GPU, and the versions of the libraries that build them."""

    device: str
    capability: str
    tensorrt: str
    onnxruntime: str


def load_libraries(provider: Provider) -> list[Library]:
    """Load what a provider's own library links to, from NVIDIA's wheels or wherever the system looks."""
    # It prints what it misses; each library is tried below anyway.
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    major = int((ort.cuda_version or "13").split(".")[0])
    wheel = importlib.util.find_spec("tensorrt_libs") if provider.builds_engines else None
    folder = Path(wheel.origin).parent if wheel and wheel.origin else None
    versions = {name: version or major for name, version in provider.libraries.items()}
    return [_load(file_name(name, version), folder) for name, version in versions.items()]


def file_name(library: str, version: int) -> str:
    """The file of a library, such as libcublas.so.13."""
    if sys.platform == "win32":
        return "nvcuda.dll" if library == DRIVER else f"{library}64_{version}.dll"
    return f"lib{library}.so.{version}"


def cuda_devices() -> tuple[list[str], str | None]:
    """The names of the GPUs that the driver finds, and the reason if there is none."""
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
    for device in range(count.value):
        name = ctypes.create_string_buffer(256)
        driver.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return names, None


def _load(name: str, folder: Path | None) -> Library:
    local = folder / name if folder else None
    try:
        ctypes.CDLL(str(local) if local and local.is_file() else name)
    except OSError as error:
        return Library(name, str(error))
    return Library(name, None)


def machine(device_id: int = 0) -> Machine:
    """Describe this machine. Call it only after `probe.require` found that TensorRT runs.

    Raises:
        ProviderError: if the driver does not answer.
    """
    driver = ctypes.CDLL(file_name(DRIVER, 1))
    tensorrt = ctypes.CDLL(file_name("nvinfer", TENSORRT_LIBRARIES["nvinfer"]))
    device, name, parts = ctypes.c_int(), ctypes.create_string_buffer(256), [ctypes.c_int(), ctypes.c_int()]
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), device_id)
    failed = failed or driver.cuDeviceGetName(name, len(name), device)
    for part, attribute in zip(parts, CAPABILITY):
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
    if failed:
        raise ProviderError(f"provider tensorrt: the driver tells nothing of GPU {device_id} (CUDA error {failed})")
    capability = "".join(str(part.value) for part in parts)
    return Machine(name.value.decode(errors="replace"), capability, str(tensorrt.getInferLibVersion()), ort.__version__)
