"""The memory of this machine: what is free to this process, and what the processor's caches hold."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes that this process can still take: what the system has available, within the limits of the process itself
    and of its control groups.

    None where the system does not say.
    """
    return min([*_available(root), *_left_in_groups(root), *_left_to_process(root)], default=None)


def give_back() -> None:
    """Give the system memory that was freed, where the C library is glibc, which keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def cache_bytes(root: Path = ROOT) -> int:
    """Bytes that the last level of the processor's caches holds, all its parts together; 0 where it is unknown."""
    sizes: dict[tuple[int, str], int] = {}
    for cache in root.glob("sys/devices/system/cpu/cpu[0-9]*/cache/index*"):
        level, size, processors = (_read(cache / name) for name in ("level", "size", "shared_cpu_list"))
        if level.isdigit() and size[:-1].isdigit():  # such as 3, 32768K and 0-7
            sizes[int(level), processors] = int(size[:-1]) << 10
    last = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == last)


def _available(root: Path) -> Iterator[int]:
    for kilobytes in re.findall(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE):
        yield int(kilobytes) << 10


def _left_in_groups(root: Path) -> Iterator[int]:
    """The bytes that are left in each control group of the process, of versions 1 and 2."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)  # such as 0::/user.slice or 4:memory:/docker/1a2b
        if not controllers:
            top, limit, usage, reclaimable = mount, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, usage = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            reclaimable = "total_inactive_file"
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            allowed, taken = _read(folder / limit), _read(folder / usage)
            if allowed.isdigit() and taken.isdigit():  # "max" is no limit
                cached = re.search(rf"^{reclaimable} (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
                yield max(0, int(allowed) - int(taken) + (int(cached[1]) if cached else 0))


def _left_to_process(root: Path) -> Iterator[int]:
    """The bytes that are left of the limits that `ulimit -v` and `ulimit -d` set."""
    try:
        import resource
    except ImportError:  # Windows
        return
    status = _read(root / "proc/self/status")
    for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        taken = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        if most != resource.RLIM_INFINITY and taken:
            yield max(0, most - (int(taken[1]) << 10))


def _read(path: Path) -> str:
    """The text of a file without the space around it; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
