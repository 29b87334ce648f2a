"""The outbox: never waits, never fails its owner, delivers in order; and the actor behind it."""

from __future__ import annotations

import asyncio
import threading
import uuid
from pathlib import Path
from typing import Any, cast

import pytest
import ray

from pipelines.events import EventOutbox, to_actor
from pipelines.metrics import Sample
from pipelines.metrics_actor import MetricsActor
from pipelines.metrics_state import STATE_FILE
from policies.errors import InvalidRequest, Unavailable
from policies.events import Event, EventKind


def test_events_are_delivered_in_order(tmp_path: Path) -> None:
    got: list[Event] = []
    outbox = EventOutbox(got.append, clock=lambda: 0.0)
    for number in range(50):
        outbox.emit(EventKind.TRAINING, who="trainer", why=str(number), version=number)

    assert outbox.flush(30)
    assert [event.why for event in got] == [str(number) for number in range(50)]


def test_emit_does_not_wait_for_a_log_that_hangs() -> None:
    let_go, got = threading.Event(), list[str]()

    def hang(event: Event) -> None:
        let_go.wait(30)
        got.append(event.why)

    outbox = EventOutbox(hang)
    outbox.emit(EventKind.TRAINING, who="", why="one")
    outbox.emit(EventKind.TRAINING, who="", why="two")
    assert not outbox.flush(0)
    let_go.set()
    assert outbox.flush(30)
    assert got == ["one", "two"]


def test_a_log_that_is_away_gets_every_event_later() -> None:
    failures, got = [Unavailable("away")] * 3, list[str]()

    def sometimes(event: Event) -> None:
        if failures:
            raise failures.pop()
        got.append(event.why)

    outbox = EventOutbox(sometimes, retry_first_s=0.001)
    outbox.emit(EventKind.TRAINING, who="", why="one")
    outbox.emit(EventKind.TRAINING, who="", why="two")

    assert outbox.flush(30)
    assert got == ["one", "two"]


def test_the_outbox_is_bounded_and_says_what_it_lost(caplog: pytest.LogCaptureFixture) -> None:
    let_go, got = threading.Event(), list[str]()

    def hang(event: Event) -> None:
        let_go.wait(30)
        got.append(event.why)

    outbox = EventOutbox(hang, max_waiting=3)
    for number in range(10):
        outbox.emit(EventKind.TRAINING, who="", why=str(number))
    let_go.set()

    assert outbox.flush(30)
    assert got[-3:] == ["7", "8", "9"]
    assert outbox.dropped >= 6
    assert "an event is lost" in caplog.text


def test_one_bad_event_does_not_end_the_outbox() -> None:
    got: list[str] = []

    def picky(event: Event) -> None:
        if event.why == "bad":
            raise ZeroDivisionError
        got.append(event.why)

    outbox = EventOutbox(picky)
    for why in ("bad", "good"):
        outbox.emit(EventKind.TRAINING, who="", why=why)

    assert outbox.flush(30)
    assert got == ["good"]
    assert outbox.dropped == 1


def test_a_private_detail_is_refused_where_it_is_said() -> None:
    with pytest.raises(InvalidRequest):
        EventOutbox(lambda event: None).emit(EventKind.TRAINING, who="", why="", prompt="secret")


def test_breaches_are_counted_by_what_was_worse(tmp_path: Path) -> None:
    async def counted() -> str:
        actor = MetricsActor(str(tmp_path))
        for what in ("reward", "feedback", "feedback"):
            kind = EventKind.GUARDRAIL_BREACH
            event = Event.now(kind, now=0.0, who="guardrail", why="", version=2, what=what)
            await actor.take_event(event)
        return await actor.text()

    page = asyncio.run(counted())
    for what, count in (("reward", 1.0), ("cost", 0.0), ("feedback", 2.0)):
        assert f'barp_guardrail_breaches_total{{what="{what}"}} {count}' in page


@pytest.mark.ray
def test_events_reach_the_actor_and_survive_its_end(ray_local: None, tmp_path: Path) -> None:
    name = f"metrics-{uuid.uuid4().hex[:8]}"

    def start() -> Any:
        options = {"name": name, "num_cpus": 0}
        return cast(Any, ray.remote(MetricsActor)).options(**options).remote(str(tmp_path))

    outbox = EventOutbox(lambda event: to_actor(event, name), retry_first_s=0.05)
    outbox.emit(EventKind.PROMOTION, who="ann", why="before it runs", version=1)
    first = start()
    assert outbox.flush(60)
    page = ray.get(first.text.remote(), timeout=60)
    assert 'barp_events_total{kind="promotion"} 1.0' in page
    ray.kill(first)
    outbox.emit(EventKind.ROLLBACK, who="ann", why="while it is away", version=1)
    second = start()

    assert outbox.flush(60)
    answer = ray.get(second.events.remote(), timeout=60)
    assert [event["kind"] for event in answer["events"]] == ["promotion", "rollback"]
    assert answer["last_seq"] == 2
    ray.kill(second)


def requests(number: float, **labels: str) -> list[Sample]:
    """Say how many requests a replica has answered."""
    return [("barp_requests_total", labels, number, "counter")]


def test_counters_go_on_after_a_restart(tmp_path: Path) -> None:
    """The first actor is told no end: it is as if it had been killed."""

    async def counted() -> str:
        first = MetricsActor(str(tmp_path))
        event = Event.now(EventKind.VERDICT, now=0.0, who="gate", why="", version=2, promote=True)
        await first.take_event(event)
        await first.push("replica", requests(100.0, status="200"))
        async with asyncio.timeout(60):
            while not (tmp_path / STATE_FILE).exists():
                await asyncio.sleep(0.05)
        second = MetricsActor(str(tmp_path))
        await second.push("replica", requests(120.0, status="200"))
        await second.push("another", requests(5.0, status="200"))
        return await second.text()

    page = asyncio.run(counted())
    assert 'barp_requests_total{status="200"} 125.0' in page
    assert 'barp_events_total{kind="verdict"} 1.0' in page
    assert 'barp_verdicts_total{promote="true"} 1.0' in page


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"hub": 1}', b'{"hub": {"totals": [1]}}'])
def test_damaged_totals_are_said_to_be_and_stop_nothing(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)

    async def counted() -> str:
        actor = MetricsActor(str(tmp_path))
        await actor.push("replica", requests(3.0))
        return await actor.text()

    assert "barp_requests_total 3.0" in asyncio.run(counted())
    assert "begin anew" in caplog.text
