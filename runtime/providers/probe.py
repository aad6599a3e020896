"""Whether a provider runs on this machine, tried for real, and if not, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from ...graphs import ProviderError, VLMError
from . import onnx_bytes
from .cuda import Library, cuda_devices, file_name, load_libraries
from .ort_session import create
from .placement import check_placement, placement
from .table import DRIVER, TENSORRT_LIBRARIES
from .targets import Target

GPU_PACKAGE = "onnxruntime-gpu[cuda,cudnn]"


@dataclass(frozen=True)
class Attempt:
    """The result of trying a provider.

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
    name = target.row.ort_name
    if name not in ort.get_available_providers():
        reason = f"{package()} {ort.__version__} is built without {name}"
        remedy = f"pip uninstall -y {' '.join(packages())} && pip install '{GPU_PACKAGE}'"
        return Attempt(provider, False, reason=reason, remedy=remedy)
    if target.row.on_host:
        return _run(target, Attempt(provider, True))
    libraries = tuple(load_libraries(target.row))
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
    result = attempt(target)
    if not result.runs:
        both = clash()
        raise ProviderError(
            f"provider {target.provider} cannot be used: {result.reason}; {both or f'to get it: {result.remedy}'}"
        )


def package() -> str:
    """The name of the installed package that onnxruntime comes from."""
    return (packages() or ["onnxruntime"])[-1]


def packages() -> list[str]:
    """The installed packages that bring the module onnxruntime; more than one overwrite each other's files."""
    distributions = importlib.metadata.packages_distributions().get("onnxruntime", ())
    return sorted(set(distributions))


def clash() -> str | None:
    """The problem and its remedy if several installed packages bring onnxruntime; None otherwise."""
    installed = packages()
    if len(installed) < 2:
        return None
    return (
        f"{' and '.join(installed)} are installed at once: they share one folder, so the one installed last overwrote"
        f" the other, and removing one breaks both. Keep one: pip uninstall -y {' '.join(installed)} && pip install"
        f" '{GPU_PACKAGE}' (or onnxruntime, for the CPU alone)"
    )


def _run(target: Target, attempted: Attempt) -> Attempt:
    """`attempted`, with the reason why a graph of one node does not run, if so."""
    values = np.arange(4, dtype=np.float32)
    try:
        session = create(onnx_bytes.doubling(), target)
        check_placement("a graph of one node", placement(session), target)
        (result,) = session.run(None, {"x": values})
        reason = None if np.array_equal(result, values + values) else f"a graph of one node gave {result}"
    except VLMError as error:
        reason = str(error)
    except Exception as error:  # ONNX Runtime's exceptions share no class of their own
        reason = " ".join(str(error).split())
    remedy = None if reason is None else "update the NVIDIA driver, or install the ONNX Runtime made for it"
    if target.row.on_host and reason is not None:
        remedy = f"install it again: pip install --force-reinstall {package()}"
    return Attempt(attempted.provider, True, attempted.libraries, attempted.devices, reason, remedy)


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
