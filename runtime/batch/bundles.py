"""Bundles that are somewhere else, fetched once a machine."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from ...graphs import BundleError, InputError
from .spec import MANIFEST

CACHE = "ONNX_VLM_CACHE"  #: environment variable: the folder for fetched bundles
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def local_folder(bundle: str | os.PathLike[str]) -> Path:
    """The folder of a bundle; one that a URL names is fetched first, if it has not been.

    Of several processes that fetch it at once, each gets a whole one.

    Raises:
        InputError: if fsspec is not installed.
        BundleError: if it cannot be fetched.
    """
    if not isinstance(bundle, str) or not URL.match(bundle):
        return Path(bundle)
    try:
        import fsspec
    except ImportError as error:
        raise InputError(f"fetching {bundle} needs fsspec ({error}); install it: pip install fsspec") from None
    try:
        files, root = fsspec.core.url_to_fs(bundle.rstrip("/"))
        manifest = files.cat_file(f"{root}/{MANIFEST}")
        cache = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "onnx-vlm") / "bundles"
        folder = cache / hashlib.sha256(bundle.encode() + b"\0" + manifest).hexdigest()[:32]
        if not folder.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as unfinished:
                fetched = Path(unfinished) / "bundle"
                files.get(root, str(fetched), recursive=True)
                _publish(fetched, folder)
    except Exception as error:  # each file system raises errors of its own
        raise BundleError(f"the bundle {bundle} cannot be fetched: {error}") from error
    return folder


def _publish(fetched: Path, folder: Path) -> None:
    """Give a folder its name, unless another process was first."""
    try:
        fetched.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(fetched)
