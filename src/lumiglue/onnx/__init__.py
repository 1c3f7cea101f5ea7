"""LightGlue as ONNX: the graph, the file, and running it. Needs `pip install "lumiglue[onnx]"`."""

from importlib.util import find_spec

from lumiglue.errors import InputError


def require(*packages: str) -> None:
    """Raises InputError with the remedy where a package is missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        extra = "openvino" if missing == ["openvino"] else "onnx"
        raise InputError(f"this needs the package {missing[0]}; pip install 'lumiglue[{extra}]'")
