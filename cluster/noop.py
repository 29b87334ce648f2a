"""The least that a server can do: read a body, answer JSON of a decision's size.

`barp bench serve` runs it under uvicorn alone, as the measure of what the machine gives.
"""

from __future__ import annotations

from typing import Final

from starlette.types import Receive, Scope, Send

REPLY: Final = b'{"decision_id":"%s","model":"model-05","propensity":0.5}' % (b"0" * 300)
HEADERS: Final = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(REPLY)).encode()),
]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer any HTTP request the same."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": REPLY})
