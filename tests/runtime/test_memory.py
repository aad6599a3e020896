"""What is told of memory, read from folders like those of Linux."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from onnx_vlm.runtime.memory import cache_bytes, free_memory


def write(root: Path, **files: object) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def write_caches(root: Path, caches: dict[str, tuple[int, int, str, str]]) -> None:
    for name, (level, kilobytes, processors, kind) in caches.items():
        folder = f"sys/devices/system/cpu/{name}"
        texts = {"level": level, "size": f"{kilobytes}K", "shared_cpu_list": processors, "type": kind}
        write(root, **{f"{folder}/{file}": text for file, text in texts.items()})


def test_the_last_caches_are_added_up(tmp_path: Path):
    assert cache_bytes(tmp_path) == 0
    caches = {f"cpu{number}/cache/index0": (1, 32, str(number), "Data") for number in range(4)}
    for number in range(4):  # two sockets, with a third level each
        first = number // 2 * 2
        caches[f"cpu{number}/cache/index3"] = (3, 1024, f"{first}-{first + 1}", "Unified")
    write_caches(tmp_path, caches)
    assert cache_bytes(tmp_path) == 2 << 20


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4 kB"}, 4096),
        (
            {
                "proc/meminfo": "MemAvailable: 4 kB",
                "proc/self/cgroup": "0::/user/job",
                "sys/fs/cgroup/user/job/memory.max": "max",
                "sys/fs/cgroup/user/job/memory.current": "1000",
                "sys/fs/cgroup/user/memory.max": "3000",
                "sys/fs/cgroup/user/memory.current": "1500",
                "sys/fs/cgroup/user/memory.stat": "anon 1000\ninactive_file 500",
            },
            2000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 4 kB",
                "proc/self/cgroup": "5:cpu,memory:/docker/1\n1:cpuset:/docker/1",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1700",
            },
            300,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 4 kB",
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/memory.max": "10",
                "sys/fs/cgroup/memory.current": "20",
            },
            0,
        ),
    ],
)
def test_free_memory_is_within_control_groups(tmp_path: Path, files: dict[str, str], free: int | None):
    write(tmp_path, **files)
    assert free_memory(tmp_path) == free


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process(limit: str):
    code = f"""
import resource
from onnx_vlm.runtime.memory import free_memory
resource.setrlimit(resource.{limit}, ({4 << 30}, {4 << 30}))
print(free_memory())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 4 << 30
