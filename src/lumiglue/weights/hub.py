"""Files to and from the Hugging Face Hub (`pip install "lumiglue[hub]"`). Nothing that is downloaded is executed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from lumiglue.errors import WeightsError

# Errors after which the cache is tried: no connection, HF_HUB_OFFLINE, a server that is down.
_UNREACHABLE = (httpx2.TransportError, OfflineModeIsEnabled, HfHubHTTPError)
Token = str | bool | None


def fetch(
    repo: str,
    files: tuple[str, ...],
    *,
    revision: str | None = None,
    token: Token = None,
    cache: Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """Downloads files of one commit of a repository; without a connection, takes them from the cache.

    Args:
        repo: "owner/name".
        files: Names of the files.
        revision: Branch, tag or commit; None takes the main branch.
        token: For a private repository; None takes that of `hf auth login`.
        cache: Cache folder; None takes the Hub's own.
        endpoint: Address of the Hub; None takes the default.

    Returns:
        The folder in the cache that contains the files.

    Raises:
        WeightsError: The files cannot be downloaded and are not in the cache.
    """
    places: dict[str, Any] = {"token": token, "endpoint": endpoint, "library_name": "lumiglue"}
    folder, name, commit, refused = Path(), files[0], revision, None
    with _quiet():
        try:
            try:  # checked first, because without a connection the client would retry for half a minute
                get_hf_file_metadata(hf_hub_url(repo, name, revision=revision, endpoint=endpoint), **places)
            except _UNREACHABLE as error:
                refused = error
            for name in files:
                offline = refused is not None
                path = hf_hub_download(
                    repo, name, revision=commit, cache_dir=cache, local_files_only=offline, **places
                )  # fmt: skip
                folder = Path(path).parent
                commit = folder.name  # so that the next file is of the same commit
        except Exception as error:  # the client raises its own errors, OSError, ValueError and those of its transport
            cause = refused if isinstance(error, LocalEntryNotFoundError) and refused else error
            raise WeightsError(f"{repo} cannot be downloaded: {_reason(cause, name, revision)}") from None
    return folder


def publish(
    folder: Path,
    files: tuple[str, ...],
    repo: str,
    *,
    message: str,
    revision: str | None = None,
    private: bool | None = None,
    token: Token = None,
    endpoint: str | None = None,
) -> str:
    """Uploads files of a folder to a repository in one commit, creates the repository if it does not exist, and returns the
    address of the commit. Arguments are those of `fetch`; `private` is for a new repository, by default as its owner's
    settings have it.

    Raises WeightsError if the upload failed.
    """
    api = HfApi(endpoint=endpoint, token=token, library_name="lumiglue")
    try:
        with _quiet():
            api.create_repo(repo, private=private, exist_ok=True)
            added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files]
            return api.create_commit(repo, added, commit_message=message, revision=revision).commit_url
    except Exception as error:
        raise WeightsError(f"{repo} cannot be written: {_reason(error, repo, revision)}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Turns the client's progress bars off, unless its environment variable is set: the files are small."""
    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _reason(error: Exception, name: str, revision: str | None) -> str:
    """The cause and the remedy in one line."""
    cause = error if isinstance(error, HfHubHTTPError) or error.__cause__ is None else error.__cause__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    match error:
        case HFValidationError():
            return "that is not the name of a repository; give it as owner/name"
        case LocalTokenNotFoundError():
            return "there is no token; run `hf auth login`, or give token="
        case GatedRepoError():
            return "its owner must grant you access; request it on the repository's page, then give a token"
        case RevisionNotFoundError():
            return f"it has no revision {revision!r}"
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, and it is not in the cache; unset the variable, or give a folder"
        case httpx2.TransportError():
            return "the server cannot be reached, and it is not in the cache; try again later, or give a folder"
        case EntryNotFoundError() if not isinstance(error, LocalEntryNotFoundError):
            return f"it has no {name}, so it was not written by Lumiglue's push_to_hub"
        case RepositoryNotFoundError() if status == 401:
            return "there is no such repository, or it is private and the token is missing or wrong (401)"
        case RepositoryNotFoundError():
            return "there is no such repository (404); check the name, or give the token if it is private"
    if status in (401, 403):
        return f"the token is missing, wrong, or may not do this ({status}); run `hf auth login`, or give token="
    if status is not None:
        return f"the server answered {status}; try again later"
    first = (str(cause) or type(cause).__name__).splitlines()[0]
    return f"{first.rstrip('.')}; try again"
