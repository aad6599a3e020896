"""The Dockerfile, and the settings for Compose and Kubernetes in the docs: each path, port and flag is one there is.

`build_and_run.py` beside this file builds the image and runs it, where there is something that can.
"""

from __future__ import annotations

import fnmatch
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from dockerfile import health_check, image, read_stages
from helpers import REPOSITORY
from onnx_vlm.runtime import cli
from onnx_vlm.runtime.server import models, process
from server_helpers import Running

PORT = int(image("EXPOSE").rest)
Serve = Callable[..., SimpleNamespace]


def settings(kind: str) -> Any:
    """The settings in the docs that have this key."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (REPOSITORY / "docs" / "deploy.md").read_text(), re.M | re.S)
    (text,) = (block for block in blocks if re.search(rf"^{kind}:", block, re.M))
    return list(yaml.safe_load_all(text)) if kind == "kind" else yaml.safe_load(text)


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file of the repository reach the build; the last line that names it decides."""
    sent = True
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        parents = [path, *map(str, Path(path).parents)]
        names = [name for parent in parents for name in (parent, Path(parent).name if "**/" in line else parent)]
        if line and not line.startswith("#") and any(fnmatch.fnmatchcase(name, pattern) for name in names):
            sent = line.startswith("!")
    return sent


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Runs the image's command with arguments, up to where it would listen, and returns what it was told."""

    def serve(arguments: list[str], **environment: str) -> SimpleNamespace:
        told = SimpleNamespace()
        monkeypatch.setattr(process, "listen", lambda host, port: vars(told).update(host=host, port=port))
        monkeypatch.setattr(models, "Models", lambda folders, *_: folders)
        monkeypatch.setattr(
            process, "run", lambda _, folders, access: vars(told).update(folders=folders, access=access)
        )
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        cli.app([*image("ENTRYPOINT").words[1:], *arguments], standalone_mode=False)
        return told

    return serve


def test_the_build_gets_the_code_and_nothing_else():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["package-dir"].values()
    needed = ["pyproject.toml", "constraints.txt", project["project"]["readme"], *(f"{name}/a.py" for name in packages)]
    assert all(map(is_sent, needed))
    for path in (".git/config", ".venv/bin/python", "tests/test_docs.py", "runtime/__pycache__/a.pyc", "demo/bundle"):
        assert not is_sent(path), path
    for instruction in (copy for stage in read_stages() for copy in stage if copy.name == "COPY"):
        if "from" not in instruction.flags:
            assert all(name == "." or is_sent(name) for name in instruction.words[:-1])


def test_the_image_has_the_extras_of_a_server():
    (extras,) = (one.rest for one in read_stages()[0] if one.name == "ARG")
    names = extras.removeprefix("EXTRAS=").split(",")
    known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(names) <= set(known)
    assert {"cpu", "serve"} <= set(names)
    assert "torch" not in " ".join(need for name in names for need in known[name])


def test_the_image_does_not_run_as_root():
    user = image("USER").rest
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "Kubernetes knows a number alone to be another user than root"
    assert not re.search(r"\b(pip|curl)\b", " ".join(one.rest for one in read_stages()[-1] if one.name == "RUN"))


def test_the_command_serves_the_mounted_bundle(serve: Serve):
    told = serve(image("CMD").words)
    assert (told.host, told.port) == ("0.0.0.0", PORT)
    assert told.folders == {"bundle": Path("/bundle")}


def test_the_health_check_tells_a_server_from_none(running: Running):
    _, *code = health_check()
    url = f"http://127.0.0.1:{PORT}"
    assert url in code[-1]
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    for server, status in ((running.url, 0), (nobody, 1)):
        check = [sys.executable, *(part.replace(url, server) for part in code)]
        assert subprocess.run(check, capture_output=True, check=False).returncode == status


def test_compose_starts_the_image(serve: Serve):
    (service,) = settings("services")["services"].values()
    told = serve(service["command"], ONNX_VLM_API_KEY="key")
    assert told.access.api_key == "key"
    assert set(service["environment"]) == {"ONNX_VLM_API_KEY"}
    assert service["volumes"] == [f".{service['command'][0]}:{service['command'][0]}:ro"]
    assert [ports.rpartition(":")[2] for ports in service["ports"]] == [str(PORT)]
    assert service["read_only"] is True
    assert int(service["stop_grace_period"].removesuffix("s")) > told.access.max_seconds


def test_kubernetes_starts_the_image(serve: Serve):
    deployment, service = settings("kind")
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert [variable["name"] for variable in container["env"]] == ["ONNX_VLM_API_KEY"]
    told = serve(container["args"], ONNX_VLM_API_KEY="key")
    assert told.folders == {"bundle": Path("/bundle")}
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert (mount["mountPath"], mount["name"]) == (container["args"][0], volume["name"])
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == image("USER").rest
    assert pod["securityContext"]["runAsNonRoot"] is container["securityContext"]["readOnlyRootFilesystem"] is True
    forgotten = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > forgotten + told.access.max_seconds


def test_the_service_and_the_probes_of_kubernetes_find_the_server(running: Running):
    deployment, service = settings("kind")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": service["spec"]["ports"][0]["targetPort"], "containerPort": PORT}]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    for probe in probes:
        assert probe["port"] == container["ports"][0]["name"]
        assert httpx.get(running.url + probe["path"]).status_code == 200
