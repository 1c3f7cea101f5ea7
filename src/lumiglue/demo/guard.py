"""Checks every request: only the paths that the demo needs, and no body above the limits."""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

# Gradio has many more routes: a proxy, run histories, an editor. None of them is needed here, so none is reachable.
_PATHS = re.compile(
    r"/|/api/match|/openapi\.json|/result/[\w-]+/[\w.-]+|/config/?|/theme\.css|/favicon\.ico|/robots\.txt"
    r"|/(static|assets|svelte)/.+"
    r"|/gradio_api/(upload|upload_progress|queue/join|queue/data|reset/?|cancel|startup-events|app_id/?|info/?)"
    r"|/gradio_api/heartbeat/\w+|/gradio_api/file=/.+"
)
_UPLOADS = ("/gradio_api/upload", "/api/match")
_FORM_BYTES = 2**16  # what surrounds the photos of a form


class _TooLargeError(Exception):
    pass


class Guard:
    """Replies 404 to other paths than the demo's, and 413 to bodies that are too large, also if they are sent in chunks."""

    def __init__(self, app: Application, upload_bytes: int) -> None:
        self.app, self.upload_bytes = app, upload_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        if not _PATHS.fullmatch(path) or ".." in path or "\\" in path:
            await _answer(send, 404, "there is nothing here")
            return
        limit = 2 * self.upload_bytes + _FORM_BYTES if path in _UPLOADS else _FORM_BYTES
        sentence = f"the request is larger than two photos of {self.upload_bytes / 1e6:g} MB; send smaller files"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            await _drain(receive, 4 * limit)
            await _answer(send, 413, sentence)
            return
        received, answered = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal answered
            if received > limit and not answered:  # what the app makes of the error: 413 comes instead
                return
            answered = True
            await send(message)

        with suppress(_TooLargeError):
            await self.app(scope, counted, noted)
        if received > limit and not answered:
            await _drain(receive, 4 * limit)
            await _answer(send, 413, sentence)


async def _drain(receive: Receive, most: int) -> None:
    """Reads and drops a body: closing a connection while the client still sends may lose the reply."""
    message: Message = {"more_body": True}
    while message.get("more_body") and most > 0:
        message = await receive()
        most -= len(message.get("body", b""))


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
