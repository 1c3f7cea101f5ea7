"""Downloads, verified by checksum and kept in the cache folder."""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from lumiglue.errors import WeightsError
from lumiglue.io.atomic import replacing
from lumiglue.system.cache import cache_folder

Progress = Callable[[int, int | None], None]  # new bytes, total bytes if the server reports them


def kept_at(url: str, sha256: str | None, cache: Path | None = None) -> Path:
    """The path where `download` keeps a file; arguments as there."""
    name = url.rsplit("/", 1)[-1]
    return (cache or cache_folder()) / (name if sha256 is None else f"{sha256[:16]}-{name}")


def download(
    url: str,
    sha256: str | None,
    cache: Path | None = None,
    timeout: float = 60.0,
    progress: Progress | None = None,
) -> Path:
    """Downloads a file once and keeps it.

    Args:
        url: An http, https or file address.
        sha256: Expected checksum, 64 lower-case hexadecimal digits, compared at each call; None compares nothing.
        cache: Folder to keep it in; by default `cache_folder()`.
        timeout: Seconds that the server may be silent.
        progress: Called with the number of bytes received since the last call, and the total if the server reports it.

    Returns:
        The path of the file.

    Raises:
        WeightsError: The file cannot be downloaded, or its checksum differs.
    """
    target = kept_at(url, sha256, cache)
    if target.exists() and (sha256 is None or file_sha256(target) == sha256):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, shared=True) as unfinished:
        try:
            _receive(url, unfinished, timeout, progress)
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError and HTTPException: a bad address
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            cause = error.reason if type(error) is urllib.error.URLError else error
            raise WeightsError(
                f"{url} cannot be downloaded ({cause}); download it elsewhere and give the path of the file"
            ) from None
        if sha256 is not None and (received := file_sha256(unfinished)) != sha256:
            raise WeightsError(f"{url} has SHA-256 {received}, not {sha256}; it is not the requested file")
    return target


def _receive(url: str, path: Path, timeout: float, progress: Progress | None) -> None:
    """Writes what a server sends to a file. Raises OSError, ValueError, HTTPException."""
    with urllib.request.urlopen(url, timeout=timeout) as response, path.open("wb") as file:
        expected = int(response.headers.get("Content-Length") or 0) or None
        while block := response.read(1 << 20):
            file.write(block)
            if progress is not None:
                progress(len(block), expected)
        if expected is not None and file.tell() != expected:
            raise OSError(f"the connection ended after {file.tell()} of {expected} bytes")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
