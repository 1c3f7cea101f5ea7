"""Which optional packages there are, and which extra of Lumiglue brings each."""

from importlib.util import find_spec

from lumiglue.errors import InputError

# Name that is imported -> extras, the most likely first.
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
    """One sentence: that the package is missing, and how to install it."""
    wanted = f"'lumiglue[{EXTRAS[package][0]}]'" if package in EXTRAS else package
    return f"this needs the package {package}; pip install {wanted}"


def require(*packages: str) -> None:
    """Raises InputError with the remedy where a package is missing."""
    for package in packages:
        if find_spec(package) is None:
            raise InputError(remedy(package))
