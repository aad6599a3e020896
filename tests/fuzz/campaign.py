"""Cases of damaged input, each in a process that may die of it, and the count of what came of them."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

from onnx_vlm.graphs import VLMError

Files: TypeAlias = "dict[str, bytes | None]"  #: the input of a case: contents by name, None for a file that is removed

BATCH = 500  #: cases of a process
WALL_SECONDS = 120  #: also ends a case that waits, and uses no CPU
ADDRESSES = 4 << 30  #: bytes of addresses that a process may take beyond those that it has at first


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        name: its name on the command line.
        make: makes the input of a case. It depends on the random numbers alone.
        run: uses an input, in a folder of its own, and returns a word for the outcome. It raises a VLMError where the
            input is refused; any other exception is a failure.
        share: of the time of a campaign.
        seconds: CPU time that a case may take.
        memory: bytes by which a process may grow.
    """

    name: str
    make: Callable[[random.Random], Files]
    run: Callable[[Files, Path], str]
    share: float = 1
    seconds: float = 10
    memory: int = 1 << 30

    def input(self, seed: int) -> Files:
        return self.make(random.Random(f"{self.name} {seed}"))


@dataclass(frozen=True)
class Outcome:
    """What came of a case: a word, and for a failure the traceback or what else tells of it."""

    seed: int
    word: str
    failure: str | None = None


@dataclass
class Tally:
    """The outcomes of a target."""

    words: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)
    seconds: float = 0

    def add(self, outcome: Outcome) -> None:
        self.words[outcome.word] += 1
        if outcome.failure is not None:
            self.failures.append(outcome)


def run(target: Target, first: int, cases: int | None, seconds: float = float("inf")) -> Iterator[Outcome]:
    """The outcomes of the seeds from `first` on, for so many cases or so long."""
    end = time.monotonic() + seconds
    last = float("inf") if cases is None else first + cases
    while first < last and time.monotonic() < end:
        for outcome in _batch(target, range(first, int(min(first + BATCH, last)))):
            yield outcome
            first = outcome.seed + 1
            if time.monotonic() > end:
                break


def save(target: Target, outcome: Outcome, folder: Path) -> Path:
    """Write the input of a failed case, and what tells of the failure, into a folder, and return that."""
    folder = folder / f"{target.name}-{outcome.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    write(target.input(outcome.seed), folder)
    (folder / "failure.txt").write_text(outcome.failure or "", errors="backslashreplace")
    return folder


def write(files: Files, folder: Path) -> None:
    """Write or remove these files. A file that is there is replaced, not changed: it may be mapped into memory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)


def _batch(target: Target, seeds: range) -> Iterator[Outcome]:
    """The outcomes of these seeds up to the first that ends its process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    log = folder / "log"
    worker = context.Process(target=_work, args=(target, seeds, sender, folder))
    worker.start()
    sender.close()
    try:
        for seed in seeds:
            if not receiver.poll(WALL_SECONDS):
                yield Outcome(seed, "HANG", f"no answer after {WALL_SECONDS} s\n{log.read_text(errors='replace')}")
                return
            try:
                outcome = receiver.recv()
            except EOFError:
                worker.join()
                word = "HANG" if worker.exitcode == -signal.SIGPROF else "CRASH"
                ended = f"the process ended with {worker.exitcode}\n{log.read_text(errors='replace')[-20_000:]}"
                yield Outcome(seed, word, ended)
                return
            yield outcome
            if outcome.word == "MEMORY":
                return
    finally:
        worker.kill()
        worker.join()
        shutil.rmtree(folder, ignore_errors=True)


def _work(target: Target, seeds: range, connection: Connection, folder: Path) -> None:
    """Run the cases of these seeds. What is printed goes into a log, tracebacks of crashes and hangs too."""
    warnings.simplefilter("ignore")
    with (folder / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        faulthandler.enable(log)
        faulthandler.register(signal.SIGPROF, log, chain=True)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, resource.RLIM_INFINITY))
        before = _peak()
        for seed in seeds:
            files = target.input(seed)
            os.truncate(log.fileno(), 0)
            signal.setitimer(signal.ITIMER_PROF, target.seconds)
            outcome = _outcome(target, seed, files, folder / "case")
            signal.setitimer(signal.ITIMER_PROF, 0)
            grown = _peak() - before
            if grown > target.memory:
                outcome = Outcome(seed, "MEMORY", f"the process grew by {grown >> 20} MiB, then: {outcome}")
            connection.send(outcome)
            if outcome.word == "MEMORY":
                return


def _outcome(target: Target, seed: int, files: Files, folder: Path) -> Outcome:
    try:
        return Outcome(seed, target.run(files, folder))
    except VLMError as error:
        return Outcome(seed, type(error).__name__)
    except BaseException as error:  # a SystemExit of what is tested is a failure too
        return Outcome(seed, f"FAILED {type(error).__name__}", traceback.format_exc())


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
