"""Fixtures that every test may use. They export in a process of their own: the runtime's tests never see torch."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import CHECKPOINTS, run_command

sys.path.insert(0, str(CHECKPOINTS))


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a trained checkpoint by its folder's name, exported once. Tests must not change it."""

    @functools.cache
    def exported(name: str) -> Path:
        output = tmp_path_factory.mktemp("bundles") / name
        done = run_command("export", CHECKPOINTS / name, output)
        assert done.returncode == 0, done.stderr
        return output

    return exported


@pytest.fixture(scope="session")
def bundle(bundles: Callable[[str], Path]) -> Path:
    """The bundle of PaliGemma 2."""
    return bundles("paligemma2")


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real tokenizers, photographs and published values, which are no part of the repository."""
    folder = Path(os.environ.get("ONNX_VLM_ASSETS", "does-not-exist"))
    if not folder.is_dir():
        pytest.skip("ONNX_VLM_ASSETS does not name the folder of real data")
    return folder
