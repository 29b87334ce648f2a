"""`barp bench scale`: what it takes to answer any rate, from ten requests a second to a million.

The costs are fitted to measured points, the waits simulated; both are held against the points, so
that whoever reads a prediction sees how wrong the model is where it can be checked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Final

from cluster.scale_measure import Point
from cluster.scale_model import RATES, Assumptions, Costs, at_rate, fit, limits, replica_rate
from cluster.scale_model import request_ms as replica_request_ms
from cluster.scale_simulation import simulate
from policies.errors import InvalidRequest

# Of the measuring machine; the load generator takes its part of them.
MEASURED_CORES: Final = 2


def read_points(path: Path) -> list[Point]:
    """Read measured points: what `barp bench scale --json` printed.

    Raises:
        InvalidRequest: The file holds no points.
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        points = [Point(**point) for point in stated["points"]]
        if not points:
            raise ValueError("it holds none")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(
            f"points={path}: {error}",
            field="points",
            value=str(path),
            allowed="what `barp bench scale --json` printed",
        ) from error
    return points


def run_scale(
    points: Sequence[Point],
    given: Assumptions,
    *,
    requests: int = 20_000,
    seed: int = 0,
    rates: Sequence[float] = RATES,
) -> dict[str, Any]:
    """Fit, check and predict; return plain JSON values.

    Args:
        points: What was measured.
        given: What was not.
        requests: Requests simulated for each rate.
        seed: Of their arrivals.
        rates: Requests a second to predict for.
    """
    costs = fit(points)
    path_ms = _path_ms(points, costs, requests=requests, seed=seed)
    return {
        "costs_ms": asdict(costs),
        "path_ms": path_ms,
        "assumptions": asdict(given),
        "checked": [_checked(p, costs, path_ms, requests=requests, seed=seed) for p in points],
        "limits": limits(costs, given),
        "predicted": [
            _predicted(rate, costs, given, path_ms, requests=requests, seed=seed) for rate in rates
        ],
    }


def _path_ms(points: Sequence[Point], costs: Costs, *, requests: int, seed: int) -> float:
    """Fit what is not the replica's own: the way there and back, at the lowest rate of each."""
    lowest = [p for p in points if p.rate == min(q.rate for q in points)]
    left = [p.p50_ms - _simulated(p, costs, 0.0, requests=requests, seed=seed)[0] for p in lowest]
    return max(0.0, median(left))


def _simulated(
    point: Point, costs: Costs, path_ms: float, *, requests: int, seed: int
) -> tuple[float, float]:
    """Simulate a measured point; return its median and its 99th percentile, milliseconds."""
    waits = simulate(
        costs,
        rate=point.rate,
        replicas=point.replicas,
        cores=MEASURED_CORES,
        path_ms=path_ms,
        requests=requests,
        seed=seed,
    )
    return waits.p50_ms, waits.p99_ms


def _checked(
    point: Point, costs: Costs, path_ms: float, *, requests: int, seed: int
) -> dict[str, Any]:
    """Hold a prediction against what was measured."""
    p50_ms, p99_ms = _simulated(point, costs, path_ms, requests=requests, seed=seed)
    idle = costs.replica_idle * point.replicas / point.rate
    return {
        "replicas": point.replicas,
        "rate": point.rate,
        "replica_ms": {
            "measured": point.cpu_ms["replica"],
            "predicted": idle + replica_request_ms(costs, point.rate / point.replicas),
        },
        "p50_ms": {"measured": point.p50_ms, "predicted": p50_ms},
        "p99_ms": {"measured": point.p99_ms, "predicted": p99_ms},
    }


def _predicted(
    rate: float, costs: Costs, given: Assumptions, path_ms: float, *, requests: int, seed: int
) -> dict[str, Any]:
    """Predict one rate; what callers wait is that of one node's share of it."""
    needed = at_rate(costs, given, rate)
    nodes, replicas = needed["nodes"], needed["replicas"]
    waits = simulate(
        costs,
        rate=rate / nodes,
        replicas=max(1, round(replicas / nodes)),
        cores=given.cores_per_node,
        path_ms=path_ms,
        requests=requests,
        seed=seed,
    )
    return needed | {
        "p50_ms": waits.p50_ms,
        "p99_ms": waits.p99_ms,
        "group": waits.group,
        "replica_rate": replica_rate(costs),
        "recorded_after_ms": given.flush_ms,
    }
