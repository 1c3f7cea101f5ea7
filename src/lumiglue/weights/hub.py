"""Files to and from the Hugging Face Hub. Needs `pip install "lumiglue[hub]"`; nothing that is fetched is executed."""

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

# Then the cache is looked into: no connection, told to stay offline, a server that is down.
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
    """The folder in the Hub's cache that holds these files of a repository, all of one commit.

    What was fetched before serves without a connection. revision: branch, tag or commit. token: of a private repository;
    None takes that of `hf auth login`. cache: by default the Hub's own folder. Raises WeightsError.
    """
    places: dict[str, Any] = {"token": token, "endpoint": endpoint, "library_name": "lumiglue"}
    folder, name, wanted, refused = Path(), files[0], revision, None
    with _quiet():
        try:
            try:  # asked here, since the client would try for half a minute before it says that there is no connection
                get_hf_file_metadata(hf_hub_url(repo, name, revision=revision, endpoint=endpoint), **places)
            except _UNREACHABLE as error:
                refused = error
            for name in files:
                offline = refused is not None
                kept = hf_hub_download(
                    repo, name, revision=wanted, cache_dir=cache, local_files_only=offline, **places
                )  # fmt: skip
                folder = Path(kept).parent
                wanted = folder.name  # the commit, so that the next file is of the same
        except Exception as error:  # the client raises errors of its own, OSError, ValueError and its transport's
            cause = refused if isinstance(error, LocalEntryNotFoundError) and refused else error
            raise WeightsError(f"{repo} cannot be fetched: {_reason(cause, name, revision)}") from None
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
    """Writes files of a folder to a repository, which is made where there is none, in one commit. Returns its address.

    revision: an existing branch. private: of a new repository. Raises WeightsError.
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
    """Without the client's progress bars, unless its environment variable says otherwise: the files are small."""
    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _reason(error: Exception, name: str, revision: str | None) -> str:
    """Why, and what to do about it, in one line."""
    cause = error if isinstance(error, HfHubHTTPError) or error.__cause__ is None else error.__cause__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    match error:
        case HFValidationError():
            return "that is not a repository's name; give it as owner/name"
        case LocalTokenNotFoundError():
            return "no token is known; run `hf auth login`, or give token="
        case GatedRepoError():
            return "its owner grants access to each reader; ask for it on its page, then give a token"
        case RevisionNotFoundError():
            return f"it has no revision {revision!r}"
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, and nothing of it was fetched before; unset it, or give a folder"
        case httpx2.TransportError():
            return "the server cannot be reached, and nothing of it was fetched before; try again later, or give a folder"
        case EntryNotFoundError() if not isinstance(error, LocalEntryNotFoundError):
            return f"it has no {name}, so it was not written by Lumiglue's push_to_hub"
        case RepositoryNotFoundError() if status == 401:
            return "there is no such repository, or it is private and the token is missing or wrong (401)"
        case RepositoryNotFoundError():
            return "there is no such repository (404); check the name, or give the token of a private one"
    if status in (401, 403):
        return f"the token is missing, wrong, or may not do this ({status}); run `hf auth login`, or give token="
    if status is not None:
        return f"the server answered {status}; try again later"
    first = (str(cause) or type(cause).__name__).splitlines()[0]
    return f"{first.rstrip('.')}; try again"
