"""A load generator: HTTP/1.1 over kept connections, lean enough to run beside the service.

A general client costs more per request than the service does. This one sends requests that are
bytes already and reads no more of an answer than where it ends.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, cast
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

HEAD_END: Final = b"\r\n\r\n"
CONTENT_LENGTH: Final = b"content-length:"
# Connections of an open loop: far more than are busy while a service keeps up.
OPEN_CONNECTIONS: Final = 64
# How long answers are waited for once no more requests are sent.
PATIENCE_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSample:
    """What a run of load saw.

    Attributes:
        latencies_s: Time to the end of each good answer, seconds, in order of arrival, shape (n,).
        seconds: How long requests were sent.
        failed: Requests without an answer, or with another status than 200.
        sent: Requests sent.
    """

    latencies_s: NDArray[np.float64]
    seconds: float
    failed: int
    sent: int

    @property
    def answered(self) -> int:
        """Good answers."""
        return len(self.latencies_s)

    @property
    def rps(self) -> float:
        """Good answers per second."""
        return self.answered / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Latency that `percent` of the answers stay within, milliseconds; NaN without any."""
        if not len(self.latencies_s):
            return float("nan")
        return float(np.percentile(self.latencies_s, percent)) * 1000.0


def http_request(url: str, path: str, body: bytes, *, api_key: str | None = None) -> bytes:
    """Write a POST of JSON as the bytes that go over the wire."""
    key = f"authorization: Bearer {api_key}\r\n" if api_key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\n{key}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def closed_loop(
    url: str, requests: Sequence[bytes], *, clients: int, seconds: float
) -> LoadSample:
    """Let each of some clients send its next request when its last is answered.

    Args:
        url: Where the service is.
        requests: What to send, over and over, see `http_request`.
        clients: How many connections.
        seconds: How long.

    Raises:
        OSError: Nobody listens there.
    """
    tally, bodies = _Tally(), itertools.cycle(requests)
    until = time.perf_counter() + seconds

    async def client() -> None:
        connection = await connect(url)
        while time.perf_counter() < until:
            await _send(connection, next(bodies), time.perf_counter(), tally)
            if connection.lost:
                connection = await connect(url)
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return tally.sample(time.perf_counter() - began)


async def open_loop(
    url: str,
    requests: Sequence[bytes],
    *,
    rate_per_s: float,
    connections: int,
    seconds: float,
    seen: Callable[[bytes], None] | None = None,
) -> LoadSample:
    """Send at a fixed rate whatever the answers do; late answers do not slow the sending.

    Latency counts from when a request was due, so that time spent waiting for a connection is
    part of it.

    Args:
        url: Where the service is.
        requests: What to send, over and over, see `http_request`.
        rate_per_s: Requests a second, evenly spaced.
        connections: Most requests under way at once.
        seconds: How long.
        seen: Told the body of each good answer.

    Raises:
        OSError: Nobody listens there.
    """
    tally, free = _Tally(seen=seen), asyncio.Queue[Connection]()
    for connection in await asyncio.gather(*(connect(url) for _ in range(connections))):
        free.put_nowait(connection)
    under_way: set[asyncio.Task[None]] = set()

    async def one(body: bytes, due: float) -> None:
        connection = await free.get()
        await _send(connection, body, due, tally)
        free.put_nowait(await connect(url) if connection.lost else connection)

    def start(body: bytes, due: float) -> None:
        task = asyncio.create_task(one(body, due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    began = time.perf_counter()
    dues = [began + number / rate_per_s for number in range(round(rate_per_s * seconds))]
    loop = asyncio.get_running_loop()
    stop = threading.Event()
    try:
        await asyncio.to_thread(_pace, loop, start, itertools.cycle(requests), dues, stop)
    finally:
        stop.set()
    spent_s = time.perf_counter() - began
    if under_way:
        _, late = await asyncio.wait(under_way, timeout=PATIENCE_S)
        for task in late:
            task.cancel()
            tally.failed += 1
    while not free.empty():
        free.get_nowait().close()
    return tally.sample(spent_s)


class Connection(asyncio.Protocol):
    """One kept connection with at most one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._read = bytearray()
        self._end = -1
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        # Not checked: uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is under way."""
        self.lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed by the service"))

    def data_received(self, data: bytes) -> None:
        """Finish the answer once all of it is there."""
        self._read += data
        if self._end < 0:
            head = self._read.find(HEAD_END)
            if head < 0:
                return
            self._end = head + len(HEAD_END) + _content_length(bytes(self._read[:head]))
        if len(self._read) >= self._end and self._answer is not None and not self._answer.done():
            status = int(self._read[9:12])
            body = bytes(self._read[self._read.find(HEAD_END) + len(HEAD_END) : self._end])
            self._read.clear()
            self._end = -1
            self._answer.set_result((status, body))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send one request; return status and body of its answer.

        Raises:
            ConnectionError: The connection went down first.
        """
        if self._transport is None or self.lost:
            raise ConnectionResetError("not connected")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


async def connect(url: str) -> Connection:
    """Open a connection; raises OSError where nobody listens."""
    parts = urlsplit(url)
    _, connection = await asyncio.get_running_loop().create_connection(
        Connection, parts.hostname or "127.0.0.1", parts.port or 80
    )
    return connection


@dataclass
class _Tally:
    """Counts while load runs."""

    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0
    sent: int = 0
    seen: Callable[[bytes], None] | None = None

    def sample(self, seconds: float) -> LoadSample:
        return LoadSample(
            latencies_s=np.array(self.latencies_s),
            seconds=seconds,
            failed=self.failed,
            sent=self.sent,
        )


async def _send(connection: Connection, body: bytes, since: float, tally: _Tally) -> None:
    """Ask once, and count what came of it."""
    tally.sent += 1
    try:
        status, answer = await connection.ask(body)
    except ConnectionError:
        tally.failed += 1
        return
    if status == 200:
        tally.latencies_s.append(time.perf_counter() - since)
        if tally.seen is not None:
            tally.seen(answer)
    else:
        tally.failed += 1


def _pace(
    loop: asyncio.AbstractEventLoop,
    start: Callable[[bytes, float], None],
    requests: Iterator[bytes],
    dues: Sequence[float],
    stop: threading.Event,
) -> None:
    """Have an event loop start each request when it is due; to be run in a thread of its own.

    An event loop's timers count whole milliseconds, which would be half of what is measured here; a
    thread wakes within a tenth of that.
    """
    for request, due in zip(requests, dues, strict=False):
        wait_s = due - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        if stop.is_set():
            return
        loop.call_soon_threadsafe(start, request, due)


def _content_length(head: bytes) -> int:
    """Read the length of a body off its head; none is 0, as every answer of ours has one."""
    lowered = head.lower()
    at = lowered.find(CONTENT_LENGTH)
    if at < 0:
        return 0
    return int(lowered[at + len(CONTENT_LENGTH) :].split(b"\r\n", 1)[0])
