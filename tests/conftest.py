"""Fixtures that every test may use. They export in a process of their own: the runtime's tests never see torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import CHECKPOINTS, run_command

pytest_plugins = ["left_out"]
sys.path.insert(0, str(CHECKPOINTS))


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The bundle of a trained checkpoint by its folder's name, and its precision if it is not float32; exported once.
    Tests must not change it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bundles"

    def exported(name: str, precision: str = "fp32") -> Path:
        output = shared / precision / name
        output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(output.with_suffix(".lock")):
            if not output.exists():
                done = run_command("export", CHECKPOINTS / name, output, "--precision", precision)
                assert done.returncode == 0, done.stderr
        return output

    return exported


@pytest.fixture(scope="session")
def bundle(bundles: Callable[..., Path]) -> Path:
    """The bundle of PaliGemma 2."""
    return bundles("paligemma2")


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Show a measured figure at the end of the run, green or not."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for some in ("passed", "failed") for report in terminalreporter.stats.get(some, [])]
    figures = [value for report in reports for name, value in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for value in figures:
            terminalreporter.write_line(value)
