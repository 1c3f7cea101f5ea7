"""The demo: a web page and an HTTP route that match two photos. Needs `pip install "lumiglue[demo]"`."""

from importlib.util import find_spec

from lumiglue.errors import InputError


def require() -> None:
    """Raises InputError with the remedy where a package of the demo is missing."""
    missing = [package for package in ("gradio", "pebble", "skimage") if find_spec(package) is None]
    if missing:
        raise InputError(f"the demo needs the package {missing[0]}; pip install 'lumiglue[demo]'")
