"""What TensorRT is told and where its engines are kept; it runs on no machine without a GPU, which is said plainly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx_vlm.graphs import BundleError, InputError, ProviderError, contract, manifest, shape_profile
from onnx_vlm.graphs.shape_profile import SizeRange
from onnx_vlm.runtime import load
from onnx_vlm.runtime.inference.device_cache import bucket
from onnx_vlm.runtime.inference.host_cache import Cache, CopiedCache
from onnx_vlm.runtime.providers import tensorrt
from onnx_vlm.runtime.providers.caches import cache_root
from onnx_vlm.runtime.providers.cuda import Machine
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.providers.targets import choose_targets
from onnx_vlm.runtime.warmup import warmup

SPEC = contract.decoder(layers=1, kv_heads=2, head_dim=8, hidden=16, vocab=100)
DECODER = {
    "batch": SizeRange(1, 2, 8),
    "sequence": SizeRange(1, 1, 900),
    "kept": SizeRange(1, 1, 1),
    "capacity": SizeRange(256, 512, 1000),
}
TILES = {"tiles": SizeRange(1, 1, 4)}
MACHINE = Machine("NVIDIA H200 / 141GB", "90", "101303", "1.31.1")


@pytest.fixture(scope="module")
def portable(bundle: Path) -> manifest.Manifest:
    """The manifest of a bundle as it would be with profiles."""
    made = manifest.load(bundle)
    profiles = {"vision_encoder": TILES, "projector": TILES, "decoder": DECODER}
    return dataclasses.replace(made, target="portable", cache="copied", profiles=profiles)


def test_capacities_are_few_and_within_the_profile():
    extent = DECODER["capacity"]
    capacities = {bucket(needed, extent.largest) for needed in range(1, extent.largest + 1)}
    assert capacities == {256, 512, 1000}
    assert extent.smallest <= min(capacities)


def test_shapes_are_written_as_the_provider_reads_them():
    written = tensorrt.shapes(SPEC, {size: extent.largest for size, extent in DECODER.items()})
    assert written == (
        "inputs_embeds:8x900x16,sequence_lengths:8,logits_indices:8x1,"
        "past_key_values.0.key:8x2x1000x8,past_key_values.0.value:8x2x1000x8"
    )  # a scalar has no shape that varies


def told(portable: manifest.Manifest, root: Path, **options: object) -> dict[str, dict[str, str]]:
    """The options that each graph's session gives TensorRT."""
    (target,) = choose_targets(LoadOptions("tensorrt", provider_options=options))
    found = tensorrt.targets(portable, target, MACHINE, root)
    return {name: dict(one.entries())[tensorrt.PROVIDER] for name, one in found.items()}


def test_options_of_each_graph(portable: manifest.Manifest, tmp_path: Path):
    found = told(portable, tmp_path, device_id=1)
    folder = tensorrt.engine_folder(portable, MACHINE, tmp_path)
    assert folder.is_dir()
    assert found.keys() == set(contract.GRAPHS)
    assert found["vision_encoder"] == {
        "device_id": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": "vision_encoder",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": "pixel_values:1x3x56x56",
        "trt_profile_opt_shapes": "pixel_values:1x3x56x56",
        "trt_profile_max_shapes": "pixel_values:4x3x56x56",
    }
    assert found["decoder"]["trt_profile_opt_shapes"].startswith("inputs_embeds:2x1x")
    for precision in ("fp16", "bf16"):
        narrow = dataclasses.replace(portable, precision=dict.fromkeys(portable.precision, precision))
        assert told(narrow, tmp_path)["decoder"][f"trt_{precision}_enable"] == "1"


def test_weights_beyond_a_message_are_handed_over_apart(portable: manifest.Manifest, tmp_path: Path):
    files = portable.files | {"decoder.onnx.data": manifest.File(3 << 30, "0")}
    found = told(dataclasses.replace(portable, files=files), tmp_path)
    assert found["decoder"]["trt_load_user_initializer"] == "1"
    assert "trt_load_user_initializer" not in found["projector"]


def test_engines_are_kept_by_bundle_device_and_versions(portable: manifest.Manifest, tmp_path: Path):
    folder = tensorrt.engine_folder(portable, MACHINE, tmp_path)
    assert folder == tensorrt.engine_folder(portable, MACHINE, tmp_path)
    assert folder.parent == tmp_path / "tensorrt"
    assert folder.name.endswith("-NVIDIA_H200_141GB_sm90-tensorrt-101303-onnxruntime-1.31.1")
    machines = [dataclasses.replace(MACHINE, **{field.name: "other"}) for field in dataclasses.fields(MACHINE)]
    weights = portable.files["decoder.onnx.data"]
    changed = dataclasses.replace(
        portable, files=portable.files | {"decoder.onnx.data": dataclasses.replace(weights, sha256="0")}
    )
    wider = dataclasses.replace(portable, profiles=portable.profiles | {"projector": {"tiles": SizeRange(1, 2, 4)}})
    retold = dataclasses.replace(portable, files=portable.files | {"tokenizer.json": manifest.File(1, "0")})
    others = [tensorrt.engine_folder(portable, machine, tmp_path) for machine in machines]
    others += [tensorrt.engine_folder(other, MACHINE, tmp_path) for other in (changed, wider)]
    assert len({folder, *others}) == 1 + len(others)
    assert tensorrt.engine_folder(retold, MACHINE, tmp_path) == folder


def test_the_folder_of_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ONNX_VLM_CACHE", raising=False)
    assert cache_root() == tmp_path / "onnx-vlm"
    monkeypatch.setenv("ONNX_VLM_CACHE", str(tmp_path / "there"))
    assert cache_root() == tmp_path / "there"


def test_a_call_larger_than_the_engines_is_refused():
    tensorrt.check_sizes(DECODER, batch=8, sequence=900)
    with pytest.raises(InputError, match=r"batch of 9, the bundle's engines take up to 8.*profiles.decoder.batch"):
        tensorrt.check_sizes(DECODER, batch=9, sequence=900)


def test_a_bundle_of_the_usual_target_is_refused(bundle: Path, tmp_path: Path):
    with pytest.raises(ProviderError, match=r"target onnxruntime.*--target portable"):
        told(manifest.load(bundle), tmp_path)


@pytest.mark.needs("onnxruntime")
def test_what_is_missing_is_said(bundle: Path):
    for use in (warmup, lambda path: load(path, provider="tensorrt")):
        with pytest.raises(ProviderError, match=r"is built without TensorrtExecutionProvider.*onnxruntime-gpu"):
            use(bundle)
    with pytest.raises(ProviderError, match="'cpu' builds nothing ahead; supported: tensorrt"):
        warmup(bundle, LoadOptions("cpu"))


def test_profiles_that_do_not_fit_the_graph_are_found():
    assert shape_profile.problems(DECODER, SPEC) == []
    wrong = {**DECODER, "batch": SizeRange(2, 1, 8), "tiles": SizeRange(1, 1, 1)}
    del wrong["kept"]
    assert shape_profile.problems(wrong, SPEC) == [
        "kept: missing",
        "tiles: unknown",
        "batch: 2, 1, 8 are not in order from 1 up",
    ]


def test_a_manifest_with_wrong_profiles_is_refused(portable: manifest.Manifest, bundle: Path, tmp_path: Path):
    for file in bundle.rglob("*"):
        if file.is_file() and file.name != manifest.FILE_NAME:
            (tmp_path / file.relative_to(bundle)).parent.mkdir(exist_ok=True)
            (tmp_path / file.relative_to(bundle)).symlink_to(file)
    portable.save(tmp_path)
    assert manifest.load(tmp_path) == portable
    dataclasses.replace(portable, profiles=portable.profiles | {"decoder": TILES}).save(tmp_path)
    with pytest.raises(BundleError, match=r"profiles.decoder.batch: missing"):
        manifest.load(tmp_path)


def test_a_copied_cache_hands_its_buffers_over():
    """What the graph wrote is the past of the next call; rows are kept and reordered as in one that is in place."""

    class Binding:
        """Remembers what it was given."""

        def bind_ortvalue_input(self, name: str, value: ort.OrtValue) -> None:
            setattr(self, name, value)

        bind_ortvalue_output = bind_ortvalue_input

    key = "past_key_values.0.key", "present.0.key"
    cache, binding = CopiedCache(SPEC, 2, 3, 4), Binding()
    cache.bind(binding)
    cache.extend(np.array([2, 1]))
    written = cache._spare[key]
    assert vars(binding)[key[1]].data_ptr() == written.ctypes.data
    assert vars(binding)[key[0]].data_ptr() != written.ctypes.data
    written[:2] = np.arange(2)[:, None, None, None] + 1
    assert cache.advance()
    cache.keep(np.array([1, 0, 0]))
    cache.bind(binding)
    past = vars(binding)[key[0]].numpy()
    assert past.shape == (3, 2, 4, 8)
    assert past[:, 0, 0, 0].tolist() == [2, 1, 1]
    assert cache.lengths.tolist() == [1, 2, 2]
    assert not Cache(SPEC, 2, 3, 4).advance()
