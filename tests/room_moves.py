"""How often one answer moves between rooms: `python tests/room_moves.py BUNDLE IMAGE` prints the way it takes.

Calls and returns of the runtime's own functions are recorded by the interpreter's profile hook. A move is two events
in a row in different rooms; comprehensions and properties count like any call.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import onnx_vlm.runtime
from onnx_vlm.runtime import load

RUNTIME = Path(onnx_vlm.runtime.__file__).parent


def room(frame: FrameType | None) -> str | None:
    """The room of a frame's code, or its file where that is in the runtime's own folder; None outside the runtime."""
    if frame is None:
        return None
    path = Path(frame.f_code.co_filename)
    if RUNTIME not in path.parents:
        return None
    return path.parent.name if path.parent != RUNTIME else "runtime"


def visited_rooms(bundle: Path, image: Path) -> list[str]:
    """The rooms that one answer of two tokens enters, in order."""
    vlm = load(bundle, provider="cpu", threads=1)
    rooms: list[str] = []

    def record(frame: FrameType, event: str, _: Any) -> None:
        entered = room(frame) if event == "call" else room(frame.f_back) if event == "return" else None
        if entered is not None and (not rooms or rooms[-1] != entered):
            rooms.append(entered)

    sys.setprofile(record)
    threading.setprofile(record)
    try:
        vlm.generate("detect red circle", images=image, max_new_tokens=2)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return rooms


if __name__ == "__main__":
    visited = visited_rooms(Path(sys.argv[1]), Path(sys.argv[2]))
    print(" > ".join(visited))
    print(f"{len(visited) - 1} moves between rooms")
