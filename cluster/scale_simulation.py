"""A discrete-event simulation of replicas: what callers wait, not only what processors do.

Requests come at random (Poisson). HAProxy gives each to the replica that has least to do. A replica
takes all that waits as one group and decides it on a core of its node, if one is free.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import simpy

from cluster.scale_model import MAX_GROUP, Costs

WARM_UP: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """What callers waited.

    Attributes:
        p50_ms: Median, milliseconds.
        p99_ms: 99th percentile, milliseconds.
        group: Requests decided together on average.
        busy: Share of the time that a core of the node was at work for requests.
        answered: Share of the requests that were answered by the end.
    """

    p50_ms: float
    p99_ms: float
    group: float
    busy: float
    answered: float


class _Replica:
    """One replica: requests that wait, and the process that decides them."""

    def __init__(self, world: _Node) -> None:
        self.waiting: list[float] = []
        self.in_hand = 0
        self._world = world
        self._news = world.env.event()
        world.env.process(self._decide())

    @property
    def load(self) -> int:
        """Requests that wait or are being decided."""
        return len(self.waiting) + self.in_hand

    def take(self, arrived: float) -> None:
        """Queue a request."""
        self.waiting.append(arrived)
        if not self._news.triggered:
            self._news.succeed()

    def _decide(self) -> Generator[Any, Any, None]:
        world = self._world
        while True:
            if not self.waiting:
                self._news = world.env.event()
                yield self._news
            with world.cores.request() as core:
                yield core
                group, self.waiting = self.waiting[:MAX_GROUP], self.waiting[MAX_GROUP:]
                self.in_hand = len(group)
                spent_s = (world.costs.replica_fixed + len(group) * world.costs.replica_each) / 1000
                yield world.env.timeout(spent_s)
                world.done(group, spent_s)
                self.in_hand = 0


class _Node:
    """Some replicas that share cores, and a proxy in front of them."""

    def __init__(self, costs: Costs, *, replicas: int, cores: int) -> None:
        self.env = simpy.Environment()
        self.costs = costs
        self.cores = simpy.Resource(self.env, capacity=cores)
        self.waits_s: list[tuple[float, float]] = []
        self.groups, self.core_s = 0, 0.0
        self.replicas = [_Replica(self) for _ in range(replicas)]

    def done(self, group: list[float], spent_s: float) -> None:
        """Note that a group was answered."""
        now = self.env.now
        self.waits_s.extend((arrived, now - arrived) for arrived in group)
        self.groups += 1
        self.core_s += spent_s

    def arrive(self, rng: np.random.Generator, rate: float, requests: int) -> Any:
        """Let requests come in, each to the replica with least to do."""
        for gap in rng.exponential(1 / rate, size=requests):
            yield self.env.timeout(gap)
            # Among equals the first: HAProxy would take turns, which is the same to a caller.
            min(self.replicas, key=lambda replica: replica.load).take(self.env.now)


def simulate(
    costs: Costs,
    *,
    rate: float,
    replicas: int,
    cores: int,
    path_ms: float = 0.0,
    requests: int = 20_000,
    seed: int = 0,
) -> Waits:
    """Play one node.

    Args:
        costs: What a request takes.
        rate: Requests a second on this node.
        replicas: Replicas on it.
        cores: Cores that are free for them.
        path_ms: What the way there and back takes, milliseconds; the proxy's part in it.
        requests: How many to play.
        seed: Of the arrivals.
    """
    node = _Node(costs, replicas=replicas, cores=cores)
    node.env.process(node.arrive(np.random.default_rng(seed), rate, requests))
    length_s = requests / rate
    node.env.run(until=length_s)
    waits = np.array([wait for at, wait in node.waits_s if at >= WARM_UP * length_s])
    if len(waits) == 0:
        return Waits(p50_ms=np.inf, p99_ms=np.inf, group=0.0, busy=0.0, answered=0.0)
    p50, p99 = np.percentile(waits, (50, 99)) * 1000 + path_ms
    return Waits(
        p50_ms=float(p50),
        p99_ms=float(p99),
        group=len(node.waits_s) / node.groups,
        busy=node.core_s / length_s / cores,
        answered=len(node.waits_s) / requests,
    )
