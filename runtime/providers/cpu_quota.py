"""How much processor time the control groups of this process, such as those of a container, let it have."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def threads_within_quota(root: Path = ROOT) -> int | None:
    """How many threads can work all the time, where the quota is less than the cores; None where it is not.

    ONNX Runtime starts a thread for each core. With a quota they would use it up together and then all wait.
    """
    quota = min(_quotas(root), default=math.inf)
    if quota == math.inf:
        return None
    folder = root / "sys/devices/system/cpu"
    siblings = "topology/thread_siblings_list"  # equal for the processors of one core
    cores = {_read(folder / f"cpu{number}" / siblings) or number for number in os.sched_getaffinity(0)}
    return max(1, int(quota)) if quota < len(cores) else None


def _quotas(root: Path) -> Iterator[float]:
    """The processors' worth of time that each control group of the process may use, of versions 1 and 2."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)  # such as 0::/user.slice or 4:cpu,cpuacct:/docker/1a2b
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mount / "cpu" if controllers else mount
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            if controllers:
                quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            else:
                quota, _, period = _read(folder / "cpu.max").partition(" ")
            if quota.isdigit() and period.isdigit():  # "max" and -1 are no limit
                yield int(quota) / int(period)


def _read(path: Path) -> str:
    """The text of a file without the space around it; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
