"""Bundles from the Hub and to it: the real client, and a server on this machine that speaks the Hub's protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hub_server
import pytest
import shapes
from helpers import run_command

IMAGE_PROMPT = f"detect {shapes.scene(shapes.HELD_OUT).things[0].name}"


@dataclass
class Client:
    """Runs commands and programs whose Hub is the server."""

    hub: hub_server.Hub
    folder: Path
    image: Path

    def environment(self, **more: str) -> dict[str, str]:
        hub = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return {**kept, **hub, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **more}

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, cwd=self.folder, env=self.environment(**environment))

    def ask(self, bundle: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("generate", bundle, IMAGE_PROMPT, "--image", self.image, "--no-stream", **environment)

    def refused(self, *arguments: object, status: int = 2, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return " ".join(done.stderr.split())

    def sentences(self, *ids: str, **environment: str) -> list[str]:
        """What `find` says of each id, in one process: an error's text, or a folder."""
        code = f"""
import sys
from onnx_vlm.graphs import VLMError
from onnx_vlm.runtime.hub.find import find
for name in {ids!r}:
    try: print(" ".join(str(find(name)).split()))
    except VLMError as error: print(" ".join(str(error).split()))
"""
        return self.python(code, **environment).splitlines()

    def python(self, code: str, **environment: str) -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(**environment), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def client(tmp_path: Path, bundle: Path) -> Iterator[Client]:
    """A client, and a server that has the bundle of PaliGemma 2 as user/bundle, among other files."""
    image = tmp_path / "shapes.png"
    shapes.draw(shapes.scene(shapes.HELD_OUT)).save(image)
    with hub_server.run() as hub:
        others = {"README.md": b"# A bundle", "pytorch_model.bin": b"not of the bundle"}
        hub.repositories["user/bundle"] = hub_server.Repository(contents(bundle) | others)
        yield Client(hub, tmp_path, image)


def test_an_id_answers_as_its_folder_does_and_only_the_bundle_is_fetched(client: Client, bundle: Path):
    expected = client.ask(bundle)
    done = client.ask("user/bundle")
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.stdout
    assert "<loc" in done.stdout
    assert sorted(client.hub.fetched()) == sorted(contents(bundle))


def test_what_is_in_the_cache_is_not_fetched_again_and_needs_no_network(client: Client):
    expected = client.ask("user/bundle").stdout
    client.hub.requests.clear()
    assert client.ask("user/bundle").stdout == expected
    assert client.hub.fetched() == []
    client.hub.requests.clear()
    assert client.ask("user/bundle", HF_HUB_OFFLINE="1").stdout == expected
    assert client.ask("user/bundle", HF_ENDPOINT="http://127.0.0.1:9").stdout == expected
    assert client.hub.requests == []


def test_a_url_of_the_hub_is_an_id(client: Client, bundle: Path):
    by_id, by_url, private = client.sentences("user/bundle", "hf://user/bundle@main", "hf://user/private")
    assert by_id == by_url
    assert "the Hub has no user/private" in private


def test_load_takes_an_id_and_a_revision(client: Client, bundle: Path):
    newer = client.hub.repositories["user/bundle"]
    newer.tags["v1"] = dict(newer.files)
    newer.files = {"README.md": b"moved"}
    code = "from onnx_vlm.runtime import load; print(load('user/bundle', revision='v1').manifest.target)"
    assert client.python(code) == "onnxruntime"
    assert json.loads(client.run("inspect", "user/bundle@v1", "--json").stdout)["target"] == "onnxruntime"
    assert "is no bundle" in client.refused("inspect", "user/bundle")
    assert "is a folder" in client.python(
        "from onnx_vlm.runtime import load, InputError\ntry: load('.', revision='v1')\nexcept InputError as e: print(e)"
    )


def test_a_folder_goes_before_an_id(client: Client, bundle: Path):
    (client.folder / "user").mkdir()
    (client.folder / "user" / "bundle").symlink_to(bundle)
    assert client.run("inspect", "user/bundle").returncode == 0
    assert client.hub.requests == []
    (client.folder / "user" / "bundle").unlink()
    (client.folder / "user" / "bundle").mkdir()
    assert "user/bundle is no bundle" in client.refused("inspect", "user/bundle")
    assert "other/bundle is no bundle" in client.refused("inspect", "./other/bundle")
    assert client.hub.requests == []


def test_a_model_of_triton_has_the_name_of_the_repository(client: Client):
    done = client.run("triton", "user/bundle@main", "models")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (client.folder / "models").iterdir()] == ["bundle"]
    settings = json.loads((client.folder / "models" / "bundle" / "1" / "model.json").read_text())
    assert (Path(settings["bundle"]) / "manifest.json").exists()


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_damaged_file_is_refused_each_time_until_it_is_mended(client: Client, large: bool):
    files = client.hub.repositories["user/bundle"].files
    name = "decoder.onnx.data" if large else "decoder.onnx"
    sound = files[name]
    files[name] = bytes([sound[0] ^ 1]) + sound[1:]
    for sentence in client.sentences("user/bundle", "user/bundle"):
        assert f"{name} of user/bundle is damaged" in sentence
    files[name] = sound
    assert client.sentences("user/bundle")[0].endswith(hub_server.commit(files))


def test_a_file_that_is_changed_in_the_cache_is_found(client: Client):
    client.sentences("user/bundle")
    (path,) = (client.folder / "hf" / "hub").rglob("tokenizer.json")
    path.resolve().write_bytes(path.read_bytes()[:-1] + b" ")
    damaged, mended = client.sentences("user/bundle", "user/bundle")
    assert "tokenizer.json of user/bundle is damaged" in damaged
    assert (Path(mended) / "tokenizer.json").exists()


def test_each_reason_why_there_is_no_bundle_has_its_sentence(client: Client, bundle: Path):
    hub = client.hub.repositories
    hub["user/gated"] = hub_server.Repository(contents(bundle), gated=True)
    hub["user/private"] = hub_server.Repository(contents(bundle), private=True)
    hub["user/checkpoint"] = hub_server.Repository({"config.json": b"{}"})
    hub["user/partial"] = hub_server.Repository({"manifest.json": (bundle / "manifest.json").read_bytes()})
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["../../../escaped"] = {"size": 1, "sha256": "0"}
    hub["user/hostile"] = hub_server.Repository({"manifest.json": json.dumps(manifest).encode()})
    expected = {
        "user/gated": "accept its terms",
        "user/private": "the Hub has no user/private, or it is private",
        "user/missing": "the Hub has no user/missing, or it is private",
        "user/checkpoint": "`onnx-vlm export user/checkpoint FOLDER`",
        "user/partial": "user/partial on the Hub lacks a file",
        "user/hostile": "../../../escaped: the path leaves the folder",
        "user/bundle@v2": "no revision v2",
        "user/bad--name": "user/bad--name is no id on the Hub",
    }
    for sentence, words in zip(client.sentences(*expected), expected.values(), strict=True):
        assert words in sentence
    assert "escaped" not in "".join(client.hub.fetched())
    assert client.sentences("user/private", HF_TOKEN="hf_reader")[0].endswith(hub_server.commit(contents(bundle)))
    offline = client.refused("inspect", "user/absent", status=1, HF_HUB_OFFLINE="1")
    assert "user/absent is not complete in the Hub's cache" in offline


def test_a_push_can_be_loaded_and_has_a_card(client: Client, bundle: Path):
    client.hub.repositories["google/base"] = hub_server.Repository(card={"license": "gemma"})
    pushed = client.run("push", bundle, "user/new", "--private", "--base-model", "google/base", HF_TOKEN="hf_writer")
    assert pushed.returncode == 0, pushed.stderr
    made = client.hub.repositories["user/new"]
    assert made.private
    card = made.files.pop("README.md").decode()
    assert made.files == contents(bundle)
    _, settings, text = card.split("---\n", 2)
    for line in (
        'library_name: "onnx-vlm"',
        'pipeline_tag: "image-text-to-text"',
        'tags: ["onnx", "onnx-vlm"]',
        'base_model: "google/base"',
        'base_model_relation: "finetune"',
        'license: "gemma"',
    ):
        assert line in settings.splitlines()
    assert 'vlm = load("user/new")' in text
    assert "| `decoder` | fp32 |" in text
    assert '* "caption en"' in text
    assert client.ask("user/new", HF_TOKEN="hf_writer").stdout == client.ask(bundle).stdout


def test_the_code_of_a_card_runs(client: Client, bundle: Path):
    assert client.run("push", bundle, "user/new", "--license", "mit", HF_TOKEN="hf_writer").returncode == 0
    card = client.hub.repositories["user/new"].files["README.md"].decode()
    assert "base_model" not in card
    shutil.copy(client.image, client.folder / "image.jpg")
    assert client.python(card.split("```python\n")[1].split("```")[0])


def test_a_push_that_cannot_be_made_says_why(client: Client, bundle: Path, tmp_path: Path):
    assert "--license" in client.refused("push", bundle, "user/new", HF_TOKEN="hf_writer")
    unknown = client.refused("push", bundle, "user/new", "--base-model", "google/none", HF_TOKEN="hf_writer")
    assert "the licence of google/none is unknown" in unknown
    assert "give an id on the Hub" in client.refused("push", bundle, "new", "--license", "mit")
    closed = client.refused("push", bundle, "user/new", "--license", "mit")
    assert "the bundle is not uploaded" in closed
    assert "hf auth login" in closed
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "tokenizer.json").write_bytes((copy / "tokenizer.json").read_bytes()[:-1] + b" ")
    assert "its SHA-256 is not" in client.refused("push", copy, "user/new", "--license", "mit", HF_TOKEN="hf_writer")
    assert "user/new" not in client.hub.repositories


def test_without_the_client_a_folder_works_and_an_id_names_the_extra(client: Client, bundle: Path):
    code = f"""
import sys
sys.modules["huggingface_hub"] = None
from onnx_vlm.runtime import InputError, load
load({str(bundle)!r})
try: load("user/bundle")
except InputError as error: print(error)
"""
    assert "pip install 'onnx-vlm[hub]'" in client.python(code)
