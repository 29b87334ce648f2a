"""A replica's metrics: cumulative, and sent on whatever happens."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from actor_fakes import FakeMetrics
from replica_fakes import Replica

from policies.errors import Unavailable
from policies.interaction import Decision, decisions_to_batch
from policies.preference import Preference
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


def test_stored_decisions_tell_how_spread_out_they_were() -> None:
    """Two models evenly, then 0.9 to 0.1 drawn once each way; one offered alone says nothing."""
    metrics = ReplicaMetrics()
    pmfs = [([0.5, 0.5], 0), ([0.9, 0.1], 0), ([0.9, 0.1], 1), ([1.0], 0)]
    rows = decisions_to_batch([_drawn(number, *pmf) for number, pmf in enumerate(pmfs)])

    metrics.stored(rows.slice(0, 2))
    metrics.stored(rows.slice(2, 2))

    values = {name: value for name, _, value, _ in metrics.samples()}
    lopsided = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert values["barp_decision_entropy_nats_total"] == pytest.approx(math.log(2) + 2 * lopsided)
    assert values["barp_decision_entropy_max_nats_total"] == pytest.approx(3 * math.log(2))
    assert values["barp_propensity_floor_total"] == 1
    assert values["barp_decisions_recorded_total"] == 4


def _drawn(number: int, pmf: list[float], arm: int) -> Decision:
    """Make a decision drawn from a pmf."""
    names = tuple(f"m{index}" for index in range(len(pmf)))
    return Decision(
        decision_id=f"d{number}",
        decided_at=datetime(2026, 11, 24, tzinfo=UTC),
        tenant="t",
        session=None,
        prompt_hash="p",
        prompt_characters=1,
        preference=Preference(quality=0.7, cost=0.3),
        context=np.zeros(2, dtype=np.float32),
        encoder_id="e",
        arms_offered=names,
        pmf=np.array(pmf),
        arm=names[arm],
        propensity=pmf[arm],
        policy_version=1,
        price_version=1,
    )
