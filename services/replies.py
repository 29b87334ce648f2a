"""HTTP answers at their barest: a status, headers and a body."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from starlette.responses import Response
from starlette.types import Scope, Send

Headers = list[tuple[bytes, bytes]]

JSON: Final = b"application/json"
TEXT: Final = b"text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, ready to be sent.

    Attributes:
        body: The whole body.
        status: HTTP status.
        content_type: What the body is.
        headers: Further headers, names in lower case.
    """

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: Headers = field(default_factory=list)

    async def send(self, send: Send, *, extra: Headers, head: bool = False) -> None:
        """Send it through ASGI, with some more headers; to HEAD without its body."""
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % len(self.body)),
            *self.headers,
            *extra,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if head else self.body})

    def to_response(self) -> Response:
        """Return it as FastAPI's handlers do."""
        response = Response(self.body, status_code=self.status)
        response.raw_headers += [(b"content-type", self.content_type), *self.headers]
        return response


def header(scope: Scope, name: bytes) -> str | None:
    """Read a header as text, None where it did not come; `name` in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None
