"""Sends events to an operator's server: in order, signed, again until it has them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx

from pipelines.event_log import EventLog
from policies.artifact import write_atomically

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 10.0
RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 60.0
# After some ten minutes of refusals an event is given up, so that the ones behind it get through.
MAX_ATTEMPTS: Final = 16
CURSOR_FILE: Final = "webhook.cursor"
EVENT_HEADER: Final = "x-barp-event-id"
TIME_HEADER: Final = "x-barp-timestamp"
SIGNATURE_HEADER: Final = "x-barp-signature"
# Answers that another try may turn into a yes.
WORTH_RETRYING: Final = frozenset({408, 425, 429})


def signature(secret: bytes, *, timestamp: str, body: bytes) -> str:
    """Sign a delivery: HMAC-SHA-256 over `timestamp.body`, as `sha256=<hexadecimal>`.

    >>> signature(b"s", timestamp="0", body=b"{}")[:15]
    'sha256=e79b1f68'
    """
    mac = hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={mac.hexdigest()}"


class Webhook:
    """Follows the event log, from where the last process came to; at least once each.

    The log is the queue: bounded, and on disk. What it has forgotten by the time that a server is
    back was given up, and is counted.

    Args:
        url: Where to POST. Never logged: for some services it is a secret.
        secret: Signs; None sends unsigned.
        log: What to send.
        folder: Where the number of the last event sent is kept.
        clock: Seconds since the epoch, UTC.
        retry_first_s: First pause after a failure, seconds; doubles.
        max_attempts: Tries of one event.
        transport: HTTP transport; None opens connections.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: bytes | None,
        log: EventLog,
        folder: Path,
        clock: Callable[[], float],
        retry_first_s: float = RETRY_FIRST_S,
        max_attempts: int = MAX_ATTEMPTS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url, self._secret, self._log, self._clock = url, secret, log, clock
        self._retry_first_s, self._max_attempts = retry_first_s, max_attempts
        self._cursor = folder / CURSOR_FILE
        self._news = asyncio.Event()
        self._transport = transport
        self.delivered, self.failed_attempts, self.given_up = 0, 0, 0

    def news(self) -> None:
        """Say that the log has grown."""
        self._news.set()

    async def run(self) -> None:
        """Send what is new, for ever."""
        seq = self._start_seq()
        async with httpx.AsyncClient(timeout=TIMEOUT_S, transport=self._transport) as http:
            while True:
                self._news.clear()
                entry = self._log.next_after(seq)
                if entry is None:
                    await self._news.wait()
                    continue
                self.given_up += entry["seq"] - seq - 1
                await self._send(http, entry)
                seq = entry["seq"]
                await asyncio.to_thread(write_atomically, self._cursor, str(seq).encode())

    def _start_seq(self) -> int:
        """Read where the last process came to; a first one starts with what is new."""
        try:
            return min(int(self._cursor.read_bytes()), self._log.last_seq)
        except (OSError, ValueError):
            return self._log.last_seq

    async def _send(self, http: httpx.AsyncClient, entry: dict[str, Any]) -> None:
        """Send one event until the server has it, or it is given up."""
        pause_s = self._retry_first_s
        for attempt in range(1, self._max_attempts + 1):
            problem = await self._attempt(http, entry)
            if problem is None:
                self.delivered += 1
                return
            self.failed_attempts += 1
            text, again = problem
            logger.warning("webhook: event %d, try %d: %s", entry["seq"], attempt, text)
            if not again:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)
        self.given_up += 1

    async def _attempt(
        self, http: httpx.AsyncClient, entry: dict[str, Any]
    ) -> tuple[str, bool] | None:
        """Send once; return what went wrong and whether to try again, None where nothing did."""
        body = json.dumps(entry, allow_nan=False).encode()
        timestamp = str(int(self._clock()))
        headers = {
            "content-type": "application/json",
            EVENT_HEADER: entry["event_id"],
            TIME_HEADER: timestamp,
        }
        if self._secret is not None:
            headers[SIGNATURE_HEADER] = signature(self._secret, timestamp=timestamp, body=body)
        try:
            answer = await http.post(self._url, content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return type(error).__name__, True
        if answer.is_success:
            return None
        again = answer.is_server_error or answer.status_code in WORTH_RETRYING
        return f"HTTP {answer.status_code}", again
