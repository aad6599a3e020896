"""The embedding cache over an encoder of one line, which notes what it was given."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import shapes
from onnx_vlm.runtime import GenerationError, InputError, Limits, load
from onnx_vlm.runtime.inference.engine import Engine
from onnx_vlm.runtime.inference.image_embeddings import ImageEmbeddingCache


class Encoder:
    """A tile's embedding is its mean, four bytes."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def __call__(self, tiles: Sequence[np.ndarray]) -> np.ndarray:
        self.given.append(len(tiles))
        return np.stack(tiles).mean(axis=(1, 2, 3))[:, None, None].astype(np.float32)


def picture(*values: float) -> np.ndarray:
    return np.stack([np.full((3, 2, 2), value, np.float32) for value in values])


def values(embeds: list[np.ndarray]) -> list[list[float]]:
    return [some[:, 0, 0].tolist() for some in embeds]


def test_all_tiles_of_a_call_are_encoded_together_and_equal_ones_once():
    encode = Encoder()
    cache = ImageEmbeddingCache(encode, (1, 1), 1000)
    assert values(cache([picture(1, 2, 1), picture(3), picture(2, 4)])) == [[1, 2, 1], [3], [2, 4]]
    assert encode.given == [4]
    assert values(cache([picture(4, 5)])) == [[4, 5]]
    assert encode.given == [4, 1]
    assert cache([]) == []


def test_what_was_used_least_recently_goes_first():
    encode = Encoder()
    cache = ImageEmbeddingCache(encode, (1, 1), 8)  # two tiles
    for value in (1, 2, 1, 3, 1, 2):
        assert values(cache([picture(value)])) == [[value]]
    assert encode.given == [1, 1, 1, 1], "1 stayed, 2 went for 3"


def test_without_memory_nothing_is_kept():
    encode = Encoder()
    cache = ImageEmbeddingCache(encode, (1, 1), 0)
    cache([picture(1)])
    cache([picture(1)])
    assert encode.given == [1, 1]


def test_on_disk_for_others_with_the_same_model(tmp_path: Path):
    folder = tmp_path / "embeddings"
    ImageEmbeddingCache(Encoder(), (1, 1), 0, folder, "a")([picture(1, 2)])
    assert len(list(folder.glob("*.npy"))) == len(list(folder.iterdir())) == 2
    same, other = Encoder(), Encoder()
    assert values(ImageEmbeddingCache(same, (1, 1), 1000, folder, "a")([picture(2, 1)])) == [[2, 1]]
    assert same.given == []
    ImageEmbeddingCache(other, (1, 1), 1000, folder, "b")([picture(1)])
    assert other.given == [1]


def saved(array: np.ndarray, save=np.save) -> bytes:
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


WHOLE = saved(np.ones((1, 1), np.float32))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"PK\x03\x04",
        WHOLE[:20],
        WHOLE[:-1],
        saved(np.ones((1, 1), np.float32), np.savez),
        saved(np.ones((2, 1), np.float32)),
        saved(np.ones((1, 1), np.float64)),
        saved(np.array([[None]])),
        WHOLE.replace(b"(1, 1), }             ", b"(1, 9999999999999999)}"),
        WHOLE[:8] + b"\xff\xff" + b"[" * 70000,
    ],
)
def test_a_damaged_file_is_written_anew(tmp_path: Path, data: bytes):
    ImageEmbeddingCache(Encoder(), (1, 1), 0, tmp_path)([picture(1)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(data)
    encode = Encoder()
    assert values(ImageEmbeddingCache(encode, (1, 1), 0, tmp_path)([picture(1)])) == [[1]]
    assert encode.given == [1]
    assert path.read_bytes() == WHOLE


@pytest.mark.parametrize(("path", "said"), [("", "is empty"), ("a" * 300, "File name too long"), ("a\0b", "null byte")])
def test_paths_that_lead_nowhere(path: str, said: str):
    with pytest.raises(InputError, match=said):
        ImageEmbeddingCache(Encoder(), (1, 1), 0, path)


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As for a user without permission; root has every one."""
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match="no permission to read and write"):
        ImageEmbeddingCache(Encoder(), (1, 1), 0, tmp_path)


def test_a_folder_that_cannot_be_used(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="file cannot be a folder for image embeddings"):
        ImageEmbeddingCache(Encoder(), (1, 1), 0, tmp_path / "file")
    cache = ImageEmbeddingCache(Encoder(), (1, 1), 0, tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(GenerationError, match="gone"):
        cache([picture(1)])


class EncodedPrompt:
    """The tiles of each run of the vision encoder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[int] = []
        encode = Engine.encode

        def noting(engine: Engine, tiles: np.ndarray) -> np.ndarray:
            self.runs.append(len(tiles))
            return encode(engine, tiles)

        monkeypatch.setattr(Engine, "encode", noting)


def test_pictures_of_all_prompts_are_encoded_together_within_the_memory_for_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    scenes = [shapes.scene(shapes.HELD_OUT + index) for index in range(5)]
    pictures = [shapes.draw(scene) for scene in scenes]
    tile = (1 << 30) // load(bundle, threads=1).pipeline.engine.tiles_at_once
    answers = []
    for memory, runs in ((1, [1] * 5), (2.5 * tile, [2, 2, 1]), (1 << 30, [5])):
        encoded = EncodedPrompt(monkeypatch)
        vlm = load(bundle, threads=1, limits=Limits(vision_memory=int(memory)))
        answers.append([one.token_ids for one in vlm.generate(["caption"] * 5, pictures)])
        assert encoded.runs == runs
        vlm.generate("how many circles", pictures[2])
        assert encoded.runs == runs, "it is known"
    assert answers[0] == answers[1] == answers[2]


def test_embeddings_on_disk_serve_the_next_load(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture, encoded = shapes.draw(shapes.scene(shapes.HELD_OUT)), EncodedPrompt(monkeypatch)
    answers = [load(bundle, threads=1, embedding_folder=tmp_path).generate("caption", picture) for _ in range(2)]
    assert answers[0].token_ids == answers[1].token_ids
    assert encoded.runs == [1]
