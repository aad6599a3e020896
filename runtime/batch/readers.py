"""Processes that read images, so that the model's process has its interpreter for itself, and a decoder that crashes
takes one row with it and no job."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from ...graphs import InputError
from ...graphs.manifest import Manifest
from ..inputs import Media, read
from ..limits import Limits

#: The images and videos of a row.
Asked: TypeAlias = tuple[Sequence[Any], Sequence[Any]]
#: A reader is one of several, so no operation of its is split among threads.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Readers:
    """Some processes. They end when this one does, however it ends, as their input does.

    Args:
        manifest: of the bundle, which says how images become tiles.
        limits: what a row may have.
        count: how many; they start at once.
    """

    def __init__(self, manifest: Manifest, limits: Limits, count: int) -> None:
        self._settings = manifest, limits
        self._closed = False
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._processes = [self._start() for _ in range(count)]
        for process in self._processes:
            self._idle.put(process)

    def read(self, media: Sequence[Asked]) -> list[Media | Exception]:
        """Read the images and videos of some rows in one process that is idle: the tiles of each, or why not."""
        index = self._processes.index(process := self._idle.get())
        ended = process
        try:
            _send(process, media)
            assert process.stdout is not None
            return pickle.load(process.stdout)
        except Exception:  # half of an answer, or none
            _end(process)
        finally:
            if process.poll() is not None and not self._closed:
                process = self._processes[index] = self._start()
            self._idle.put(process)
        if len(media) > 1:  # which of them was it?
            return [answer for one in media for answer in self.read([one])]
        what = f"the image or video ended the process that read it ({_status(ended)})"
        return [InputError(f"{what}: it may be damaged, or take more memory than there is")]

    def close(self) -> None:
        """End the processes, whatever they read. Nothing is read any more."""
        self._closed = True
        for process in self._processes:
            process.kill()  # whoever waits for it finds out
        for process in [self._idle.get() for _ in self._processes]:
            _end(process)
            self._idle.put(process)  # for a thread that had not begun to read

    def _start(self) -> subprocess.Popen[bytes]:
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD,
            start_new_session=True,  # Ctrl-C is for the job, which ends its readers
        )
        with suppress(OSError):  # whoever reads by it finds out
            _send(process, self._settings)
        return process


def serve() -> None:
    """What a reader does until its input ends: take what rows ask, and return the tiles of each, or the error."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    with suppress(EOFError, OSError):  # the job has ended
        manifest, limits = pickle.load(questions)
        while True:
            tiles = [_tiles(asked, manifest, limits) for asked in pickle.load(questions)]
            pickle.dump(tiles, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    os._exit(0)  # nothing is left to be flushed


def _tiles(asked: Asked, manifest: Manifest, limits: Limits) -> Media | Exception:
    try:
        return read(*asked, manifest, limits)
    except Exception as error:
        try:
            return pickle.loads(pickle.dumps(error))
        except Exception:  # an error of a library that cannot be made from its arguments
            return InputError(f"{type(error).__name__}: {error}")


def _send(process: subprocess.Popen[bytes], value: Any) -> None:
    assert process.stdin is not None
    pickle.dump(value, process.stdin, pickle.HIGHEST_PROTOCOL)
    process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):  # what was not sent yet
            pipe.close()


def _status(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    with suppress(ValueError, TypeError):
        return signal.Signals(-code).name
    return f"status {code}"
