"""What a replica counts about itself, and how it leaves for the actor that sums all replicas."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from policies.errors import Unavailable
from policies.interaction import Decision, JoinStatus
from services.actors import MetricsPort, Sample

PUSH_INTERVAL_S: Final = 1.0
# Seconds; from a static encoder's tenth of a millisecond to a queue that is far too long.
BUCKETS: Final = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0,
)  # fmt: skip

logger = logging.getLogger(__name__)


class ReplicaMetrics:
    """Counters, gauges and one histogram in a registry of this replica's own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._answers: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.requests = Counter(
            "barp_requests", "HTTP requests", ["route", "status"], registry=registry
        )
        self.overhead = Histogram(
            "barp_overhead_seconds",
            "The router's own time per request, s",
            ["route"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._decisions = Counter(
            "barp_decisions", "Requests routed", ["model", "policy_version"], registry=registry
        )
        self._feedback = Counter(
            "barp_feedback", "Outcomes reported", ["status"], registry=registry
        )
        self.swaps = Counter("barp_swaps", "Publications taken over", registry=registry)
        self.refused_publications = Counter(
            "barp_publications_refused", "Publications that do not fit", registry=registry
        )
        self.publisher_failures = Counter(
            "barp_publisher_failures",
            "Long polls that failed, or brought what does not fit",
            registry=registry,
        )
        self.policy_version = Gauge(
            "barp_policy_version", "Version that decides", ["replica"], registry=registry
        )
        self.recorded = Counter(
            "barp_decisions_recorded", "Decisions handed to the ledger", registry=registry
        )
        self._entropy = Counter(
            "barp_decision_entropy_nats", "Entropy of the pmfs drawn from", registry=registry
        )
        self._entropy_max = Counter(
            "barp_decision_entropy_max_nats",
            "Entropy that even pmfs over the models offered would have had",
            registry=registry,
        )
        self._floor = Counter(
            "barp_propensity_floor",
            "Decisions for a model of the least probability offered, of two or more",
            registry=registry,
        )
        self.dropped = Counter(
            "barp_decisions_dropped",
            "Decisions not recorded: buffer full, or refused by the ledger",
            registry=registry,
        )
        self.taken_over = Counter(
            "barp_decisions_taken_over",
            "Decisions recorded for a replica that was killed, some of them once more",
            registry=registry,
        )
        self.spool_failures = Counter(
            "barp_spool_failures",
            "Times that decisions could not be written to disk before they were recorded",
            registry=registry,
        )
        self.flush_failures = Counter(
            "barp_flush_failures", "Hand-overs to the ledger to be repeated", registry=registry
        )
        self.buffered = Gauge(
            "barp_decisions_buffered", "Decisions waiting for the ledger", registry=registry
        )

    def answered(self, route: str, status: int, *, spent_s: float) -> None:
        """Count one HTTP answer and what it took, seconds."""
        # To find a child takes longer than to count, so those found once are kept.
        key = route, status
        found = self._answers.get(key)
        if found is None:
            found = self._answers[key] = (
                self.requests.labels(route, str(status)),
                self.overhead.labels(route),
            )
        found[0].inc()
        found[1].observe(spent_s)

    def decided(self, decisions: Sequence[Decision]) -> None:
        """Count decisions by model and version."""
        counted = Tally((decision.arm, decision.policy_version) for decision in decisions)
        for (arm, version), number in counted.items():
            self._decisions.labels(arm, str(version)).inc(number)

    def stored(self, rows: pa.RecordBatch) -> None:
        """Count decisions the ledger has: how spread out they were, and how many hit the floor.

        Args:
            rows: Schema DECISION_SCHEMA.
        """
        self.recorded.inc(len(rows))
        offsets = np.asarray(rows["pmf"].offsets)
        pmf = np.asarray(rows["pmf"].values)[offsets[0] : offsets[-1]]
        if len(pmf) == 0:
            return
        starts, sizes = offsets[:-1] - offsets[0], np.diff(offsets)
        self._entropy.inc(max(0.0, -float(np.sum(pmf * np.log(np.maximum(pmf, 1e-300))))))
        self._entropy_max.inc(float(np.log(sizes).sum()))
        least = np.minimum.reduceat(pmf, starts)
        drawn = np.asarray(rows["propensity"])
        self._floor.inc(int(((drawn <= least) & (sizes > 1) & (drawn < 1.0 / sizes)).sum()))

    def reported(self, status: JoinStatus, *, number: int = 1) -> None:
        """Count outcomes by what became of them."""
        self._feedback.labels(status.value).inc(number)

    def samples(self) -> list[Sample]:
        """Return all samples, cumulative since the replica's start: (name, labels, value, kind)."""
        return [
            (sample.name, dict(sample.labels), float(sample.value), family.type)
            for family in self._registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        ]


class MetricsPusher:
    """Sends the samples each second; a push that fails is made good by the next."""

    def __init__(
        self,
        port: MetricsPort,
        *,
        source: str,
        samples: Callable[[], list[Sample]],
        told: Callable[[int], None],
    ) -> None:
        """Take where to send what; `told` learns how many sources there are."""
        self._port, self._source, self._samples = port, source, samples
        self._told = told
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; call within the event loop."""
        self._task = asyncio.create_task(self._run(), name="push-metrics")

    async def push(self) -> None:
        """Send once; a sum that is away is logged, for the samples are cumulative."""
        try:
            self._told(await self._port.push(self._source, self._samples()))
        except Unavailable as error:
            logger.info("metrics stay here for now: %s", error)

    async def stop(self) -> None:
        """Send a last time and end."""
        if self._task is not None:
            self._task.cancel()
            await self.push()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PUSH_INTERVAL_S)
            await self.push()
