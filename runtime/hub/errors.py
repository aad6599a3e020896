"""The client of the Hub, and what its errors mean for a user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from ...graphs import BundleError, InputError, VLMError, manifest


def import_hub(purpose: str) -> ModuleType:
    """Import huggingface_hub, for a purpose that a sentence about its absence begins with.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise InputError(f"{purpose} needs {error.name}; install it: pip install 'onnx-vlm[hub]'") from None
    return huggingface_hub


@contextmanager
def explained(opening: str, repository: str, revision: str | None = None, name_missing: bool = False) -> Iterator[None]:
    """Raise the client's errors as ours.

    Args:
        opening: what the sentence begins with.
        repository, revision: what is asked for.
        name_missing: a file that is missing is one of a bundle; if not, it is the manifest.

    Raises:
        BundleError: if the repository, the revision or a file is missing, or closed to this user.
        InputError: if this user may not write there.
        VLMError: for what may pass, such as a network that is down.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise BundleError(f"{opening} {repository} is no id on the Hub: {_first_line(error)}") from None
    except errors.GatedRepoError:
        raise BundleError(
            f"{opening} {repository} on the Hub is gated: accept its terms at https://huggingface.co/{repository}, then"
            " log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise BundleError(
            f"{opening} {repository} on the Hub has no revision {revision}; give one that it has"
        ) from None
    except errors.RepositoryNotFoundError:
        raise BundleError(
            f"{opening} the Hub has no {repository}, or it is private: check the name, or log in with `hf auth login`"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise VLMError(
            f"{opening} {repository} is not complete in the Hub's cache, and cannot be fetched now"
            f" ({_first_line(error.__cause__ or error)}); fetch it once where there is a network, with"
            f" `onnx-vlm inspect {repository}`"
        ) from None
    except errors.EntryNotFoundError as error:
        if name_missing:
            raise BundleError(
                f"{repository} on the Hub lacks a file that its {manifest.FILE_NAME} names ({_first_line(error)});"
                " tell the repository's owner"
            ) from None
        raise BundleError(
            f"{opening} {repository} on the Hub is no bundle: it has no {manifest.FILE_NAME}; if it is a checkpoint,"
            f" make a bundle of it with `onnx-vlm export {repository} FOLDER`"
        ) from None
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise InputError(
                f"{opening} the Hub does not let you do this with {repository}; log in with `hf auth login`, or set"
                " HF_TOKEN to a token that may"
            ) from None
        raise VLMError(f"{opening} the Hub refuses {repository}: {_first_line(error)}") from None
    except (errors.HTTPError, errors.XetDownloadError, errors.OfflineModeIsEnabled) as error:
        raise VLMError(f"{opening} the Hub does not answer for {repository}: {_first_line(error)}; try again") from None


def _first_line(error: BaseException) -> str:
    """What an error says, in one line without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") if lines else type(error).__name__
