"""A bundle by its URL: what fsspec opens is fetched into a folder of caches, and checked."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...graphs import BundleError, InputError, manifest
from ...graphs.manifest import FILE_NAME, File
from ..providers.caches import cache_root

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  #: two letters or more: one is a drive of Windows
MOST_BYTES = 1 << 26  #: of a manifest


def fetch_url(url: str) -> Path:
    """Fetch the files that the manifest at a URL names, and no others; a bundle that has been fetched is not again.

    Of several processes that fetch it at once, each gets a whole one.

    Raises:
        InputError: if fsspec does not know such URLs, or a package that it needs for them is missing.
        BundleError: if there is no bundle, it is damaged, or it cannot be fetched.
    """
    try:
        import fsspec

        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        hint = "; install it: pip install fsspec" if error.name == "fsspec" else ""
        raise InputError(f"fetching {url} needs another package: {error}{hint}") from None
    except Exception as error:  # each file system raises errors of its own
        raise InputError(f"the URL {url} cannot be opened: {error}") from None
    root = root.rstrip("/")
    if not root:
        raise InputError(f"the URL {url} names no folder; give that of a bundle, such as s3://BUCKET/BUNDLE")
    try:
        text = _read_manifest(files, f"{root}/{FILE_NAME}", url)
        folder = cache_root() / "bundles" / hashlib.sha256(text).hexdigest()
        if not folder.is_dir():
            _fetch(lambda name, path: files.get_file(f"{root}/{name}", str(path)), text, folder, url)
    except FileNotFoundError as error:
        raise BundleError(f"there is no bundle at {url}, or it lacks a file: {error}") from None
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"the bundle {url} cannot be fetched: {error}") from error
    return folder


def _read_manifest(files: Any, path: str, url: str) -> bytes:
    with files.open(path, "rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise BundleError(f"the {FILE_NAME} of {url} has more than {MOST_BYTES >> 20} MiB; a bundle's has less")
    return text


def _fetch(get: Callable[[str, Path], None], text: bytes, folder: Path, url: str) -> None:
    """Fetch the files of a manifest into a folder, which appears when they are whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        fetched = Path(unfinished) / "bundle"
        fetched.mkdir()
        (fetched / FILE_NAME).write_bytes(text)
        for name, file in manifest.read(fetched).files.items():
            path = fetched / name
            path.parent.mkdir(parents=True, exist_ok=True)
            get(name, path)
            _check(path, file, f"{name} of {url}")
        _publish(fetched, folder)


def _check(path: Path, file: File, name: str) -> None:
    size, checksum = path.stat().st_size, manifest.sha256(path)
    if size != file.size or checksum != file.sha256:
        raise BundleError(
            f"{name} is damaged: it has {size} bytes and SHA-256 {checksum:.12}..., the manifest says {file.size} and"
            f" {file.sha256:.12}...; copy the bundle there again"
        )


def _publish(fetched: Path, folder: Path) -> None:
    """Give a folder its name, unless another process was first."""
    try:
        fetched.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(fetched)
