"""Weights: Lumiglue's files, published checkpoints, model folders and the Hugging Face Hub."""

from lumiglue.io.download import Progress, download, file_sha256, kept_at
from lumiglue.io.state_dicts import read_tensors
from lumiglue.weights.files import (
    BUILT_IN,
    FOLDER_FILES,
    FORMAT,
    built_in_checksums,
    check_folder,
    is_ours,
    load_weights,
    pretrained_path,
    read_metadata,
    save_weights,
)
from lumiglue.weights.registry import (
    DEFAULT_WEIGHTS,
    MATCHERS,
    MIRROR,
    NETWORKS,
    PublishedFile,
    default_weights,
    features_of,
    fetch,
    local_network,
    needed_files,
    network_file,
    resolve,
)

__all__ = [
    "BUILT_IN", "DEFAULT_WEIGHTS", "FOLDER_FILES", "FORMAT", "MATCHERS", "MIRROR", "NETWORKS", "Progress",
    "PublishedFile", "built_in_checksums", "check_folder", "default_weights", "download", "features_of", "fetch",
    "file_sha256", "is_ours", "kept_at", "load_weights", "local_network", "needed_files", "network_file",
    "pretrained_path", "read_metadata", "read_tensors", "resolve", "save_weights",
]  # fmt: skip
