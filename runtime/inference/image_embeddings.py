"""Image embeddings by the content of their tiles, so that the same image is not encoded twice."""

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


class ImageEmbeddingCache:
    """Encodes tiles, and keeps their embeddings. May be used from several threads.

    Args:
        encode: tiles (tiles, 3, height, width) to image embeddings (tiles, image_tokens, hidden).
        shape: of the embeddings of a tile, (image_tokens, hidden).
        memory: bytes kept in memory; the least recently used go first.
        folder: where to keep them on disk as well, without a limit; None for nowhere.
        model: names what encodes: several models may share a folder.

    Raises:
        InputError: if the folder cannot be made.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[np.ndarray]], np.ndarray],
        shape: tuple[int, int],
        memory: int,
        folder: str | os.PathLike[str] | None = None,
        model: str = "",
    ) -> None:
        self._encode, self._shape, self._model = encode, shape, model
        self._memory = memory
        self._folder = Folder(folder) if folder is not None else None
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._bytes = 0
        self.hits = self.misses = 0  # tiles whose embeddings were kept, and those that were encoded
        self._lock = threading.Lock()

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Embeddings (tiles, image_tokens, hidden) of each image (tiles, 3, height, width).

        All tiles that are not known are encoded together, equal ones once.
        """
        keys = [[self._key(tile) for tile in tiles] for tiles in images]
        tile_by_key = {key: tile for row, tiles in zip(keys, images) for key, tile in zip(row, tiles)}
        known = {key: embeds for key in tile_by_key if (embeds := self._find(key)) is not None}
        missing = [key for key in tile_by_key if key not in known]
        with self._lock:
            self.hits += len(known)
            self.misses += len(missing)
        if missing:
            for key, embeds in zip(missing, self._encode([tile_by_key[key] for key in missing])):
                known[key] = embeds.copy()  # the others of the batch need not stay for it
                self._keep(key, known[key])
                if self._folder is not None:
                    self._folder.put(key, embeds)
        return [np.stack([known[key] for key in row]) for row in keys]

    def _key(self, tile: np.ndarray) -> str:
        data = hashlib.sha256(f"{self._model} {tile.shape} {tile.dtype}".encode())
        data.update(np.ascontiguousarray(tile).data)
        return data.hexdigest()

    def _find(self, key: str) -> np.ndarray | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        embeds = self._folder.get(key, self._shape) if self._folder is not None else None
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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not os.fspath(path):
            raise InputError("the path of the folder for image embeddings is empty; give one, or None for no folder")
        self._path = Path(path)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            usable = os.access(self._path, os.R_OK | os.W_OK | os.X_OK)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path!s:.300} cannot be a folder for image embeddings: {getattr(error, 'strerror', None) or error}"
            ) from None
        if not usable:
            raise InputError(f"{path} cannot be a folder for image embeddings: no permission to read and write in it")

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """An array of float32; None if there is none of this shape, or it is damaged."""
        try:
            # Nothing is read before the header is known to be right: it may promise any number of bytes.
            array = np.lib.format.open_memmap(self._path / f"{name}.npy", mode="r")
        except Exception:  # the header is a Python literal: a damaged one raises errors of many kinds
            return None
        return np.array(array) if array.shape == shape and array.dtype == np.float32 else None

    def put(self, name: str, array: np.ndarray) -> None:
        aside = self._path / f".{uuid.uuid4().hex}"  # renamed when whole: nobody reads half a file
        try:
            with aside.open("wb") as file:
                np.save(file, array)
            aside.replace(self._path / f"{name}.npy")
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise GenerationError(f"image embeddings cannot be written to {self._path}: {error}") from None
