"""Files that others published, by name: matchers and networks of features, their addresses, checksums and licences.

`resolve` finds the file of any weights that a user can name. A published matcher is downloaded once, verified, converted
to a safetensors file and kept in the cache folder; nothing in it is executed.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from lumiglue.errors import WeightsError
from lumiglue.io.download import download, file_sha256, kept_at
from lumiglue.system.cache import cache_folder
from lumiglue.system.extras import require
from lumiglue.weights.files import BUILT_IN, FOLDER_FILES, check_folder, pretrained_path, read_metadata, save_weights
from lumiglue.weights.released import import_released

log = logging.getLogger(__name__)
MIRROR = "LUMIGLUE_MIRROR"  # an address or a file:// folder that serves the published files under their own names
Progress = Callable[[int, int | None], None]  # bytes that arrived since the last call, bytes in all where known

_LIGHTGLUE = "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/"
_SUPERGLUE = "https://github.com/magicleap/SuperGluePretrainedNetwork/raw/master/models/weights/"
_ALIKED = "https://github.com/Shiaoming/ALIKED/raw/main/models/"
_XFEAT = "https://github.com/verlab/accelerated_features/raw/main/weights/"
_MAGIC_LEAP = "Magic Leap (non-commercial research only)"
_SUPERPOINT_NOTICE = "SuperPoint, whose features it matches, is licensed for non-commercial research only"


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file of weights that others published.

    Attributes:
        name: What users call it.
        kind: A matcher, or the network of an extractor.
        features: Name of the extractor that it is, or that it matches the features of.
        url: Where it was published.
        sha256: 64 hexadecimal digits; None where no checksum is known. The digits that were received are then reported.
        megabytes: Size of the download in units of 10^6 bytes; approximate where no checksum is known.
        licence: Licence of the weights.
        notice: What a user has to know before using it.
    """

    name: str
    kind: Literal["matcher", "network"]
    features: str
    url: str
    sha256: str | None
    megabytes: float
    licence: str
    notice: str = ""

    @property
    def file_name(self) -> str:
        """Its name where it was published."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def address(self) -> str:
        """Where it is downloaded from: its URL, or the same file name at $LUMIGLUE_MIRROR."""
        mirror = os.environ.get(MIRROR)
        return f"{mirror.rstrip('/')}/{self.file_name}" if mirror else self.url

    @property
    def path(self) -> Path:
        """Where its usable form is kept: a converted matcher, or the network's file as published."""
        if self.kind == "matcher":
            return cache_folder() / f"{self.name}.safetensors"
        return kept_at(self.url, self.sha256)

    def is_here(self) -> bool:
        """Whether it can be used without a download."""
        if self.kind == "network" and local_network(self.name, self.file_name) is not None:
            return True
        if not self.path.is_file():
            return kept_at(self.url, self.sha256).is_file()
        if self.kind == "network" or self.sha256 is None:
            return True
        try:
            return read_metadata(self.path)[1].get("source_sha256") == self.sha256
        except WeightsError:
            return False


def _matcher(
    name: str,
    features: str,
    url: str,
    megabytes: float,
    sha256: str | None = None,
    licence: str = "Apache-2.0",
    notice: str = "",
) -> PublishedFile:
    return PublishedFile(
        name=name, kind="matcher", features=features, url=url, sha256=sha256, megabytes=megabytes, licence=licence,
        notice=notice,
    )  # fmt: skip


def _network(name: str, url: str, megabytes: float, sha256: str, licence: str) -> PublishedFile:
    return PublishedFile(
        name=name, kind="network", features=name, url=url, sha256=sha256, megabytes=megabytes, licence=licence
    )


MATCHERS: dict[str, PublishedFile] = {
    file.name: file
    for file in (
        _matcher(
            "aliked-lightglue", "aliked-n16", f"{_LIGHTGLUE}aliked_lightglue.pth", 47.6,
            "d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
        ),
        _matcher(
            "disk-lightglue", "disk", f"{_LIGHTGLUE}disk_lightglue.pth", 47.6,
            "b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335",
        ),
        _matcher(
            "xfeat-lighterglue", "xfeat", f"{_XFEAT}xfeat-lighterglue.pt", 10.8,
            "766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
        ),
        _matcher("sift-lightglue", "sift", f"{_LIGHTGLUE}sift_lightglue.pth", 47.6),
        _matcher("doghardnet-lightglue", "doghardnet", f"{_LIGHTGLUE}doghardnet_lightglue.pth", 47.6),
        _matcher(
            "superpoint-lightglue", "superpoint", f"{_LIGHTGLUE}superpoint_lightglue.pth", 47.4, notice=_SUPERPOINT_NOTICE
        ),
        _matcher(
            "superglue-indoor", "superpoint", f"{_SUPERGLUE}superglue_indoor.pth", 48.2, licence=_MAGIC_LEAP,
            notice="SuperGlue's weights are licensed for non-commercial research only",
        ),
        _matcher(
            "superglue-outdoor", "superpoint", f"{_SUPERGLUE}superglue_outdoor.pth", 48.2, licence=_MAGIC_LEAP,
            notice="SuperGlue's weights are licensed for non-commercial research only",
        ),
    )
}  # fmt: skip

NETWORKS: dict[str, PublishedFile] = {
    file.name: file
    for file in (
        _network(
            "aliked-t16", f"{_ALIKED}aliked-t16.pth", 0.8,
            "56782336919db220144a884e710e2b6af13b3b8f8da15b915a239078ab471085", "BSD-3-Clause",
        ),
        _network(
            "aliked-n16", f"{_ALIKED}aliked-n16.pth", 2.7,
            "5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2", "BSD-3-Clause",
        ),
        _network(
            "aliked-n16rot", f"{_ALIKED}aliked-n16rot.pth", 2.7,
            "ddf3abbf38e86f6a74540d214e1a9712c54b2d8551abc864542199f2347d7332", "BSD-3-Clause",
        ),
        _network(
            "aliked-n32", f"{_ALIKED}aliked-n32.pth", 3.9,
            "055283fd1624d3ab46a05c3b617b1a79a3f28d1f551737eef2d653e8c8232890", "BSD-3-Clause",
        ),
        _network(
            "disk", "https://github.com/cvlab-epfl/disk/raw/master/depth-save.pth", 4.4,
            "9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe", "Apache-2.0",
        ),
        _network(
            "xfeat", f"{_XFEAT}xfeat.pt", 6.2,
            "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b", "Apache-2.0",
        ),
    )
}  # fmt: skip

# Features -> the weights that match them where none are named: the best that may be had.
DEFAULT_WEIGHTS = {
    "sift": "sift",
    "aliked": "aliked-lightglue",
    "aliked-n16": "aliked-lightglue",
    "aliked-n16rot": "aliked-compact",
    "disk": "disk-lightglue",
    "xfeat": "xfeat-lighterglue",
    "superpoint": "superpoint-lightglue",
    "doghardnet": "doghardnet-lightglue",
}


def default_weights(features: str) -> str:
    """The name of the weights for these features. Raises WeightsError where there are none."""
    if features not in DEFAULT_WEIGHTS:
        raise WeightsError(
            f"there are no weights for {features!r} features by name; choose from {sorted(DEFAULT_WEIGHTS)}, or give "
            "weights of your own"
        )
    return DEFAULT_WEIGHTS[features]


def fetch(name: str, *, sha256: str | None = None, progress: Progress | None = None) -> Path:
    """The usable form of a published file, downloaded and converted if need be.

    Args:
        name: Of `MATCHERS` or `NETWORKS`.
        sha256: A checksum to insist on, 64 hexadecimal digits; by default the file's own, if one is known.
        progress: Called as bytes arrive.

    Raises:
        WeightsError: The name is unknown, or the file cannot be downloaded, verified or read.
    """
    file = MATCHERS.get(name) or NETWORKS.get(name)
    if file is None:
        raise WeightsError(f"no published file is called {name!r}; choose from {sorted([*MATCHERS, *NETWORKS])}")
    wanted = sha256.lower() if sha256 else file.sha256
    if wanted is not None and (len(wanted) != 64 or set(wanted) - set("0123456789abcdef")):
        raise WeightsError(f"{sha256!r} is not a SHA-256; give its 64 hexadecimal digits")
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{name}.lock"):  # of two processes that ask at once, one downloads
        if file.kind == "network":
            return _downloaded(file, wanted, progress)
        return _converted(file, wanted, progress)


def _downloaded(file: PublishedFile, wanted: str | None, progress: Progress | None) -> Path:
    kept = kept_at(file.url, wanted)
    if not kept.is_file():
        log.warning("downloading %s (%.1f MB, licence: %s) from %s", file.name, file.megabytes, file.licence, file.address)
        if file.notice:
            log.warning("%s", file.notice)
    try:
        return download(file.address, wanted, progress=progress)
    except WeightsError as error:
        raise WeightsError(
            f"{error}; to use it, save the file as {kept}, or leave --features and --weights out: the default, SIFT, needs "
            "no download"
        ) from None


def _converted(file: PublishedFile, wanted: str | None, progress: Progress | None) -> Path:
    if file.path.is_file():
        try:
            record = read_metadata(file.path)[1]
        except WeightsError:
            record = {}  # of an interrupted disk, or another version: made again
        if record and wanted in (None, record.get("source_sha256")):
            return file.path
    downloaded = _downloaded(file, wanted, progress)
    received = file_sha256(downloaded)
    if wanted is None:
        log.warning(
            "no checksum of %s is known; the file received has SHA-256 %s (insist on it from now on with `lumiglue weights "
            "download %s --sha256 %s`)",
            *(file.name, received, file.name, received),
        )
    model = import_released(downloaded, file.features)
    record = {"name": file.name, "source": file.url, "source_sha256": received, "licence": file.licence}
    save_weights(model, file.path, {**record, "notice": file.notice} if file.notice else record)
    downloaded.unlink()
    return file.path


def resolve(weights: str | Path) -> Path:
    """The file of weights by any of their names.

    Args:
        weights: A built-in name, the name of a published matcher, a local path, a URL with its checksum as
            https://host/file.safetensors#sha256=HEX, or a repository of the Hugging Face Hub as hub:owner/name or
            hub:owner/name@revision.

    Raises:
        WeightsError: There is no such file, or it cannot be downloaded.
    """
    text = str(weights)
    if text in BUILT_IN:
        return pretrained_path(text)
    if text in MATCHERS:
        return fetch(text)
    if text.startswith("hub:"):
        return _from_hub(text.removeprefix("hub:"))
    if "://" not in text:
        if not Path(text).exists() and not Path(text).suffix:
            names = sorted([*BUILT_IN, *MATCHERS])
            raise WeightsError(f"{text} does not exist, and no weights are called that; give a file, or one of {names}")
        return Path(weights)
    url, _, checksum = text.partition("#sha256=")
    if len(checksum) != 64:
        raise WeightsError(f"{url} has no checksum; append #sha256= and the file's 64 hexadecimal digits")
    return download(url, checksum.lower())


def _from_hub(text: str) -> Path:
    require("huggingface_hub")
    from lumiglue.weights.hub import fetch as fetch_from_hub

    repo, _, revision = text.partition("@")
    return check_folder(fetch_from_hub(repo, FOLDER_FILES, revision=revision or None))[0]


def features_of(weights: str) -> str:
    """The name of the features that weights are for, without downloading published ones. Raises WeightsError."""
    if weights in MATCHERS:
        return MATCHERS[weights].features
    return read_metadata(resolve(weights))[0].extractor


def needed_files(features: str | None, weights: str | None) -> list[PublishedFile]:
    """The published files that a matcher of these features and weights is made of, the network first.

    Args:
        features: Of an extractor; None where the weights decide.
        weights: As `resolve` takes them; None where they are the default of the features.
    """
    matcher = MATCHERS.get(weights or DEFAULT_WEIGHTS.get(features or "", ""))
    network = features
    if matcher is not None and (features is None or matcher.features.startswith(f"{features}-")):
        network = matcher.features
    return [file for file in (NETWORKS.get(network or ""), matcher) if file is not None]


def local_network(model: str, file_name: str, weights: str | Path | None = None) -> Path | None:
    """The file of a network's weights that a user put on this machine; None where there is none.

    Args:
        model: Name of the network; what precedes its first hyphen names the environment variable, LUMIGLUE_ALIKED for
            aliked-n16.
        file_name: Name of the published file, looked for where a folder is named.
        weights: A file or a folder to take, ahead of the environment variable and the cache folder.

    Raises:
        WeightsError: A file is named that does not exist.
    """
    variable = f"LUMIGLUE_{model.partition('-')[0].upper()}"
    for given, source in ((weights, "weights"), (os.environ.get(variable), f"${variable}")):
        if given:
            path = Path(given)
            file = path / file_name if path.is_dir() else path
            if not file.is_file():
                raise WeightsError(
                    f"{file}, named by {source}, does not exist; give {file_name} or the folder that holds it"
                )
            return file.absolute()
    cached = cache_folder() / f"{model}{Path(file_name).suffix}"
    return cached if cached.is_file() else None


def network_file(model: str, weights: str | Path | None = None) -> Path:
    """The file of a published network's weights, downloaded if need be; see `local_network`. Raises WeightsError."""
    return local_network(model, NETWORKS[model].file_name, weights) or fetch(model)
