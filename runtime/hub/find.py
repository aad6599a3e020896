"""A bundle by its folder, its URL, or its id on the Hub: files of the Hub are fetched into its cache, and checked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ...graphs import BundleError, InputError, manifest
from ...graphs.manifest import File
from .errors import explained, import_hub
from .urls import URL, fetch_url

NAME = r"[A-Za-z0-9_][\w.-]*"
ID = re.compile(rf"(?P<repository>{NAME}/{NAME})(@(?P<revision>[^\s@]+))?", re.ASCII)


def find(bundle: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder of a bundle: a folder as it is, or what is fetched for a URL or an id on the Hub.

    Args:
        bundle: a folder; or a text `user/name`, or `user/name@revision`, that is no path here; or a URL, where
            hf://user/name is the same as user/name.
        revision: a branch, a tag or a commit of the repository.

    Raises:
        BundleError: if there is none of them, or what is there is no bundle, or incomplete or damaged.
        InputError: if the extra `hub` or a package for the URL is missing, or `revision` is given for a folder or a
            URL, or twice.
        VLMError: if the Hub cannot be reached.
    """
    match = _match_id(bundle)
    if match is None:
        is_url = isinstance(bundle, str) and URL.match(bundle)
        if revision is not None:
            kind = "URL" if is_url else "folder"
            raise InputError(f"revision is {revision!r}, and {bundle} is a {kind}; a revision is of an id on the Hub")
        return fetch_url(bundle) if is_url else Path(bundle)
    if revision is not None and match["revision"] is not None:
        raise InputError(f"{bundle} names a revision already; give revision={revision!r} or @, not both")
    return fetch(match["repository"], revision or match["revision"])


def name_of(bundle: str) -> str:
    """The name of a bundle for clients: that of its folder, URL, or repository on the Hub; empty for the root."""
    match = _match_id(bundle)
    if match is not None:
        return Path(match["repository"]).name
    return Path(bundle).name if URL.match(bundle) else Path(bundle).resolve().name


def _match_id(bundle: str | os.PathLike[str]) -> re.Match[str] | None:
    """The parts of an id on the Hub; None for a path or another URL."""
    if not isinstance(bundle, str) or os.path.lexists(bundle):
        return None
    return ID.fullmatch(bundle.removeprefix("hf://"))


def fetch(repository: str, revision: str | None = None) -> Path:
    """Fetch the files that a repository's manifest names, and no others; those in the cache are not fetched again.

    Raises:
        As `find`.
    """
    hub = import_hub(f"there is no folder {repository}, and fetching it from the Hub")
    missing = f"there is no folder {repository} here, and"
    with explained(missing, repository, revision):
        path = Path(hub.hf_hub_download(repository, manifest.FILE_NAME, revision=revision))
    commit = path.parent.name  # the cache has a folder for each commit; all files are of one, whoever pushes meanwhile
    files = manifest.read(path.parent).files
    with explained(missing, repository, revision, name_missing=True):
        for name in files:
            hub.hf_hub_download(repository, name, revision=commit)
    receipts = hub.cached_assets_path("onnx-vlm", namespace=repository, subfolder="checked")
    check(path.parent, files, receipts / f"{commit}.json", repository)
    return path.parent


def check(folder: Path, files: Mapping[str, File], receipt: Path, repository: str) -> None:
    """Compare files with their checksums, unless they are those that the receipt of an earlier check lists.

    A damaged file is removed, so that the next call fetches it again.

    Raises:
        BundleError: for a file whose size or checksum is not that of the manifest.
    """
    stats = {name: (folder / name).stat() for name in files}
    present = {name: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats.items()}
    try:
        if json.loads(receipt.read_text()) == present:
            return
    except (OSError, ValueError):
        pass  # no receipt, or half of one
    for name, file in files.items():
        checksum = manifest.sha256(folder / name)
        if stats[name].st_size != file.size or checksum != file.sha256:
            (folder / name).resolve().unlink(missing_ok=True)
            (folder / name).unlink(missing_ok=True)
            raise BundleError(
                f"{name} of {repository} is damaged: it has {stats[name].st_size} bytes and SHA-256 {checksum:.12}...,"
                f" the manifest says {file.size} and {file.sha256:.12}...; it was removed from the cache: try again,"
                " and if it is damaged again, tell the repository's owner"
            )
    with suppress(OSError):  # a cache that is read only is checked each time
        receipt.write_text(json.dumps(present))
