"""The least that a server can do: read a body, answer JSON of a decision's size.

`barp bench serve` runs both under uvicorn alone, as the measure of what the machine gives: `plain`
as most services are written, on FastAPI with a checked body, and `app` as bare as ASGI gets.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
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


class Asked(BaseModel):
    """What a route request looks like."""

    prompt: str
    preference: dict[str, float]


plain = FastAPI()


@plain.post("/v1/route")
async def route(asked: Asked) -> dict[str, Any]:
    """Answer any request the same."""
    return {"decision_id": "0" * 300, "model": "model-05", "propensity": 0.5}
