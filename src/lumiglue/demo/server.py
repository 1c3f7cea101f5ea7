"""The server: routes, page and guard in one process, workers beside it."""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack

from lumiglue.demo.limits import Limits
from lumiglue.demo.service import Service
from lumiglue.errors import InputError


def serve(host: str, port: int, limits: Limits, ready: Callable[[str], None]) -> None:
    """Serves the page and the routes until it is interrupted, and calls `ready` with the URL once the port is open; 0 takes
    a free one.

    Uploads are stored in a temporary folder for at most an hour, and deleted with the server. Raises InputError if the
    address cannot be used.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(_bound(host, port))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lumiglue-demo-", ignore_cleanup_errors=True))
        # Gradio reads these when it is imported.
        os.environ |= {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        import uvicorn

        from lumiglue.demo.api import create_app
        from lumiglue.demo.guard import Guard
        from lumiglue.demo.page import mount

        service = Service(limits)
        stack.callback(service.close)
        app = Guard(mount(create_app(service), service, service.models), limits.upload_bytes)  # pyright: ignore[reportArgumentType]
        # uvicorn shuts down and raises the signal again; this exit then removes the folder and the workers.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listener.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)).run([listener])  # pyright: ignore[reportArgumentType]


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{host} port {port} cannot be used ({reason}); give another --host or --port") from None
    return listener
