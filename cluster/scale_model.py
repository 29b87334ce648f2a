"""What a request costs each part of the service, and what that means at any rate.

Fitted to measured points (`cluster.scale_measure`): a kind of process takes so much time of a
processor each second, and so much each request. A replica decides together what waits:
its requests get cheaper as it gets busier, for a group of n takes fixed + n * each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.optimize import differential_evolution, nnls

from cluster.scale_measure import Point

# A part that is this busy on average still answers bursts without a queue to speak of.
BUSY: Final = 0.6
# Rows in one transaction are at most this many bytes on disk, index and log included: a decision
# with a context of 269 numbers is some 2.2 KB, an outcome 0.2, and PostgreSQL writes each twice.
BYTES_PER_REQUEST: Final = 4_800
# Prompts that a replica decides together at most, see `services.gathering`.
MAX_GROUP: Final = 32
# Enough where a replica is not nearly full; there it errs low, and the simulation does not.
ITERATIONS: Final = 60
SECONDS_PER_DAY: Final = 86_400
RATES: Final = (10, 100, 1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Processor time, milliseconds.

    Attributes:
        replica_idle: A replica's, each second, whatever comes.
        replica_fixed: For each group of requests that it decides together.
        replica_each: For each request in it.
        proxy: HAProxy's, a request.
        aggregator: The aggregator's, a request: one decision joined and stored.
        other: Everything else of Ray and of the service, a request.
        idle: Everything else, each second.
    """

    replica_idle: float
    replica_fixed: float
    replica_each: float
    proxy: float
    aggregator: float
    other: float
    idle: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What was not measured here; each can be set.

    Attributes:
        cores_per_node: Cores of a node that runs replicas and a proxy.
        usd_per_core_hour: What a core costs.
        postgres_rows_per_s: Rows one primary takes durably, decisions and outcomes.
        keeper_rows_per_s: Interactions that the keeper takes from the ledger to the dataset; `barp
            bench ledger` measures it, as joined_per_s.
        fanout_ms: The publisher's time for one replica's poll and acknowledgement.
        poll_s: How often each replica asks the publisher and reports its counters, s.
        flush_ms: How long a decision waits in the replica before it is sent to the ledger.
        swap_within_s: How soon every replica must have a new version, s.
    """

    cores_per_node: int = 8
    usd_per_core_hour: float = 0.04
    postgres_rows_per_s: float = 20_000.0
    keeper_rows_per_s: float = 19_000.0
    fanout_ms: float = 1.4
    poll_s: float = 1.0
    flush_ms: float = 50.0
    swap_within_s: float = 1.0


def group_size(rate: float, *, fixed_s: float, each_s: float) -> float:
    """Return how many requests a replica decides together on average, at `rate` a second.

    While it decides one group the next one gathers, a Poisson number with mean
    m = rate * (fixed + n * each); where none came, the next request is a group by itself. So
    n = E[max(1, X)] = m + exp(-m).

    >>> round(group_size(10.0, fixed_s=0.001, each_s=0.0001), 4)
    1.0001
    """
    if rate * each_s >= 1.0:
        return math.inf
    size = 1.0
    for _ in range(ITERATIONS):
        gathered = rate * (fixed_s + size * each_s)
        size = gathered + math.exp(-gathered)
    return size


def fit(points: Sequence[Point]) -> Costs:
    """Fit the costs to measured points, relative errors weighing alike."""
    rate = np.array([point.rate for point in points], dtype=float)
    replicas = np.array([point.replicas for point in points], dtype=float)
    spent = {kind: np.array([p.cpu_ms[kind] for p in points]) for kind in points[0].cpu_ms}

    def replica_ms(idle: float, fixed: float, each: float) -> np.ndarray[Any, Any]:
        sizes = [
            # At most what a replica takes at once, so that the misfit stays finite.
            min(group_size(r / n, fixed_s=fixed / 1000, each_s=each / 1000), MAX_GROUP)
            for r, n in zip(rate, replicas, strict=True)
        ]
        found: np.ndarray[Any, Any] = idle * replicas / rate + fixed / np.array(sizes) + each
        return found

    def misfit(parameters: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        error: np.ndarray[Any, Any] = replica_ms(*np.exp(parameters)) / spent["replica"] - 1
        return error

    # Where groups begin to grow the misfit has a kink, at which a search by slopes stops.
    bounds = [np.log([0.01, 1000.0]), np.log([0.001, 20.0]), np.log([0.001, 20.0])]
    best = differential_evolution(
        lambda parameters: float(np.sum(misfit(parameters) ** 2)), bounds, rng=0, tol=1e-10
    )
    idle, fixed, each = np.exp(best.x)
    # Nothing is reported while points are measured: the keeper then only asks and finds nothing.
    per_s, other = _line(1 / rate, spent["ray"] + spent["keeper"])
    _, aggregator = _line(1 / rate, spent["aggregator"])
    _, proxy = _line(1 / rate, spent["proxy"])
    return Costs(
        replica_idle=float(idle),
        replica_fixed=float(fixed),
        replica_each=float(each),
        proxy=proxy,
        aggregator=aggregator,
        other=other,
        idle=per_s,
    )


def _line(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Fit y = slope * x + level, neither below 0."""
    weights = 1 / np.maximum(y, 1e-9)
    found, _ = nnls(np.stack([x, np.ones_like(x)], axis=1) * weights[:, None], y * weights)
    return float(found[0]), float(found[1])


def request_ms(costs: Costs, rate_per_replica: float) -> float:
    """Return a replica's processor time a request at its rate, what it takes idle left out."""
    size = group_size(
        rate_per_replica, fixed_s=costs.replica_fixed / 1000, each_s=costs.replica_each / 1000
    )
    return costs.replica_fixed / size + costs.replica_each


def replica_rate(costs: Costs) -> float:
    """Return the requests a second that keep a replica `BUSY`, one core its own."""
    low, high = 1.0, 1000 / costs.replica_each
    for _ in range(60):
        middle = (low + high) / 2
        busy = middle * request_ms(costs, middle) / 1000
        low, high = (middle, high) if busy < BUSY else (low, middle)
    return low


def limits(costs: Costs, given: Assumptions) -> dict[str, dict[str, float | str]]:
    """Return up to which rate one of each part will do, and what to do beyond.

    The encoder works inside the replica, so its limit is the replica's.
    """
    one_replica = replica_rate(costs)
    most_replicas = 1000 * given.swap_within_s / given.fanout_ms
    listeners = 1000 * BUSY * given.poll_s / given.fanout_ms
    return {
        "replica and encoder": {"rate": one_replica, "then": "more replicas: autoscaling"},
        "proxy": {"rate": BUSY * 1000 / costs.proxy, "then": "a proxy on every node, or threads"},
        "aggregator": {"rate": BUSY * 1000 / costs.aggregator, "then": "aggregator shards"},
        "postgresql": {
            "rate": given.postgres_rows_per_s / 2,
            "then": "a primary for each group of shards, or the table in partitions by tenant",
        },
        "keeper": {
            "rate": BUSY * given.keeper_rows_per_s,
            "then": "a ledger with a dataset of its own for each group of tenants",
        },
        "publisher": {
            "rate": one_replica * min(most_replicas, listeners),
            "then": "one publisher a node, fed by the first",
        },
    }


def at_rate(costs: Costs, given: Assumptions, rate: float) -> dict[str, Any]:
    """Return what it takes to answer `rate` requests a second, and what it costs."""
    replicas = max(2, math.ceil(rate / replica_rate(costs)))
    per_replica = rate / replicas
    core_ms = {
        "replicas": rate * request_ms(costs, per_replica) + replicas * costs.replica_idle,
        "proxies": rate * costs.proxy,
        "aggregators": rate * costs.aggregator,
        "other": rate * costs.other + costs.idle,
    }
    cores = {name: spent / 1000 for name, spent in core_ms.items()}
    nodes = max(2, math.ceil(sum(cores.values()) / (BUSY * given.cores_per_node)))
    nodes = max(nodes, math.ceil(replicas / given.cores_per_node))
    usd_per_hour = nodes * given.cores_per_node * given.usd_per_core_hour
    one = {name: float(limit["rate"]) for name, limit in limits(costs, given).items()}
    return {
        "rate": rate,
        "replicas": replicas,
        "nodes": nodes,
        "cores": cores,
        "usd_per_hour": usd_per_hour,
        "usd_per_million": usd_per_hour / 3600 / rate * 1e6,
        "aggregator_shards": max(1, math.ceil(rate / one["aggregator"])),
        "postgresql_primaries": max(1, math.ceil(rate / one["postgresql"])),
        "keepers": max(1, math.ceil(rate / one["keeper"])),
        "publishers": max(1, math.ceil(rate / one["publisher"])),
        "proxy_busy": cores["proxies"] / nodes,
        "ledger_rows_per_day": 2 * rate * SECONDS_PER_DAY,
        "ledger_gb_per_day": rate * BYTES_PER_REQUEST * SECONDS_PER_DAY / 1e9,
        "swap_ms": replicas * given.fanout_ms,
        "fullest": max(
            ("proxy", "aggregator", "postgresql", "keeper", "publisher"),
            key=lambda name: rate / (one[name] * (nodes if name == "proxy" else 1)),
        ),
    }
