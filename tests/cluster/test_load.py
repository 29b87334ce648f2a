"""The load generator counts what really happened, against servers that behave and that do not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from cluster.load import LoadSample, closed_loop, http_request, open_loop

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BAD = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"

Handler = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


def measured(handler: Handler, load: Callable[[str], Awaitable[LoadSample]]) -> LoadSample:
    """Run load against a server that calls `handler` with the number of each request."""
    number = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        while not writer.is_closing():
            try:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
            except asyncio.IncompleteReadError:
                break
            number += 1
            await handler(number, writer)
        writer.close()

    async def run() -> LoadSample:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return await load(f"http://127.0.0.1:{port}")

    # As the benchmarks do: its timers are the ones that could send too early.
    return uvloop.run(run())


def closed(url: str) -> Awaitable[LoadSample]:
    return closed_loop(url, [http_request(url, "/", b"{}")], clients=3, seconds=0.3)


def opened(
    *, rate_per_s: float, connections: int, seconds: float
) -> Callable[[str], Awaitable[LoadSample]]:
    def load(url: str) -> Awaitable[LoadSample]:
        return open_loop(
            url,
            [http_request(url, "/", b"{}")],
            rate_per_s=rate_per_s,
            connections=connections,
            seconds=seconds,
        )

    return load


async def answer_at_once(number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(GOOD)


def test_every_answer_is_counted_once() -> None:
    sample = measured(answer_at_once, closed)
    assert sample.failed == 0
    assert sample.answered == sample.sent > 10
    assert sample.rps == pytest.approx(sample.answered / sample.seconds)
    assert 0 < sample.percentile_ms(50) <= sample.percentile_ms(99)


def test_other_statuses_and_lost_connections_are_failures() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        if number % 4 == 0:
            writer.close()
        else:
            writer.write(BAD if number % 4 == 1 else GOOD)

    sample = measured(answer, closed)
    assert sample.answered > 0
    assert sample.sent == sample.answered + sample.failed
    assert sample.failed == pytest.approx(sample.sent / 2, abs=3)


def test_an_answer_that_comes_in_pieces_is_one() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        for piece in (GOOD[:20], GOOD[20:-1], GOOD[-1:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)

    sample = measured(answer, closed)
    assert sample.failed == 0
    assert sample.answered == sample.sent


def test_an_open_loop_sends_at_its_rate_and_counts_from_when_a_request_was_due() -> None:
    """One connection, 20 ms an answer, twice as many requests: the wait is in the latency."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(GOOD)

    sample = measured(answer, opened(rate_per_s=100, connections=1, seconds=0.4))
    assert (sample.sent, sample.failed) == (40, 0)
    # The last was due after 0.39 s, and answered after 40 times 20 ms at the soonest.
    assert sample.percentile_ms(100) >= 400


def test_no_request_of_an_open_loop_is_sent_before_it_is_due() -> None:
    """Such as one sent when a timer of whole milliseconds says so: it would look too fast."""
    sample = measured(answer_at_once, opened(rate_per_s=700, connections=4, seconds=0.5))
    assert (sample.sent, sample.failed) == (350, 0)
    assert sample.latencies_s.min() > 0


def test_a_request_says_its_length_and_its_key() -> None:
    wire = http_request("http://127.0.0.1:8000", "/v1/route", b'{"prompt": "x"}', api_key="k")
    head, body = wire.split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/route HTTP/1.1\r\nhost: 127.0.0.1:8000\r\n")
    assert b"authorization: Bearer k" in head
    assert b"content-length: 15" in head
    assert body == b'{"prompt": "x"}'
