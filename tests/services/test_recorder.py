"""The recorder: nothing twice, nothing out of order, nothing lost but what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal

import pytest
from actor_fakes import FakeAggregator
from replica_fakes import Replica

from policies.interaction import Decision
from services.decider import RouteRequest
from services.metrics import ReplicaMetrics
from services.recorder import BATCH_ROWS, Recorder


def some_decisions(number: int) -> list[Decision]:
    """Return real decisions, in order."""
    replica = Replica()
    for _ in range(number):
        asyncio.run(replica.router.decide([RouteRequest(prompt="x")]))
    return list(replica.decisions)


DECISIONS = 8


@pytest.fixture(scope="module")
def decisions() -> list[Decision]:
    """Eight decisions."""
    return some_decisions(DECISIONS)


class Parts:
    """A recorder, what it writes to and what it counts."""

    def __init__(self, *, capacity: int, when_full: Literal["drop", "wait"]) -> None:
        self.aggregator, self.metrics = FakeAggregator(), ReplicaMetrics()
        self.recorder = Recorder(
            self.aggregator,
            flush_interval_s=0.001,
            capacity=capacity,
            when_full=when_full,
            metrics=self.metrics,
        )

    def count(self, name: str) -> float:
        """Read a metric."""
        return sum(value for metric, _, value, _ in self.metrics.samples() if metric == name)

    def stored(self) -> list[str]:
        """List the ids of all decisions that arrived, in order."""
        return [
            name for batch in self.aggregator.batches for name in batch["decision_id"].to_pylist()
        ]


async def until(holds: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds."""
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)


def run(steps: Coroutine[Any, Any, None]) -> None:
    """Run a test's steps in an event loop."""
    asyncio.run(steps)


def test_decisions_arrive_once_and_in_order(decisions: list[Decision]) -> None:
    parts = Parts(capacity=100, when_full="wait")

    async def steps() -> None:
        parts.recorder.start()
        for decision in decisions:
            await parts.recorder.add([decision])
        await until(lambda: parts.recorder.buffered == 0)
        await parts.recorder.drain(timeout_s=10)

    run(steps())
    assert parts.stored() == [decision.decision_id for decision in decisions]
    assert parts.count("barp_decisions_recorded_total") == len(decisions)


def test_what_the_ledger_missed_is_sent_again(decisions: list[Decision]) -> None:
    parts = Parts(capacity=100, when_full="wait")

    async def steps() -> None:
        parts.aggregator.away = True
        parts.recorder.start()
        await parts.recorder.add(decisions)
        await until(lambda: parts.count("barp_flush_failures_total") >= 1)
        parts.aggregator.away = False
        await until(lambda: parts.recorder.buffered == 0)
        await parts.recorder.drain(timeout_s=10)

    run(steps())
    assert parts.stored() == [decision.decision_id for decision in decisions]


def test_drain_hands_over_everything_at_once(decisions: list[Decision]) -> None:
    parts = Parts(capacity=BATCH_ROWS * 3, when_full="wait")
    many = decisions * (BATCH_ROWS // DECISIONS + 1)

    async def steps() -> None:
        parts.recorder.start()
        await parts.recorder.add(many)
        assert await parts.recorder.drain(timeout_s=10) == 0

    run(steps())
    assert len(parts.stored()) == len(many)
    assert len(parts.aggregator.batches) == 2
    assert not parts.recorder.alive


def test_drain_says_what_it_could_not_hand_over(decisions: list[Decision]) -> None:
    parts = Parts(capacity=100, when_full="wait")

    async def steps() -> None:
        parts.aggregator.away = True
        parts.recorder.start()
        await parts.recorder.add(decisions)
        assert await parts.recorder.drain(timeout_s=0.05) == len(decisions)

    run(steps())


def test_a_full_buffer_drops_and_counts_where_that_is_wanted(decisions: list[Decision]) -> None:
    parts = Parts(capacity=3, when_full="drop")
    run(parts.recorder.add(decisions))
    assert parts.recorder.buffered == 3
    assert parts.count("barp_decisions_dropped_total") == len(decisions) - 3
    assert parts.count("barp_decisions_buffered") == 3


def test_a_full_buffer_waits_for_room_where_that_is_wanted(decisions: list[Decision]) -> None:
    parts = Parts(capacity=3, when_full="wait")

    async def steps() -> None:
        parts.aggregator.away = True
        parts.recorder.start()
        waiting = [asyncio.create_task(parts.recorder.add([one])) for one in decisions]
        await until(lambda: parts.count("barp_flush_failures_total") >= 1)
        assert parts.recorder.buffered == 3
        assert sum(task.done() for task in waiting) == 3
        parts.aggregator.away = False
        await asyncio.gather(*waiting)
        assert await parts.recorder.drain(timeout_s=10) == 0

    run(steps())
    assert parts.stored() == [decision.decision_id for decision in decisions]
    assert parts.count("barp_decisions_dropped_total") == 0


def test_a_decision_the_ledger_refuses_for_good_does_not_block_the_others(
    decisions: list[Decision],
) -> None:
    async def steps() -> None:
        parts = Parts(capacity=100, when_full="wait")
        bad = decisions[3].decision_id
        parts.aggregator.refused = {bad}
        await parts.recorder.add(decisions)
        parts.recorder.start()
        assert await parts.recorder.drain(timeout_s=10) == 0
        assert parts.stored() == [d.decision_id for d in decisions if d.decision_id != bad]
        assert parts.count("barp_decisions_dropped_total") == 1

    run(steps())
