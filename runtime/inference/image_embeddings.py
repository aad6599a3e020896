"""Image embeddings by the content of their tiles, so that the same picture is not encoded twice."""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...graphs import GenerationError, InputError


class Embeddings:
    """Encodes tiles, and keeps what came out. May be used from several threads.

    Args:
        encode: tiles (tiles, 3, height, width) to image embeddings (tiles, image_tokens, hidden).
        memory: bytes kept in memory; the least recently used go first.
        folder: where to keep them on disk as well, without a limit; None for nowhere.
        model: names what encodes: several models may share a folder.

    Raises:
        InputError: if the folder cannot be made.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[np.ndarray]], np.ndarray],
        memory: int,
        folder: str | os.PathLike[str] | None = None,
        model: str = "",
    ) -> None:
        self._encode, self._memory, self._model = encode, memory, model
        self._folder = Folder(Path(folder)) if folder is not None else None
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Embeddings (tiles, image_tokens, hidden) of each picture (tiles, 3, height, width).

        All tiles that are not known are encoded together, equal ones once.
        """
        keys = [[self._key(tile) for tile in tiles] for tiles in pictures]
        tiles = {key: tile for some, tiles in zip(keys, pictures) for key, tile in zip(some, tiles)}
        found = {key: embeds for key in tiles if (embeds := self._find(key)) is not None}
        missing = [key for key in tiles if key not in found]
        if missing:
            for key, embeds in zip(missing, self._encode([tiles[key] for key in missing])):
                found[key] = embeds.copy()  # the others of the batch need not stay for it
                self._keep(key, found[key])
                if self._folder is not None:
                    self._folder.put(key, embeds)
        return [np.stack([found[key] for key in some]) for some in keys]

    def _key(self, tile: np.ndarray) -> str:
        data = hashlib.sha256(f"{self._model} {tile.shape} {tile.dtype}".encode())
        data.update(np.ascontiguousarray(tile).data)
        return data.hexdigest()

    def _find(self, key: str) -> np.ndarray | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        embeds = self._folder.get(key) if self._folder is not None else None
        if embeds is not None:
            self._keep(key, embeds)
        return embeds

    def _keep(self, key: str, embeds: np.ndarray) -> None:
        with self._lock:
            if key in self._kept or embeds.nbytes > self._memory:
                return
            self._kept[key] = embeds
            self._bytes += embeds.nbytes
            while self._bytes > self._memory:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes


class Folder:
    """Arrays by name in a folder that other processes may use too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be a folder for image embeddings: {error}") from None

    def get(self, name: str) -> np.ndarray | None:
        try:
            return np.load(self._path / f"{name}.npy")
        except (OSError, ValueError, EOFError):  # not there, or damaged: it is written anew
            return None

    def put(self, name: str, array: np.ndarray) -> None:
        aside = self._path / f".{uuid.uuid4().hex}"  # renamed when whole: nobody reads half a file
        try:
            with aside.open("wb") as file:
                np.save(file, array)
            aside.replace(self._path / f"{name}.npy")
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise GenerationError(f"image embeddings cannot be written to {self._path}: {error}") from None
