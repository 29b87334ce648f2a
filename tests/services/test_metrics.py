"""A replica's metrics: cumulative, and sent on whatever happens."""

from __future__ import annotations

import asyncio

from replica_fakes import FakeMetrics, Replica

from policies.errors import Unavailable
from services.actors import Sample
from services.metrics import MetricsPusher, ReplicaMetrics


def test_samples_are_cumulative_and_have_a_kind() -> None:
    replica = Replica()
    for _ in range(3):
        replica.route()
    samples = replica.metrics.samples()
    kinds = {name: kind for name, _, _, kind in samples}
    assert kinds["barp_decisions_total"] == "counter"
    assert kinds["barp_decisions_buffered"] == "gauge"
    assert kinds["barp_overhead_seconds_bucket"] == "histogram"
    routed = sum(value for name, _, value, _ in samples if name == "barp_decisions_total")
    assert routed == 3


def test_a_push_that_fails_is_made_good_by_the_last_one() -> None:
    class Away(FakeMetrics):
        away = True

        async def push(self, source: str, samples: list[Sample]) -> int:
            if self.away:
                raise Unavailable("metrics does not answer")
            return await super().push(source, samples)

    told: list[int] = []

    async def steps() -> FakeMetrics:
        actor, metrics = Away(), ReplicaMetrics()
        pusher = MetricsPusher(actor, source="replica-1", samples=metrics.samples, told=told.append)
        pusher.start()
        metrics.swaps.inc()
        await pusher.push()
        actor.away = False
        await pusher.stop()
        return actor

    samples = asyncio.run(steps()).samples["replica-1"]
    assert ("barp_swaps_total", {}, 1.0, "counter") in samples
    assert told == [1]
