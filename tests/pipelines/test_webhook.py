"""Deliveries to a real HTTP server: in order, signed, repeated, resumed after a restart."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.event_log import EventLog
from pipelines.webhook import EVENT_HEADER, SIGNATURE_HEADER, TIME_HEADER, Webhook
from policies.events import Event, EventKind

SECRET = b"shared with the receiver"


class Receiver:
    """A server that answers as it is told, and keeps what it accepted."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.accepted: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = outer.statuses.pop(0) if outer.statuses else 200
                if status == 200:
                    outer.accepted.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def words(self) -> list[str]:
        """What was said, in the order it came."""
        return [json.loads(body)["why"] for _, body in self.accepted]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server for one test."""
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def append(log: EventLog, *whys: str) -> None:
    """Let something happen."""
    for why in whys:
        log.append(Event.now(EventKind.TRAINING, now=0.0, who="ann", why=why))


def hook(folder: Path, log: EventLog, url: str, *, max_attempts: int = 16) -> Webhook:
    """Make a webhook that does not wait long."""
    return Webhook(
        url,
        secret=SECRET,
        log=log,
        folder=folder,
        clock=lambda: 1_800_000_000.0,
        retry_first_s=0.001,
        max_attempts=max_attempts,
    )


def run_until(webhook: Webhook, holds: Callable[[], bool], before: Callable[[], None]) -> None:
    """Run it, let things happen, and stop once something holds."""

    async def main() -> None:
        task = asyncio.create_task(webhook.run())
        await asyncio.sleep(0)
        before()
        webhook.news()
        async with asyncio.timeout(30):
            while not holds():
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_events_arrive_in_order_and_signed(tmp_path: Path, receiver: Receiver) -> None:
    log = EventLog(tmp_path)
    webhook = hook(tmp_path, log, receiver.url)

    run_until(webhook, lambda: webhook.delivered == 3, lambda: append(log, "one", "two", "three"))

    assert receiver.words() == ["one", "two", "three"]
    headers, body = receiver.accepted[0]
    signed = headers[TIME_HEADER].encode() + b"." + body
    expected = hmac.new(SECRET, signed, hashlib.sha256).hexdigest()
    assert headers[SIGNATURE_HEADER] == f"sha256={expected}"
    assert headers[EVENT_HEADER] == json.loads(body)["event_id"]


def test_a_server_that_fails_gets_the_event_again(tmp_path: Path, receiver: Receiver) -> None:
    receiver.statuses = [500, 429, 503]
    log = EventLog(tmp_path)
    webhook = hook(tmp_path, log, receiver.url)

    run_until(webhook, lambda: webhook.delivered == 2, lambda: append(log, "one", "two"))

    assert receiver.words() == ["one", "two"]
    assert (webhook.failed_attempts, webhook.given_up) == (3, 0)


@pytest.mark.parametrize("statuses", [[404], [500] * 4])
def test_what_is_refused_for_good_does_not_hold_up_the_next(
    tmp_path: Path, receiver: Receiver, statuses: list[int]
) -> None:
    receiver.statuses = statuses
    log = EventLog(tmp_path)
    webhook = hook(tmp_path, log, receiver.url, max_attempts=4)

    run_until(webhook, lambda: webhook.delivered == 1, lambda: append(log, "bad", "good"))

    assert receiver.words() == ["good"]
    assert webhook.given_up == 1


def test_a_restart_goes_on_where_the_last_process_was(tmp_path: Path, receiver: Receiver) -> None:
    log = EventLog(tmp_path)
    first = hook(tmp_path, log, receiver.url)
    run_until(first, lambda: (tmp_path / "webhook.cursor").exists(), lambda: append(log, "one"))
    append(log, "while nobody sent")

    again = EventLog(tmp_path)
    second = hook(tmp_path, again, receiver.url)
    run_until(second, lambda: second.delivered == 2, lambda: append(again, "three"))

    assert receiver.words() == ["one", "while nobody sent", "three"]


def test_a_first_start_does_not_send_the_past(tmp_path: Path, receiver: Receiver) -> None:
    log = EventLog(tmp_path)
    append(log, "long ago")
    webhook = hook(tmp_path, log, receiver.url)

    run_until(webhook, lambda: webhook.delivered == 1, lambda: append(log, "new"))

    assert receiver.words() == ["new"]


def test_the_url_is_in_no_log(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [500]
    log = EventLog(tmp_path)
    webhook = hook(tmp_path, log, f"{receiver.url}/token-in-path")

    with caplog.at_level("DEBUG", logger="pipelines"):
        run_until(webhook, lambda: webhook.delivered == 1, lambda: append(log, "one"))

    ours = [record.getMessage() for record in caplog.records if record.name.startswith("pipe")]
    assert ours
    assert not any("token-in-path" in text for text in ours)
