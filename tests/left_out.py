"""What some tests need and not every machine has; a pytest plugin.

A test names its needs with `@pytest.mark.needs("images", "expected")`, from `NEEDS`. It is left out only where one of
them is missing, and the end of the run says so in one line. Every other skip is a failure, so no test is skipped
silently.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import REPOSITORY

VARIABLE = "ONNX_VLM_ASSETS"
PAGE = "docs/testing.md"
PROPERTY = "left out"  #: of a report: the needs that were missing


@dataclass(frozen=True)
class Need:
    """Something that a test needs.

    Attributes:
        description: what it is, for people.
        is_there: whether this machine has it.
        where: where it is looked for, for people.
    """

    description: str
    is_there: Callable[[], bool]
    where: str = ""


def assets_folder() -> Path:
    """The folder of files that are no part of the repository; it may not exist."""
    return Path(os.environ.get(VARIABLE) or REPOSITORY.parent / "shared" / "assets")


def _folder(name: str, description: str) -> Need:
    where = f" in ../shared/assets or the folder that {VARIABLE} names"
    return Need(description, lambda: (assets_folder() / name).is_dir(), where)


def _has_cuda_provider() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _has_gpu() -> bool:
    from onnx_vlm.runtime.providers import cuda

    _, problem = cuda.cuda_devices()
    return not problem


def chromium() -> str | None:
    """The path of Chromium, or of a browser that is built on it."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


FOLDERS = {
    "processors/paligemma-3b-224": "processor files of google/paligemma-3b-pt-224",
    "processors/perception-lm-1b": "processor files of facebook/Perception-LM-1B",
    "processors/kosmos-2-patch14-224": "processor files of microsoft/kosmos-2-patch14-224",
    "images": "an example of KOSMOS-2",
    "expected": "values that other projects published",
}
NEEDS = {name: _folder(name, description) for name, description in FOLDERS.items()} | {
    "optimum": Need(
        "the package", lambda: find_spec("optimum") is not None and find_spec("optimum.commands") is not None
    ),
    "onnxruntime": Need("instead of onnxruntime-gpu", lambda: not _has_cuda_provider()),
    "onnxruntime-gpu": Need(
        "instead of onnxruntime, on a machine without a GPU", lambda: _has_cuda_provider() and not _has_gpu()
    ),
    "chromium": Need("a browser", lambda: chromium() is not None, ": apt-get install chromium"),
    "ray": Need("which is large: pip install 'onnx-vlm[ray]'", lambda: importlib.util.find_spec("ray") is not None),
    "gcc, nm and readelf": Need("from gcc and binutils", lambda: all(map(shutil.which, ("gcc", "nm", "readelf")))),
}


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of files that are no part of the repository; a test that uses it names its needs in it."""
    return assets_folder()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): what a test needs and not every machine has; see left_out.py")
    if os.environ.get(VARIABLE) and not assets_folder().is_dir():
        raise pytest.UsageError(f"{VARIABLE} is {assets_folder()}, which is not a folder; see {PAGE}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    names = [name for marker in item.iter_markers("needs") for name in marker.args]
    missing = [name for name in names if not NEEDS[name].is_there()]
    if missing:
        item.user_properties.append((PROPERTY, missing))
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail") and PROPERTY not in dict(report.user_properties):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped:
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"{reason}\nA test is skipped only for a need that it names: pytest.mark.needs; see {PAGE}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    by_where: dict[str, list[list[str]]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        for name, missing in report.user_properties:
            if name == PROPERTY:
                by_where[NEEDS[missing[0]].where].append(missing)
    if by_where:
        terminalreporter.section("left out")
    for where, tests in by_where.items():
        names = dict.fromkeys(name for missing in tests for name in missing)
        needs = ", ".join(f"{name} ({NEEDS[name].description})" for name in sorted(names))
        terminalreporter.write_line(f"Tests left out: {len(tests)}. They need {needs}{where}; see {PAGE}")
