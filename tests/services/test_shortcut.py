"""Hot requests are answered before Serve sees them; all others are Serve's."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from services.shortcut import Shortcut, ShortcutMiddleware, middlewares, mount

HOT = frozenset({"/v1/route", "/healthz"})


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve's part."""
    await PlainTextResponse("serve")(scope, receive, send)


async def ours(scope: Scope, receive: Receive, send: Send) -> None:
    """The replica's application."""
    await PlainTextResponse("ours")(scope, receive, send)


async def ask(path: str, **headers: str) -> httpx.Response:
    """Send a request through the middleware that is mounted in this loop."""
    mount(ours, HOT)
    [middleware] = middlewares()
    app = middleware.cls(serve, *middleware.args, **middleware.kwargs)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get(path, headers=headers)


@pytest.mark.parametrize(
    ("path", "who"),
    [
        ("/v1/route", "ours"),
        ("/healthz", "ours"),
        ("/v1/routes", "serve"),
        ("/v1/route/", "serve"),
        ("/-/healthz", "serve"),
        ("/readyz", "serve"),
    ],
)
def test_only_hot_paths_take_the_shortcut(path: str, who: str) -> None:
    assert asyncio.run(ask(path)).text == who


def test_a_callers_request_id_comes_back() -> None:
    answer = asyncio.run(ask("/v1/route", **{"X-Request-ID": "mine-7"}))
    assert (answer.text, answer.headers.get_list("x-request-id")) == ("ours", ["mine-7"])
    assert "x-request-id" not in asyncio.run(ask("/v1/route")).headers


def test_a_process_without_a_replica_has_no_shortcut() -> None:
    async def run() -> list[object]:
        return list(middlewares())

    assert asyncio.run(run()) == []


def test_a_server_in_another_loop_than_the_application_has_no_shortcut() -> None:
    """Serve then runs user code in a thread of its own, and must bring each request there."""

    async def mounted() -> None:
        mount(ours, HOT)

    async def asked() -> list[object]:
        return list(middlewares())

    asyncio.run(mounted())
    assert asyncio.run(asked()) == []


def test_requests_in_flight_are_counted_until_they_end_however_they_end() -> None:
    async def run() -> None:
        entered, may_end = asyncio.Semaphore(0), asyncio.Event()

        async def waits(scope: Scope, receive: Receive, send: Send) -> None:
            entered.release()
            await may_end.wait()
            if scope["fails"]:
                raise ConnectionError("gone")

        here = Shortcut(application=waits, paths=HOT, loop=asyncio.get_running_loop())
        app = ShortcutMiddleware(serve, shortcut=here)

        async def nothing(*_: object) -> None:
            raise AssertionError("nobody reads or sends here")

        def request(*, fails: bool) -> asyncio.Task[None]:
            scope = {"type": "http", "path": "/v1/route", "headers": [], "fails": fails}
            return asyncio.ensure_future(app(scope, nothing, nothing))  # type: ignore[arg-type]

        good, bad, cancelled = request(fails=False), request(fails=True), request(fails=False)
        for _ in range(3):
            await entered.acquire()
        assert here.in_flight == 3
        cancelled.cancel()
        await asyncio.wait({cancelled})
        assert here.in_flight == 2
        may_end.set()
        await asyncio.wait({good, bad})
        assert isinstance(bad.exception(), ConnectionError)
        assert here.in_flight == 0

    asyncio.run(run())
