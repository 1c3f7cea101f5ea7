"""Published files by name: matchers and feature networks, with their addresses, checksums and licences.

`resolve` finds the file of any weights that a user can name. A published matcher is downloaded once, verified, converted
to a safetensors file and kept in the cache folder. Nothing in it is executed.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from lumiglue.errors import WeightsError
from lumiglue.io.download import Progress, download, file_sha256, kept_at
from lumiglue.system.cache import cache_folder
from lumiglue.system.extras import require
from lumiglue.weights.files import BUILT_IN, FOLDER_FILES, check_folder, pretrained_path, read_metadata, save_weights
from lumiglue.weights.released import import_released

log = logging.getLogger(__name__)
MIRROR = "LUMIGLUE_MIRROR"  # an address or a file:// folder that serves the published files under their own names

_LIGHTGLUE = "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/"
_SUPERGLUE = "https://github.com/magicleap/SuperGluePretrainedNetwork/raw/master/models/weights/"
_ALIKED = "https://github.com/Shiaoming/ALIKED/raw/main/models/"
_XFEAT = "https://github.com/verlab/accelerated_features/raw/main/weights/"
_MAGIC_LEAP = (  # licence and notice
    "Magic Leap (non-commercial research only)",
    "SuperGlue's weights are licensed for non-commercial research only",
)


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights that its authors published.

    Attributes:
        name: The name that users give.
        kind: A matcher, or the network of an extractor.
        features: Name of the extractor: of the features that a matcher takes, or that a network computes.
        url: Where it was published.
        megabytes: Size of the download in units of 10^6 bytes; approximate if no checksum is known.
        sha256: 64 hexadecimal digits; None if no checksum is known. The checksum of the download is then reported.
        licence: Licence of the weights.
        notice: A restriction that users must know about.
    """

    name: str
    kind: Literal["matcher", "network"]
    features: str
    url: str
    megabytes: float
    sha256: str | None = None
    licence: str = "Apache-2.0"
    notice: str = ""

    @property
    def file_name(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def address(self) -> str:
        """The address it is downloaded from: its URL, or the same file name at $LUMIGLUE_MIRROR."""
        mirror = os.environ.get(MIRROR)
        return f"{mirror.rstrip('/')}/{self.file_name}" if mirror else self.url

    @property
    def path(self) -> Path:
        """The path of its usable form: a converted matcher, or the network's file as published."""
        if self.kind == "matcher":
            return cache_folder() / f"{self.name}.safetensors"
        return kept_at(self.url, self.sha256)

    def converted_from(self) -> str | None:
        """The SHA-256 of the file that a kept matcher was converted from; None if there is none or it is damaged."""
        try:
            return read_metadata(self.path)[1].get("source_sha256")
        except WeightsError:
            return None

    def is_here(self) -> bool:
        """Whether it can be used without a download."""
        if self.kind == "network":
            return local_network(self.name, self.file_name) is not None or self.path.is_file()
        if (source := self.converted_from()) is not None and self.sha256 in (None, source):
            return True
        return kept_at(self.url, self.sha256).is_file()


MATCHERS = {
    file.name: file
    for file in (
        PublishedFile("aliked-lightglue", "matcher", "aliked-n16", f"{_LIGHTGLUE}aliked_lightglue.pth", 47.6,
            "d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503"),
        PublishedFile("disk-lightglue", "matcher", "disk", f"{_LIGHTGLUE}disk_lightglue.pth", 47.6,
            "b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335"),
        PublishedFile("xfeat-lighterglue", "matcher", "xfeat", f"{_XFEAT}xfeat-lighterglue.pt", 10.8,
            "766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8"),
        PublishedFile("sift-lightglue", "matcher", "sift", f"{_LIGHTGLUE}sift_lightglue.pth", 47.6),
        PublishedFile("doghardnet-lightglue", "matcher", "doghardnet", f"{_LIGHTGLUE}doghardnet_lightglue.pth", 47.6),
        PublishedFile("superpoint-lightglue", "matcher", "superpoint", f"{_LIGHTGLUE}superpoint_lightglue.pth", 47.4,
            notice="SuperPoint, whose features it matches, is licensed for non-commercial research only"),
        PublishedFile("superglue-indoor", "matcher", "superpoint", f"{_SUPERGLUE}superglue_indoor.pth", 48.2,
            None, *_MAGIC_LEAP),
        PublishedFile("superglue-outdoor", "matcher", "superpoint", f"{_SUPERGLUE}superglue_outdoor.pth", 48.2,
            None, *_MAGIC_LEAP),
    )
}  # fmt: skip

NETWORKS = {
    file.name: file
    for file in (
        PublishedFile("aliked-t16", "network", "aliked-t16", f"{_ALIKED}aliked-t16.pth", 0.8,
            "56782336919db220144a884e710e2b6af13b3b8f8da15b915a239078ab471085", "BSD-3-Clause"),
        PublishedFile("aliked-n16", "network", "aliked-n16", f"{_ALIKED}aliked-n16.pth", 2.7,
            "5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2", "BSD-3-Clause"),
        PublishedFile("aliked-n16rot", "network", "aliked-n16rot", f"{_ALIKED}aliked-n16rot.pth", 2.7,
            "ddf3abbf38e86f6a74540d214e1a9712c54b2d8551abc864542199f2347d7332", "BSD-3-Clause"),
        PublishedFile("aliked-n32", "network", "aliked-n32", f"{_ALIKED}aliked-n32.pth", 3.9,
            "055283fd1624d3ab46a05c3b617b1a79a3f28d1f551737eef2d653e8c8232890", "BSD-3-Clause"),
        PublishedFile("disk", "network", "disk", "https://github.com/cvlab-epfl/disk/raw/master/depth-save.pth", 4.4,
            "9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe"),
        PublishedFile("xfeat", "network", "xfeat", f"{_XFEAT}xfeat.pt", 6.2,
            "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b"),
    )
}  # fmt: skip

# Features -> their default weights, the best available.
DEFAULT_WEIGHTS = {
    "sift": "sift-deep",
    "aliked": "aliked-lightglue",
    "aliked-n16": "aliked-lightglue",
    "aliked-n16rot": "aliked-n16rot-deep",
    "disk": "disk-lightglue",
    "xfeat": "xfeat-lighterglue",
    "superpoint": "superpoint-lightglue",
    "doghardnet": "doghardnet-lightglue",
}


def default_weights(features: str) -> str:
    """The name of the default weights for an extractor's features. Raises WeightsError if there are none."""
    if features not in DEFAULT_WEIGHTS:
        raise WeightsError(
            f"there are no default weights for {features!r} features; choose from {sorted(DEFAULT_WEIGHTS)}, or give "
            "your own weights"
        )
    return DEFAULT_WEIGHTS[features]


def fetch(name: str, *, sha256: str | None = None, progress: Progress | None = None) -> Path:
    """Downloads a published file and converts it, unless that was done before.

    Args:
        name: A name in `MATCHERS` or `NETWORKS`.
        sha256: The checksum to require, 64 hexadecimal digits; by default the registered one, if any.
        progress: Called as bytes arrive, see `download`.

    Returns:
        The path of its usable form, see `PublishedFile.path`.

    Raises:
        WeightsError: The name is unknown, or the file cannot be downloaded, verified or read.
    """
    file = MATCHERS.get(name) or NETWORKS.get(name)
    if file is None:
        raise WeightsError(f"no published file is called {name!r}; choose from {sorted([*MATCHERS, *NETWORKS])}")
    checksum = file.sha256 if sha256 is None else sha256.lower()
    if checksum is not None and not re.fullmatch("[0-9a-f]{64}", checksum):
        raise WeightsError(f"{sha256!r} is not a SHA-256; give its 64 hexadecimal digits")
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{name}.lock"):  # if two processes need the file at once, one downloads it
        return (_downloaded if file.kind == "network" else _converted)(file, checksum, progress)


def _downloaded(file: PublishedFile, checksum: str | None, progress: Progress | None) -> Path:
    target = kept_at(file.url, checksum)
    if not target.is_file():
        # A warning, so that Python prints it without any logging set up; the label is for the command line.
        log.warning(
            "downloading %s (%.1f MB, licence: %s) from %s",
            *(file.name, file.megabytes, file.licence, file.address),
            extra={"label": "note"},
        )
        if file.notice:
            log.warning("%s", file.notice)
    try:
        return download(file.address, checksum, progress=progress)
    except WeightsError as error:
        raise WeightsError(
            f"{error}; to use it, save the file as {target}, or omit --features and --weights: the default, SIFT, needs no "
            "download"
        ) from None


def _converted(file: PublishedFile, checksum: str | None, progress: Progress | None) -> Path:
    if (source := file.converted_from()) is not None and checksum in (None, source):
        return file.path
    downloaded = _downloaded(file, checksum, progress)
    received = file_sha256(downloaded)
    if checksum is None:
        log.warning(
            "no checksum of %s is known; the file received has SHA-256 %s (require it from now on with `lumiglue weights "
            "download %s --sha256 %s`)",
            *(file.name, received, file.name, received),
        )
    model = import_released(downloaded, file.features)
    record = {"name": file.name, "source": file.url, "source_sha256": received, "licence": file.licence}
    save_weights(model, file.path, {**record, "notice": file.notice} if file.notice else record)
    downloaded.unlink()
    return file.path


def resolve(weights: str | Path) -> Path:
    """Finds the file of weights, and downloads it if need be.

    Args:
        weights: A built-in name, the name of a published matcher, a local path, a URL with its checksum as
            https://host/file.safetensors#sha256=HEX, or a repository of the Hugging Face Hub as hub:owner/name or
            hub:owner/name@revision.

    Returns:
        The path of the file.

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
            raise WeightsError(f"{text} is neither a file nor the name of weights; give a file, or one of {names}")
        return Path(weights)
    url, _, checksum = text.partition("#sha256=")
    if len(checksum) != 64:
        raise WeightsError(f"{url} has no checksum; append #sha256= and the 64 hexadecimal digits of its SHA-256")
    return download(url, checksum.lower())


def _from_hub(text: str) -> Path:
    require("huggingface_hub", "httpx2")
    from lumiglue.weights.hub import fetch as fetch_from_hub

    repo, _, revision = text.partition("@")
    return check_folder(fetch_from_hub(repo, FOLDER_FILES, revision=revision or None))[0]


def features_of(weights: str) -> str:
    """The features that weights (see `resolve`) were trained for. Published matchers are not downloaded for it."""
    if weights in MATCHERS:
        return MATCHERS[weights].features
    return read_metadata(resolve(weights))[0].extractor


def needed_files(features: str | None, weights: str | None) -> list[PublishedFile]:
    """The published files that a pipeline needs: the network of the features, if it has one here, then the matcher, if it is
    a published one. None takes the features of the weights, or the default weights of the features."""
    matcher = MATCHERS.get(weights or DEFAULT_WEIGHTS.get(features or "", ""))
    network = features
    if matcher is not None and (features is None or matcher.features.startswith(f"{features}-")):
        network = matcher.features
    return [file for file in (NETWORKS.get(network or ""), matcher) if file is not None]


def local_network(model: str, file_name: str, weights: str | Path | None = None) -> Path | None:
    """The file of a network's weights that the user put on this machine, or None.

    `weights`, a file or a folder with `file_name`, has priority over the environment variable, and that over the cache
    folder. The variable is named by the part of `model` before its first hyphen: LUMIGLUE_ALIKED for aliked-n16. Raises
    WeightsError if one of the first two names a file that does not exist.
    """
    variable = f"LUMIGLUE_{model.partition('-')[0].upper()}"
    for given, source in ((weights, "weights"), (os.environ.get(variable), f"${variable}")):
        if given:
            path = Path(given)
            file = path / file_name if path.is_dir() else path
            if not file.is_file():
                raise WeightsError(f"{file}, named by {source}, does not exist; give {file_name} or its folder")
            return file.absolute()
    cached = cache_folder() / f"{model}{Path(file_name).suffix}"
    return cached if cached.is_file() else None


def network_file(model: str, weights: str | Path | None = None) -> Path:
    """The file of a published network's weights: a local one, see `local_network`, or a download."""
    return local_network(model, NETWORKS[model].file_name, weights) or fetch(model)
