"""Fixtures that every test may use. They export in a process of their own: the runtime's tests never see torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from helpers import CHECKPOINTS, run_command
from judge import Judge

if TYPE_CHECKING:
    from random_parity import RandomParity

pytest_plugins = ["left_out"]
sys.path.insert(0, str(CHECKPOINTS))

#: How many near-ties between a bundle and its source a run may have. A run of all tests has none or one; a bundle that
#: computes something else, if only a little, has many.
MOST_NEAR_TIES = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("onnx-vlm", "other rounding in the tests of parity; no answer may depend on it")
    group.addoption("--threads", type=int, default=1, help="threads of ONNX Runtime (default 1)")
    group.addoption(
        "--permutation",
        type=int,
        help="which order the hidden units of the models have; 0 is their own "
        "(default: every other random model has another order)",
    )


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The bundle of a trained checkpoint by its folder's name, and its precision, target and KV cache if they are not
    float32, ONNX Runtime's own operators and float32; exported once. Tests must not change it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bundles"

    def exported(name: str, precision: str = "fp32", target: str = "onnxruntime", kv_cache: str = "float") -> Path:
        output = shared / target / kv_cache / precision / name
        output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(output.with_suffix(".lock")):
            if not output.exists():
                options = ("--precision", precision, "--target", target, "--kv-cache", kv_cache)
                done = run_command("export", CHECKPOINTS / name, output, *options)
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


@pytest.fixture
def judge(record_property: Callable[[str, object], None]) -> Judge:
    """Compares answers with those of the source model."""
    return Judge(lambda text: record_property("near-tie", text))


@pytest.fixture(scope="session")
def threads(pytestconfig: pytest.Config) -> int:
    """How many threads ONNX Runtime has in the tests of parity."""
    return pytestconfig.getoption("threads")


@pytest.fixture
def random_parity(tmp_path: Path, judge: Judge, threads: int, pytestconfig: pytest.Config) -> RandomParity:
    """The check of a random model."""
    from random_parity import RandomParity

    return RandomParity(tmp_path, judge, threads, pytestconfig.getoption("permutation"))


def _recorded(terminalreporter: pytest.TerminalReporter, kind: str) -> list[str]:
    reports = [report for some in ("passed", "failed") for report in terminalreporter.stats.get(some, [])]
    return [value for report in reports for name, value in report.user_properties if name == kind]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a run fail that has more near-ties than chance makes; where tests run in workers, only their controller
    has a reporter, and knows of all."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and len(_recorded(reporter, "near-tie")) > MOST_NEAR_TIES:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for kind in ("figure", "near-tie"):
        if found := _recorded(terminalreporter, kind):
            terminalreporter.section(f"{kind}s")
            for value in found:
                terminalreporter.write_line(value)
    if len(found) > MOST_NEAR_TIES:
        terminalreporter.write_line(
            f"FAILED: {len(found)} near-ties, and {MOST_NEAR_TIES} are allowed: the bundles differ from their sources "
            "by more than rounding",
            red=True,
        )
