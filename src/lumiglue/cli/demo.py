"""`lumiglue demo`."""

from typing import Annotated

from tyro.conf import arg

from lumiglue.cli.terminal import say
from lumiglue.demo.limits import Limits


def demo(limits: Annotated[Limits, arg(name="")], host: str = "127.0.0.1", port: int = 7860) -> int:
    """A web page that matches two photos, and the same as an HTTP route. Needs `pip install "lumiglue[demo]"`.

    Args:
        limits: What a request may cost.
        host: Address to listen at; the default is for this machine alone, 0.0.0.0 for others too.
        port: Port to listen at; 0 takes a free one.
    """
    from lumiglue.extras import require

    require("gradio", "pebble", "skimage")
    from lumiglue.demo.server import serve

    serve(host, port, limits, lambda address: say(f"the demo is at {address}"))
    return 0
