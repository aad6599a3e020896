"""Exports killed at random moments: no half bundle under the output's name, and the next export removes what is left.

python -m tests.fuzz.killed_exports --count 100
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

#: Where some exports are killed: at these steps, and before and after these calls of Path.rename.
STEPS = ["trace decoder", "write", "seal"]
RENAMES = [(number, after) for number in (0, 1) for after in (False, True)]


def export(checkpoint: Path, output: Path, prove: bool, started: Event, kill_at: tuple[int, bool] | str | None) -> None:
    """Export in this process, over a bundle that is there; kill it at a step, or before or after a rename."""
    from onnx_vlm.export import export_model

    rename, calls = Path.rename, 0

    def killing(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if kill_at == (calls - 1, False):
            os.kill(os.getpid(), signal.SIGKILL)
        renamed = rename(self, target)
        if kill_at == (calls - 1, True):
            os.kill(os.getpid(), signal.SIGKILL)
        return renamed

    def step(name: str, done: int, total: int) -> None:
        if name == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    if isinstance(kill_at, tuple):
        Path.rename = killing
    started.set()
    export_model(checkpoint, output, prove=prove, overwrite=True, progress=step)


class Exports:
    """Starts exports in forks of this process, which has exported before: they load nothing and compile nothing."""

    def __init__(self, checkpoint: Path, output: Path) -> None:
        self.checkpoint, self.output = checkpoint, output
        self.context = multiprocessing.get_context("fork")

    def start(self, prove: bool = False, kill_at: tuple[int, bool] | str | None = None) -> ForkProcess:
        """A process that has begun to export."""
        started = self.context.Event()
        process = self.context.Process(target=export, args=(self.checkpoint, self.output, prove, started, kill_at))
        process.start()
        started.wait(300)
        return process

    def finish(self, prove: bool = False) -> float:
        """Seconds that a whole export takes."""
        process, begin = self.start(prove), time.monotonic()
        process.join()
        assert process.exitcode == 0, process.exitcode
        return time.monotonic() - begin

    def state(self) -> str:
        """What is under the output's name: "nothing" or "a bundle", which must be a whole one."""
        from onnx_vlm.graphs import manifest

        if not self.output.exists():
            return "nothing"
        bundle = manifest.load(self.output)
        assert all(manifest.sha256(self.output / name) == file.sha256 for name, file in bundle.files.items())
        return "a bundle"

    def leftovers(self) -> int:
        """How many things are beside the output."""
        return sum(path != self.output for path in self.output.parent.iterdir())


def campaign(checkpoint: Path, folder: Path, count: int, seed: int) -> collections.Counter[str]:
    """Kill `count` exports at random moments, and one at each step and rename; what was found how often."""
    from onnx_vlm.export import export_model, output_folder

    exports, drawn, found = Exports(checkpoint, folder / "out" / "bundle"), random.Random(seed), collections.Counter()
    old = export_model(checkpoint, folder / "old")  # loads what an export loads
    seconds = {prove: exports.finish(prove) for prove in (False, True)} if count else {}
    moments = [None] * count + STEPS + RENAMES
    for number, kill_at in enumerate(moments):
        replaces, prove = number % 2 == 0 or kill_at in RENAMES, kill_at is None and number % 5 == 0
        shutil.rmtree(exports.output, ignore_errors=True)
        if replaces:
            shutil.copytree(old, exports.output)
        sent = (signal.SIGKILL, signal.SIGTERM)[number // 2 % 2]
        process = exports.start(prove, kill_at)
        if kill_at is None:
            process.join(drawn.uniform(0, seconds[prove]))
            os.kill(process.pid, sent) if process.is_alive() else None
        process.join()
        found[f"killed by {signal.Signals(-process.exitcode).name}" if process.exitcode else "ended before"] += 1
        left = exports.leftovers()
        assert left <= 1, f"export {number}: {left} folders are left; an export did not remove those of earlier ones"
        found["left a folder beside the output"] += left
        if exports.state() == "nothing" and replaces:
            output_folder.remove_leftovers(exports.output.parent)  # as the next export does first
            found["had moved the old bundle aside, which came back"] += 1
            assert exports.state() == "a bundle", f"export {number}: the old bundle is lost"
        print(f"\r{number + 1} of {len(moments)}", end="", file=sys.stderr, flush=True)
    exports.finish()
    assert (exports.state(), exports.leftovers()) == ("a bundle", 0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: a fork of a process with its threads may hang
    with tempfile.TemporaryDirectory() as name:
        from random_rows import PALIGEMMA

        make, settings = PALIGEMMA["smallest"]
        checkpoint = make(Path(name) / "checkpoint", seed=0, **settings)
        begin = time.monotonic()
        found = campaign(checkpoint, Path(name), options.count, options.seed)
    print(f"\nseed {options.seed}, {time.monotonic() - begin:.0f} s; at the end: a whole bundle alone")
    for what, times in sorted(found.items()):
        print(f"{times:5} {what}")


if __name__ == "__main__":
    main()
