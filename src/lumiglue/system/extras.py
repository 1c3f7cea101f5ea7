"""Optional packages, and the extra of Lumiglue that installs each."""

from importlib.util import find_spec

from lumiglue.errors import InputError

# Name of the module -> extras, the most likely first.
EXTRAS: dict[str, tuple[str, ...]] = {
    "skimage": ("sample",),
    "kornia": ("aliked", "eval"),
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


def remedy(package: str) -> str:
    """One sentence that says which package is missing and how to install it."""
    requirement = f"'lumiglue[{EXTRAS[package][0]}]'" if package in EXTRAS else package
    return f"this needs the package {package}; pip install {requirement}"


def require(*packages: str) -> None:
    """Checks that packages are installed.

    Raises:
        InputError: One is missing; the message says how to install it.
    """
    for package in packages:
        if find_spec(package) is None:
            raise InputError(remedy(package))
