"""Files from elsewhere: downloads with a checksum, and tensors that are read without executing anything."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from lumiglue.errors import WeightsError
from lumiglue.system.cache import cache_folder


def kept_at(url: str, sha256: str | None, cache: Path | None = None) -> Path:
    """Where `download` keeps a file."""
    name = url.rsplit("/", 1)[-1]
    return (cache or cache_folder()) / (name if sha256 is None else f"{sha256[:16]}-{name}")


def download(
    url: str,
    sha256: str | None,
    cache: Path | None = None,
    timeout: float = 60.0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """The file at `url`, downloaded once and kept.

    Args:
        url: Address, of http, https or file.
        sha256: Checksum, compared at each call; None compares nothing.
        cache: Folder; by default `cache_folder()`.
        timeout: Seconds that the server may be silent.
        progress: Called with the bytes that arrived since the last call, and the bytes in all where the server says.

    Raises:
        WeightsError: It cannot be downloaded, or is another file.
    """
    target = kept_at(url, sha256, cache)
    if target.exists() and (sha256 is None or file_sha256(target) == sha256):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.unfinished")
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response, unfinished.open("wb") as file:
            expected = int(response.headers.get("Content-Length") or 0) or None
            while block := response.read(1 << 20):
                file.write(block)
                if progress is not None:
                    progress(len(block), expected)
            if expected is not None and file.tell() != expected:
                raise OSError(f"the connection ended after {file.tell()} of {expected} bytes")
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's are OSErrors; the others of a bad address
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        why = error.reason if type(error) is urllib.error.URLError else error
        raise WeightsError(f"{url} cannot be downloaded ({why}); fetch it elsewhere and give the file's path") from None
    else:
        if sha256 is not None and (found := file_sha256(unfinished)) != sha256:
            raise WeightsError(f"{url} has SHA-256 {found}, not {sha256}; it is not the file that was asked for")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def file_sha256(path: Path) -> str:
    """Hexadecimal digits, as `sha256sum` prints them."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
