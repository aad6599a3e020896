"""`Predictor`, in the batches of any engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import shapes
from onnx_vlm.batch import Predictor
from onnx_vlm.graphs import BundleError, InputError
from onnx_vlm.runtime import VLM, load


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return load(bundle, threads=1)


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(bundle, "caption", columns={"image": "photo"}, carry=["name"], threads=1, max_new_tokens=4)


def photos(count: int) -> list[np.ndarray]:
    return [np.asarray(shapes.draw(shapes.scene(shapes.HELD_OUT + index))) for index in range(count)]


def test_a_batch_of_columns(predictor: Predictor, vlm: VLM):
    images = np.empty(4, object)
    images[:] = [*photos(3), b"broken"]
    table = predictor(
        {"photo": images, "name": np.array(["a", "b", "c", "d"]), "num_beams": np.array([1, 2, np.nan, 1])}
    )
    assert table["name"].to_pylist() == ["a", "b", "c", "d"]
    alone = [vlm.generate("caption", image, max_new_tokens=4) for image in photos(3)]
    alone[1] = vlm.generate("caption", photos(2)[1], max_new_tokens=4, num_beams=2)
    assert table["text"].to_pylist() == [*(answer.text for answer in alone), None]
    assert "not an image" in table["error"].to_pylist()[3]


def test_a_table_keeps_the_types_of_what_is_carried_and_of_results(predictor: Predictor, tmp_path: Path):
    path = tmp_path / "a.png"
    shapes.draw(shapes.scene(shapes.HELD_OUT)).save(path)
    names = pa.array([7, 8, 9], pa.int8())
    table = predictor(pa.table({"photo": [str(path)] * 3, "name": names}))
    assert table.schema.field("name").type == pa.int8()
    failed = predictor(pa.table({"photo": ["gone.png"], "name": pa.array([1], pa.int8())}))
    assert table.schema == failed.schema
    with pytest.raises(InputError, match="no column 'name' to carry along; it has photo"):
        predictor({"photo": [str(path)]})


def test_a_bundle_by_its_url_is_fetched_once(bundle: Path, vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ONNX_VLM_CACHE", str(tmp_path))
    for _ in range(2):
        table = Predictor(f"file://{bundle}", "caption", threads=1)({"image": photos(1)})
    assert table["text"].to_pylist() == [vlm.generate("caption", photos(1)[0]).text]
    assert len(list((tmp_path / "bundles").iterdir())) == 1
    with pytest.raises(BundleError, match=r"there is no bundle at .*gone"):
        Predictor(f"file://{tmp_path}/gone", "caption")
    assert len(list((tmp_path / "bundles").iterdir())) == 1
