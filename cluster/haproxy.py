"""Ray starts this script in place of HAProxy: it edits the configuration, then becomes HAProxy.

    python haproxy.py BINARY LISTEN_HOST LISTEN_PORT HAPROXY_ARGUMENTS...

It runs at every reload, so it needs the standard library only and imports nothing of ours. What it
changes in the configuration that Ray 2.60 writes (ray/serve/_private/haproxy_templates.py):

- every listener moves to loopback, the front door to the address asked for;
- HAProxy ends with the process that started it: an orphan would hold the port for ever;
- its own answers (slow request, no replica) have the body that all our errors have; only to what
  is no HTTP at all it answers with a page that is compiled in;
- a request has to arrive within some seconds, so that slow callers cannot lock others out;
- nothing is logged: Ray has a line sent for each request to whoever listens on port 514 (UDP);
- a WebSocket is refused here, for no replica speaks it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
# Spares a replica the tasks that watch for callers who hang up: decisions take less than that.
NO_WATCH_HEADER: Final = "x-request-disconnect-disabled"
# Headers, and the part of the body that fits HAProxy's buffer, have to be there within this.
REQUEST_TIMEOUT_S: Final = 10
# Waiting for a replica that has room.
QUEUE_TIMEOUT_S: Final = 30
PR_SET_PDEATHSIG: Final = 1

# Status, reason phrase, code, message, what helps; HAProxy says these by itself.
ERRORS: Final = (
    (400, "Bad Request", "bad_request", "this is not an HTTP request", "HTTP/1.1 (RFC 9112)"),
    (403, "Forbidden", "forbidden", "this request is not taken here", "what /docs lists"),
    (
        408,
        "Request Timeout",
        "request_timeout",
        "the request did not arrive in time",
        f"a request sent within {REQUEST_TIMEOUT_S} s",
    ),
    (413, "Content Too Large", "body_too_large", "the body is too large", "a smaller body"),
    (500, "Internal Server Error", "internal_error", "the proxy has failed", "try again"),
    (501, "Not Implemented", "not_implemented", "this is not spoken here", "what /docs lists"),
    (502, "Bad Gateway", "unavailable", "the replica has gone", "try again"),
    (503, "Service Unavailable", "unavailable", "no replica answers", "try again"),
    (504, "Gateway Timeout", "unavailable", "the replica did not answer in time", "try again"),
)
WEBSOCKET: Final = ("no_websocket", "WebSockets are not spoken here", "plain HTTP requests")
ROUTES: Final = ("not_found", "no such path", "what /docs lists")


def main(arguments: Sequence[str]) -> None:
    """Edit the configuration that the arguments name, and become HAProxy."""
    binary, host, port, *words = arguments
    _end_with_parent()
    for flag, value in pairwise(words):
        if flag == "-f":
            path = Path(value)
            text = path.read_text()
            path.write_text(edited(text, path.parent, host=host, port=int(port)))
    os.execv(binary, [binary, *words])


def edited(configuration: str, folder: Path, *, host: str, port: int) -> str:
    """Return Ray's configuration with our changes; writes the error pages into `folder`.

    Args:
        configuration: What Ray has written.
        folder: Where error pages go.
        host: Address the service listens on.
        port: Its TCP port.
    """
    pages = [f"    errorfile {status} {_page(folder, status, *rest)}" for status, *rest in ERRORS]
    websocket = _body(folder, "websocket.json", *WEBSOCKET)
    routes = _body(folder, "routes.json", *ROUTES)
    unavailable = _body(folder, "unavailable.json", "unavailable", "no replica yet", "try again")
    front = (
        f"    http-request set-header {NO_WATCH_HEADER} ?1\n"
        f"    http-request return status 404 content-type application/json file {routes}"
        " if { path -i /-/routes }\n"
        f"    http-request return status 400 content-type application/json file {websocket}"
        " if { req.hdr(upgrade) -i websocket }"
    )
    timeouts = (
        "    option http-buffer-request\n"
        f"    timeout http-request {REQUEST_TIMEOUT_S}s\n"
        f"    timeout queue {QUEUE_TIMEOUT_S}s"
    )
    none_yet = (
        f"    http-request return status 503 content-type application/json file {unavailable}"
        " hdr retry-after 1"
    )
    changes = (
        (r"^( *bind) [*]?:", rf"\1 {LOOPBACK}:"),
        (rf"^( *bind) {re.escape(LOOPBACK)}:{port}$", rf"\1 {host}:{port}"),
        (r"^( *stats socket .*) mode 666", r"\1 mode 600"),
        (r"^ *errorfile .*\n", ""),
        (r"^ *log \S+ local0 info *\n", ""),
        (r"^defaults$", "defaults\n" + "\n".join([timeouts, *pages])),
        (r"^frontend http_frontend$", "frontend http_frontend\n" + front),
        (r"^ *http-request return status 404 content-type text/plain.*$", none_yet),
    )
    for pattern, replacement in changes:
        configuration = re.sub(pattern, replacement, configuration, flags=re.MULTILINE)
    return configuration


def _page(folder: Path, status: int, reason: str, code: str, message: str, allowed: str) -> Path:
    """Write one of HAProxy's own answers, headers included."""
    body = _json(code, message, allowed)
    head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\ncache-control: no-cache\r\nconnection: close\r\n"
    if status in (502, 503, 504):
        head += "retry-after: 1\r\n"
    path = folder / f"{status}.http"
    path.write_text(head + "\r\n" + body, newline="")
    return path


def _body(folder: Path, name: str, code: str, message: str, allowed: str) -> Path:
    """Write the body of an answer that a rule gives."""
    path = folder / name
    path.write_text(_json(code, message, allowed))
    return path


def _json(code: str, message: str, allowed: str) -> str:
    """Write the body that all our errors have."""
    error = {"code": code, "field": None, "value": None, "allowed": allowed, "message": message}
    return json.dumps({"error": error})


def _end_with_parent() -> None:
    """Ask Linux to end this process when the one that started it ends, whatever the cause."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started HAProxy has ended")


if __name__ == "__main__":
    main(sys.argv[1:])
