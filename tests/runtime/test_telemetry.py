"""Nothing is reported: ONNX Runtime's telemetry, which keeps an id of the machine in the user's cache, is off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("chosen", [None, "0"], ids=["as it is", "as the user chose"])
def test_no_id_is_kept_unless_the_user_wants_it(bundle: Path, tmp_path: Path, chosen: str | None):
    code = (
        "import os, sys, onnx_vlm.runtime as r; r.load(sys.argv[1], 'cpu'); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path)} | ({"ORT_DISABLE_TELEMETRY": chosen} if chosen else {})
    environment.pop("XDG_CACHE_HOME", None)
    done = subprocess.run([sys.executable, "-c", code, bundle], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == (chosen or "1"), done.stderr
    assert chosen or not list(tmp_path.rglob("*"))
