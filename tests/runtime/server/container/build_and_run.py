"""Build the image of the Dockerfile, and run it as docs/deploy.md says: read-only, and not as root.

    python tests/runtime/server/container/build_and_run.py BUNDLE

BUNDLE is one of the tiny PaliGemma 2 of tests/checkpoints. `--engine` is docker, or podman with its options. Without a
registry, `--base` makes the base image of a root that debootstrap wrote.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[4]
sys.path.insert(0, str(REPOSITORY / "tests"))

from dockerfile import health_check, image, read_stages  # noqa: E402

IMAGE = "onnx-vlm"
NAME = "onnx-vlm-check"
PROMPT, BOXES = "detect red circle", 2  #: about docs/shapes.png


class Engine:
    """Docker or podman."""

    def __init__(self, command: str) -> None:
        self._command = shlex.split(command)

    def __call__(self, *arguments: object, check: bool = True, **options: Any) -> str:
        """What a command of it prints."""
        command = [*self._command, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **options)
        if check and done.returncode:
            sys.exit(f"{shlex.join(command)} ended with {done.returncode}")
        return done.stdout.strip()

    def status(self, *arguments: str) -> int:
        """The status of a command in the container."""
        return subprocess.run([*self._command, "exec", NAME, *arguments], capture_output=True, check=False).returncode


def import_base(engine: Engine, root: Path) -> None:
    """Make the base image of a root, without what apt has fetched."""
    leave_out = ("--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*")
    with subprocess.Popen(["tar", "-C", root, *leave_out, "-c", "."], stdout=subprocess.PIPE) as archive:
        engine("import", "-", read_stages()[-1][0].rest, stdin=archive.stdout)


@contextmanager
def running(engine: Engine, bundle: Path, options: list[str]) -> Iterator[str]:
    """The address of the server in a container."""
    port = int(image("EXPOSE").rest)
    mounted = ("--volume", f"{bundle.resolve()}:/bundle:ro")
    engine(
        *("run", "--detach", "--name", NAME, "--read-only", "--cap-drop", "all"),
        *("--publish", f"127.0.0.1::{port}", *mounted, *options, IMAGE),
    )
    try:
        yield f"http://{engine('port', NAME, port)}"
    finally:
        print(engine("logs", NAME, stderr=subprocess.STDOUT))
        engine("rm", "--force", NAME)


def ask(url: str, prompt: str, **more: Any) -> dict[str, Any]:
    """An answer about docs/shapes.png."""
    picture = base64.b64encode((REPOSITORY / "docs" / "shapes.png").read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": prompt},
    ]
    body = json.dumps({"messages": [{"role": "user", "content": content}], "temperature": 0, **more}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def keep_asking(url: str) -> int:
    """Ask for long answers until the server takes no more; how many came. One that is cut is an error."""
    for count in itertools.count():
        try:
            answer = ask(url, "caption", max_tokens=200, min_new_tokens=200)
        except urllib.error.HTTPError as error:
            if error.code != 503:  # it drains
                raise
            return count
        except urllib.error.URLError:  # nobody listens
            return count
        assert answer["usage"]["completion_tokens"] == 200
    raise AssertionError


def wait_until_healthy(url: str, seconds: float = 120) -> None:
    """Wait for the server's word that it is ready."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def check(engine: Engine, url: str) -> None:
    """Ask, look around, and stop it while it answers."""
    begun = time.monotonic()
    wait_until_healthy(url)
    print(f"healthy after {time.monotonic() - begun:.1f} s")
    assert engine.status(*health_check()) == 0
    assert len(ask(url, PROMPT)["choices"][0]["message"]["onnx_vlm"]["boxes"]) == BOXES
    assert engine("exec", NAME, "id", "-u") == image("USER").rest.partition(":")[0]
    assert engine.status("touch", "/opt/onnx-vlm/file") == 1, "the file system is not read-only"
    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(keep_asking, url) for _ in range(4)]
        time.sleep(1)
        begun = time.monotonic()
        engine("stop", "--time", "60", NAME)
        print(
            f"stopped after {time.monotonic() - begun:.1f} s and {sum(client.result() for client in clients)} answers"
        )
    assert engine("inspect", "--format", "{{.State.ExitCode}}", NAME) == "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="docker", help="the program, with options of its own")
    parser.add_argument("--base", type=Path, help="root of the base image")
    parser.add_argument("--build-options", type=shlex.split, default=[])
    parser.add_argument("--run-options", type=shlex.split, default=[])
    asked = parser.parse_args()
    engine = Engine(asked.engine)
    if asked.base:
        import_base(engine, asked.base)
    engine("build", "--tag", IMAGE, *asked.build_options, REPOSITORY)
    print(engine("history", "--format", "{{.Size}}\t{{.CreatedBy}}", IMAGE))
    with running(engine, asked.bundle, asked.run_options) as url:
        check(engine, url)


if __name__ == "__main__":
    main()
