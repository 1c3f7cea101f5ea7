"""Optional packages: the extra of Lumiglue that installs each, and the versions that it needs.

The versions are those of the installed package's metadata, which the build takes from pyproject.toml.
"""

from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lumiglue.errors import InputError

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

# Name of the module -> extras, the most likely first.
EXTRAS: dict[str, tuple[str, ...]] = {
    "skimage": ("sample",),
    "kornia": ("kornia", "eval"),
    "transformers": ("superpoint",),
    "pycolmap": ("sfm",),
    "faiss": ("sfm",),
    "onnx_ir": ("onnx", "openvino"),
    "onnxruntime": ("onnx",),
    "openvino": ("openvino",),
    "ray": ("ray",),
    "tensorboard": ("tensorboard",),
    "pillow_heif": ("heic",),
    "huggingface_hub": ("hub",),
    "httpx2": ("hub",),
    "gradio": ("demo",),
    "pebble": ("demo",),
    "fastapi": ("demo",),
    "pydantic": ("demo",),
    "uvicorn": ("demo",),
    "python_multipart": ("demo",),
}
# Distributions that bring a module of another name; the first is the one that Lumiglue names.
DISTRIBUTIONS = {
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "PIL": ("pillow",),
    "skimage": ("scikit-image",),
    "faiss": ("faiss-cpu", "faiss-gpu-cu12"),
}


def installed_versions(package: str) -> dict[str, str]:
    """Versions of the distributions that bring a module; {} if it is not installed, or without metadata."""
    versions = {}
    for name in DISTRIBUTIONS.get(package, (package,)) if find_spec(package) is not None else ():
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    if not versions and find_spec(package) is not None:  # another build, such as onnxruntime-gpu: a slower search
        versions = {name: version(name) for name in packages_distributions().get(package, ())}
    return versions


@cache
def needed_versions(package: str) -> "SpecifierSet":
    """The versions of a module's distribution that Lumiglue's metadata allows; all of them if Lumiglue is not installed."""
    from packaging.requirements import Requirement  # not at the top: every command imports this module
    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name

    names = {canonicalize_name(name) for name in DISTRIBUTIONS.get(package, (package,))}
    specifiers = SpecifierSet(prereleases=True)
    try:
        requirements = [Requirement(line) for line in requires("lumiglue") or ()]
    except PackageNotFoundError:
        return specifiers
    extras = EXTRAS.get(package, ("",))
    for requirement in requirements:
        marker = requirement.marker
        if canonicalize_name(requirement.name) in names and (
            marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
        ):
            specifiers &= requirement.specifier
    return specifiers


def remedy(package: str) -> str:
    """One sentence that says which package is missing and how to install it."""
    return f"this needs the package {package}; pip install {_requirement(package)}"


def outdated(package: str) -> str | None:
    """One sentence if the installed version of a package is not one that Lumiglue needs, else None."""
    versions, needed = installed_versions(package), needed_versions(package)
    if not versions or any(needed.contains(number, prereleases=True) for number in versions.values()):
        return None
    name, number = next(iter(versions.items()))
    bounds = ",".join(sorted(map(str, needed), reverse=True))
    return f"this needs {name}{bounds}, but {name} {number} is installed; pip install --upgrade {_requirement(package)}"


def available(package: str) -> bool:
    """Whether a package is installed, in a version that Lumiglue supports."""
    return find_spec(package) is not None and outdated(package) is None


def require(*packages: str) -> None:
    """Checks that packages are installed, in versions that Lumiglue supports.

    Raises:
        InputError: One is missing or has another version; the message says how to install it.
    """
    for package in packages:
        if find_spec(package) is None:
            raise InputError(remedy(package))
        if message := outdated(package):
            raise InputError(message)


def _requirement(package: str) -> str:
    return f"'lumiglue[{EXTRAS[package][0]}]'" if package in EXTRAS else package
