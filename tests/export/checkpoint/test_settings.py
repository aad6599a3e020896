"""Files of a checkpoint that hold other values than an export can use, or code, or lead elsewhere: all are refused
before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import CHECKPOINTS, run_command
from onnx_vlm.export import export_model
from onnx_vlm.export.checkpoint.checkpoint import Checkpoint
from onnx_vlm.graphs import CheckpointError, contract

EVIL = "open({marker!r}, 'w').write('ran')\nclass Evil:\n    from_pretrained = classmethod(lambda *_, **__: None)\n"


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a copy of a trained checkpoint, whose JSON files a test may change."""

    def copy(name: str) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        for path in (CHECKPOINTS / name).iterdir():
            if path.name in ("model.safetensors", contract.TOKENIZER):
                (folder / path.name).symlink_to(path)
            elif path.suffix in (".json", ".jinja"):
                shutil.copyfile(path, folder / path.name)
        return folder

    return copy


def refused(checkpoint: Path, **options: Any) -> str:
    """The sentence with which an export refuses a checkpoint."""
    output = checkpoint.parent / "out" / "bundle"
    with pytest.raises(CheckpointError) as caught:
        export_model(checkpoint, output, prove=False, **options)
    assert not output.parent.exists() or not list(output.parent.iterdir())
    return str(caught.value)


def edit(path: Path, *keys: str, value: Any) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    inner = values
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
    inner[keys[-1]] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "processor_config.json"])
@pytest.mark.parametrize("text", ["[]", "null", "5", '"x"'])
def test_a_file_that_holds_no_object_is_refused(copied: Callable[[str], Path], file: str, text: str):
    checkpoint = copied("paligemma2")
    (checkpoint / file).write_text(text)
    said = refused(checkpoint)
    assert file in said
    assert "it must hold a JSON object" in said


@pytest.mark.parametrize(
    ("data", "said"), [(b"\xff", "not JSON"), (b"{" * 100_000, "not JSON"), (b'{"a":' * 9_999, "not JSON")]
)
def test_a_file_that_is_no_json_is_refused(copied: Callable[[str], Path], data: bytes, said: str):
    checkpoint = copied("paligemma2")
    (checkpoint / "tokenizer_config.json").write_bytes(data)
    assert said in refused(checkpoint)


PROCESSOR, IMAGE = "processor_config.json", "image_processor"


@pytest.mark.parametrize(
    ("name", "file", "keys", "value"),
    [
        ("paligemma2", "config.json", ("model_type",), ["a"]),
        ("paligemma2", PROCESSOR, (IMAGE,), [1]),
        ("paligemma2", PROCESSOR, (IMAGE, "size"), [56, 56]),
        ("paligemma2", PROCESSOR, (IMAGE, "size"), "x"),
        ("paligemma2", PROCESSOR, (IMAGE, "size", "height"), "56"),
        ("paligemma2", PROCESSOR, (IMAGE, "size"), {"shortest_edge": 56}),
        ("paligemma2", PROCESSOR, (IMAGE, "resample"), []),
        ("paligemma2", PROCESSOR, (IMAGE, "resample"), True),
        ("paligemma2", PROCESSOR, (IMAGE, "do_resize"), False),
        ("paligemma2", PROCESSOR, (IMAGE, "do_rescale"), "x"),
        ("paligemma2", PROCESSOR, (IMAGE, "image_mean"), 0.5),
        ("paligemma2", PROCESSOR, (IMAGE, "image_mean"), [0.5]),
        ("paligemma2", PROCESSOR, (IMAGE, "image_std"), [1, 1, "x"]),
        ("paligemma2", PROCESSOR, (IMAGE, "rescale_factor"), None),
        ("paligemma2", PROCESSOR, (IMAGE, "rescale_factor"), float("nan")),
        ("paligemma2", "generation_config.json", ("max_new_tokens",), "x"),
        ("paligemma2", "generation_config.json", ("max_new_tokens",), -3),
        ("paligemma2", "generation_config.json", ("eos_token_id",), "x"),
        ("paligemma2", "generation_config.json", ("eos_token_id",), [1, "x"]),
        ("perception_lm", PROCESSOR, (IMAGE, "max_num_tiles"), "x"),
        ("perception_lm", PROCESSOR, (IMAGE, "max_num_tiles"), 0),
        ("perception_lm", PROCESSOR, (IMAGE, "tile_size"), "x"),
        ("perception_lm", "processor_config.json", ("video_processor", "num_frames"), "x"),
        ("perception_lm", "tokenizer_config.json", ("chat_template",), 5),
        ("kosmos2", PROCESSOR, (IMAGE, "crop_size"), "x"),
        ("kosmos2", "tokenizer_config.json", ("clean_up_tokenization_spaces",), "x"),
    ],
)
def test_a_value_that_no_export_can_use_is_named(
    copied: Callable[[str], Path], name: str, file: str, keys: tuple[str, ...], value: Any
):
    checkpoint = copied(name)
    edit(checkpoint / file, *keys, value=value)
    if keys == ("chat_template",):
        (checkpoint / contract.CHAT_TEMPLATE).unlink()
    said = refused(checkpoint)
    assert file in said
    assert f"{keys[-1]} " in said
    assert repr(value) in said


@pytest.mark.parametrize(
    ("name", "keys", "value", "said"),
    [
        ("kosmos2", ("text_config", "activation_function"), "{0}elu", "KeyError: '{0}elu'"),
        ("paligemma2", ("vision_config", "hidden_act"), "x", "KeyError: 'x'"),
        ("paligemma2", ("text_config", "vocab_size"), 2**63 - 1, "RuntimeError"),
        ("paligemma2", ("pad_token_id",), "x", "TypeError"),
    ],
)
def test_a_value_that_transformers_cannot_use_is_told(
    copied: Callable[[str], Path], name: str, keys: tuple[str, ...], value: Any, said: str
):
    checkpoint = copied(name)
    edit(checkpoint / "config.json", *keys, value=value)
    sentence = refused(checkpoint)
    assert "config.json" in sentence
    assert said in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "value", [None, [], {"a": "../other/model.safetensors"}, {"a": "/etc/model.safetensors"}, {"a": "x\\y"}, {"a": 5}]
)
def test_an_index_that_leads_out_of_the_checkpoint_is_refused(copied: Callable[[str], Path], value: Any):
    checkpoint = copied("paligemma2")
    (checkpoint.parent / "other").mkdir()
    shutil.copyfile(CHECKPOINTS / "paligemma2" / "model.safetensors", checkpoint.parent / "other" / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    edit(checkpoint / "model.safetensors.index.json", "weight_map", value=value)
    said = refused(checkpoint)
    assert "weight" in said
    assert "Traceback" not in said


def test_an_index_beside_a_single_file_is_not_read(copied: Callable[[str], Path]):
    checkpoint = copied("paligemma2")
    edit(checkpoint / "model.safetensors.index.json", "weight_map", value={"a": "missing.safetensors"})
    assert [path.name for path in Checkpoint(checkpoint).files] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% if %}", "the chat template is broken"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].role }}", "writes <|image|> 0 times for one image"),
        ("<|image|>{% for m in messages %}<|image|>{% endfor %}", "writes <|image|> 2 times for one image"),
    ],
)
def test_a_chat_template_that_does_not_work_is_found_at_once(copied: Callable[[str], Path], text: str, said: str):
    checkpoint = copied("perception_lm")
    (checkpoint / contract.CHAT_TEMPLATE).write_text(text)
    assert said in refused(checkpoint)


def test_a_chat_template_that_is_not_utf8_is_named(copied: Callable[[str], Path]):
    checkpoint = copied("perception_lm")
    (checkpoint / contract.CHAT_TEMPLATE).write_bytes(b"\xff")
    assert "chat_template.jinja is not UTF-8" in refused(checkpoint)


def add_code(checkpoint: Path, file: str, keys: tuple[str, ...], kind: str) -> Path:
    """Give a checkpoint Python code that writes a file, and name it in its settings; the file's path."""
    marker = checkpoint.parent / "marker"
    (checkpoint / "evil.py").write_text(EVIL.format(marker=str(marker)))
    edit(checkpoint / file, *keys, "auto_map", value={kind: "evil.Evil"})
    return marker


@pytest.mark.parametrize(
    ("file", "keys", "kind"),
    [
        ("config.json", (), "AutoModelForImageTextToText"),
        ("processor_config.json", (), "AutoProcessor"),
        ("processor_config.json", ("image_processor",), "AutoImageProcessor"),
        ("preprocessor_config.json", (), "AutoImageProcessor"),
        ("video_preprocessor_config.json", (), "AutoVideoProcessor"),
        ("tokenizer_config.json", (), "AutoTokenizer"),
    ],
)
def test_a_checkpoint_with_code_of_its_own_is_refused(
    copied: Callable[[str], Path], file: str, keys: tuple[str, ...], kind: str
):
    checkpoint = copied("paligemma2")
    marker = add_code(checkpoint, file, keys, kind)
    said = refused(checkpoint)
    assert str(checkpoint / file) in said
    assert "An export never runs that code" in said
    assert not marker.exists()


@pytest.mark.parametrize("command", ["export", "verify"])
def test_no_command_asks_whether_to_run_code(copied: Callable[[str], Path], bundle: Path, tmp_path: Path, command: str):
    checkpoint = copied("paligemma2")
    settings = json.loads((checkpoint / "processor_config.json").read_text())
    settings["image_processor"].pop("image_processor_type", None)
    (checkpoint / "processor_config.json").write_text(json.dumps(settings))
    marker = add_code(checkpoint, "processor_config.json", (), "AutoProcessor")
    arguments = {"export": (checkpoint, tmp_path / "out"), "verify": (bundle, "--checkpoint", checkpoint)}[command]
    done = run_command(command, *arguments, input="y\n" * 20)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "An export never runs that code" in done.stderr
    assert "Traceback" not in done.stderr
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
