"""How many threads are started where control groups bound the time of processors, read from folders like Linux's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from onnx_vlm.runtime.providers import targets
from onnx_vlm.runtime.providers.cpu_quota import threads_within_quota
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.providers.options import SESSION

V1, V2 = "4:memory:/a\n3:cpu,cpuacct:/docker/1a\n0::/\n", "0::/pod/container\n"
CPU, UNIFIED = "sys/fs/cgroup/cpu", "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("groups", "files", "threads"),
    [
        ("", {}, None),
        (V2, {}, None),
        (V2, {f"{UNIFIED}/pod/container/cpu.max": "max 100000"}, None),
        (V2, {f"{UNIFIED}/pod/container/cpu.max": "250000 100000"}, 2),
        (V2, {f"{UNIFIED}/pod/container/cpu.max": "max 100000", f"{UNIFIED}/pod/cpu.max": "50000 100000"}, 1),
        (V2, {f"{UNIFIED}/pod/container/cpu.max": "400000 100000"}, None),
        ("0::/\n", {f"{UNIFIED}/cpu.max": "300000 100000"}, 3),
        (V1, {f"{CPU}/docker/1a/cpu.cfs_quota_us": "-1", f"{CPU}/docker/1a/cpu.cfs_period_us": "100000"}, None),
        (V1, {f"{CPU}/cpu.cfs_quota_us": "100000", f"{CPU}/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_threads_fit_the_least_quota_that_is_below_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], threads: int | None
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    siblings = {
        f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}" for n in range(8)
    }
    for name, text in {**files, **siblings, "proc/self/cgroup": groups}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert threads_within_quota(tmp_path) == threads


def test_sessions_get_them_unless_threads_are_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(targets, "threads_within_quota", lambda: 3)
    for given, expected in (({}, 3), ({"threads": 1}, 1), ({"provider_options": {"threads": 2}}, 2)):
        (target,) = targets.choose_targets(LoadOptions("cpu", **given))
        assert target.resolved[SESSION] == {"intra_op_num_threads": expected}
    monkeypatch.setattr(targets, "threads_within_quota", lambda: None)
    (target,) = targets.choose_targets(LoadOptions("cpu"))
    assert "intra_op_num_threads" not in target.resolved.get(SESSION, {})
