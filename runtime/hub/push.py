"""Uploading a bundle to the Hub, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...graphs import BundleError, InputError, manifest
from .card import Base, make_card
from .errors import explained, import_hub
from .find import ID

LICENCE = ("license", "license_name", "license_link")


def push(
    bundle: Path,
    repository: str,
    *,
    private: bool = False,
    licence: str | None = None,
    base_model: str | None = None,
) -> str:
    """Upload the files of a bundle in one commit, with a card that is made from its manifest.

    Args:
        bundle: the folder that an export wrote.
        repository: `user/name`; it is made if it is not there. A card that it has is replaced.
        private: make the repository private, if it is made.
        licence: the licence of the model that the bundle was made from, as the Hub abbreviates it. None asks the Hub.
        base_model: the id of that model. None for the checkpoint in the manifest, if that is an id.

    Returns:
        The URL of the commit.

    Raises:
        BundleError: if the bundle is damaged, or the repository closed to this user.
        InputError: for an invalid id, a licence that is unknown, or if the extra `hub` is missing.
        VLMError: if the Hub refuses, or cannot be reached.
    """
    for name, value in (("repository", repository), ("base model", base_model)):
        if value is not None and ((match := ID.fullmatch(value)) is None or match["revision"]):
            raise InputError(f"the {name} is {value!r:.80}; give an id on the Hub, user/name")
    hub = import_hub("uploading to the Hub")
    contents = manifest.load(bundle)
    for name, file in contents.files.items():
        if manifest.sha256(bundle / name) != file.sha256:
            raise BundleError(f"{bundle / name}: its SHA-256 is not that of the manifest; export the bundle again")
    api = hub.HfApi(library_name="onnx-vlm")
    checkpoint = contents.source["checkpoint"]
    name = base_model or (checkpoint if ID.fullmatch(checkpoint) else None)
    base = Base(name, {"license": licence} if licence else find_licence(api, name))
    card = make_card(contents, repository, base)
    operations = [hub.CommitOperationAdd(name, bundle / name) for name in sorted((*contents.files, manifest.FILE_NAME))]
    operations.append(hub.CommitOperationAdd("README.md", card.encode()))
    with explained("the bundle is not uploaded:", repository):
        api.create_repo(repository, private=private, exist_ok=True)
        return api.create_commit(repository, operations, commit_message="Upload a bundle of onnx-vlm").commit_url


def find_licence(api: Any, base_model: str | None) -> dict[str, str]:
    """The fields of the base model's card that say its licence.

    Raises:
        InputError: if the Hub does not know.
    """
    ask = "give it with --license, as the Hub abbreviates it, such as apache-2.0 or mit"
    if base_model is None:
        raise InputError(f"the bundle does not say which model of the Hub it was made from, and so no licence; {ask}")
    from huggingface_hub import errors

    try:
        card = api.model_info(base_model).card_data
    except (errors.HTTPError, errors.OfflineModeIsEnabled):
        card = None
    fields = {name: value for name in LICENCE if card is not None and isinstance(value := card.get(name), str)}
    if "license" not in fields:
        raise InputError(f"the licence of {base_model} is unknown to the Hub, or not to be read; {ask}")
    return fields
