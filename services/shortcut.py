"""Hot requests past Ray Serve's own work: answered by the replica's HTTP server itself.

Behind HAProxy a replica has an HTTP server of its own. What Serve does there for each request
(ids, contexts, spans, counts, a semaphore) takes as long as to decide. Serve lets a function name
middleware for that server (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH): ours hands the hot paths to
the application in this process, and leaves all others to Serve. Serve's proxy asks the function,
too; no application is mounted there, so it changes nothing.

What Serve did on these paths is done here: requests in flight are counted, for autoscaling. A stop
waits for them because the HTTP server does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID: Final = b"x-request-id"


@dataclass(slots=True, kw_only=True)
class Shortcut:
    """An application whose hot paths are answered without Serve.

    Attributes:
        application: Answers them.
        paths: Which they are.
        loop: The event loop it belongs to.
        in_flight: Requests it has in hand now.
    """

    application: ASGIApp
    paths: Collection[str]
    loop: asyncio.AbstractEventLoop
    in_flight: int = 0


class ShortcutMiddleware:
    """Decides for each request of a replica's HTTP server who answers it."""

    def __init__(self, app: ASGIApp, *, shortcut: Shortcut) -> None:
        """Take who answers what the shortcut does not."""
        self._serve, self._shortcut = app, shortcut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a hot request; let Serve answer any other."""
        shortcut = self._shortcut
        if scope["type"] != "http" or scope["path"] not in shortcut.paths:
            await self._serve(scope, receive, send)
            return
        shortcut.in_flight += 1
        try:
            await shortcut.application(scope, receive, _echoing(scope, send))
        finally:
            shortcut.in_flight -= 1


def _echoing(scope: Scope, send: Send) -> Send:
    """Send the caller's own id of a request back with the answer, as Serve does."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID:
            return _with_header(send, (REQUEST_ID, value))
    return send


def _with_header(send: Send, header: tuple[bytes, bytes]) -> Send:
    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], header]
        await send(message)

    return send_with_header


_mounted: Shortcut | None = None


def mount(application: ASGIApp, paths: Collection[str]) -> Shortcut:
    """Have this process's HTTP server, which Serve starts afterwards, take the shortcut.

    Call within the event loop that the application belongs to.
    """
    # A module's variable, for Serve passes nothing to the function it calls; one replica a process.
    global _mounted
    _mounted = Shortcut(application=application, paths=paths, loop=asyncio.get_running_loop())
    return _mounted


def middlewares() -> list[Middleware]:
    """Return the middleware for the HTTP server that is about to start in this process.

    None where nothing is mounted, or where Serve runs the server in another thread than the
    application: there each request has to cross over, which is Serve's work.
    """
    if _mounted is None or _mounted.loop is not asyncio.get_running_loop():
        return []
    return [Middleware(ShortcutMiddleware, shortcut=_mounted)]
