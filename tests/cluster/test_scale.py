"""The scaling model: costs come back from what they produce, waits obey queueing's laws."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster.bench_scale import read_points, run_scale
from cluster.scale_measure import Point, kind_of
from cluster.scale_model import (
    BUSY,
    RATES,
    Assumptions,
    Costs,
    at_rate,
    fit,
    group_size,
    limits,
    replica_rate,
    request_ms,
)
from cluster.scale_simulation import simulate
from policies.errors import InvalidRequest

COSTS = Costs(
    replica_idle=4.0,
    replica_fixed=0.4,
    replica_each=0.2,
    proxy=0.05,
    aggregator=0.1,
    other=0.2,
    idle=30.0,
)
GIVEN = Assumptions()


def points_of(costs: Costs) -> list[Point]:
    """What would be measured if the model were true."""
    return [
        Point(
            replicas=replicas,
            rate=rate,
            answered=float(rate),
            cpu_ms={
                "replica": costs.replica_idle * replicas / rate
                + request_ms(costs, rate / replicas),
                "proxy": costs.proxy,
                "aggregator": costs.aggregator,
                "keeper": 0.0,
                "trainer": 0.0,
                "ray": costs.idle / rate + costs.other,
            },
            p50_ms=2.0,
            p99_ms=5.0,
        )
        for replicas in (1, 2, 4)
        for rate in (50, 800, 2_000, 3_000, 4_000)
    ]


def test_the_fit_finds_the_costs_again() -> None:
    found = fit(points_of(COSTS))
    for name in ("replica_fixed", "replica_each", "proxy", "aggregator", "other", "idle"):
        assert getattr(found, name) == pytest.approx(getattr(COSTS, name), rel=0.02), name


@pytest.mark.parametrize("rate", [100.0, 1_000.0, 2_500.0, 4_000.0])
def test_groups_grow_as_the_formula_says(rate: float) -> None:
    """From one at rest to as many as come while it decides."""
    waits = simulate(COSTS, rate=rate, replicas=1, cores=1, requests=10_000)
    assert waits.group == pytest.approx(group_size(rate, fixed_s=0.0004, each_s=0.0002), rel=0.1)


def test_work_is_conserved() -> None:
    """A core is busy for as long as the groups it decided take."""
    waits = simulate(COSTS, rate=1_000.0, replicas=1, cores=1, requests=10_000)
    per_request_s = (COSTS.replica_fixed / waits.group + COSTS.replica_each) / 1000
    assert waits.busy == pytest.approx(1_000.0 * per_request_s, rel=0.02)
    assert waits.answered == pytest.approx(1.0, abs=0.01)


def test_one_at_a_time_waits_as_a_queue_with_one_server_does() -> None:
    """With no part that a group shares, all that is left is M/D/1: mean wait by its formula."""
    costs = replace(COSTS, replica_fixed=0.0, replica_each=1.0)
    waits = simulate(costs, rate=300.0, replicas=1, cores=1, requests=10_000)
    # At a load of 0.3 most are alone, so that the median is the service time.
    assert waits.p50_ms == pytest.approx(1.0, rel=0.05)
    assert 1.0 < waits.p99_ms < 4.0


def test_a_node_that_cannot_keep_up_is_seen() -> None:
    waits = simulate(COSTS, rate=6_000.0, replicas=1, cores=1, requests=10_000)
    assert waits.answered < 0.95
    assert waits.busy > 0.98


def test_replicas_beyond_the_cores_add_nothing() -> None:
    one = simulate(COSTS, rate=3_000.0, replicas=1, cores=1, requests=5_000)
    four = simulate(COSTS, rate=3_000.0, replicas=4, cores=1, requests=5_000)
    assert four.p50_ms >= one.p50_ms


def test_the_same_seed_plays_the_same() -> None:
    first, again = (
        simulate(COSTS, rate=500.0, replicas=2, cores=2, seed=7, requests=2_000) for _ in range(2)
    )
    assert first == again


def test_what_is_needed_grows_with_the_rate() -> None:
    needed = [at_rate(COSTS, GIVEN, rate) for rate in RATES]
    parts = ("aggregator_shards", "postgresql_primaries", "keepers", "publishers")
    for name in ("replicas", "nodes", *parts):
        values = [one[name] for one in needed]
        assert values == sorted(values)
        assert values[0] >= 1
    assert [one["usd_per_million"] for one in needed] == sorted(
        (one["usd_per_million"] for one in needed), reverse=True
    )


def test_a_limit_is_where_one_more_is_needed() -> None:
    for name, part in (("aggregator_shards", "aggregator"), ("postgresql_primaries", "postgresql")):
        limit = float(limits(COSTS, GIVEN)[part]["rate"])
        assert at_rate(COSTS, GIVEN, limit * 0.99)[name] == 1
        assert at_rate(COSTS, GIVEN, limit * 1.01)[name] == 2


def test_a_replica_at_its_rate_is_as_busy_as_meant() -> None:
    rate = replica_rate(COSTS)
    assert rate * request_ms(COSTS, rate) / 1000 == pytest.approx(BUSY, rel=1e-6)


def test_a_run_holds_the_model_against_its_points() -> None:
    points = points_of(COSTS)
    found = run_scale(points, GIVEN, requests=1_000, rates=(10, 1_000))
    assert [(one["replicas"], one["rate"]) for one in found["checked"]] == [
        (point.replicas, point.rate) for point in points
    ]
    for one in found["checked"]:
        measured, predicted = one["replica_ms"]["measured"], one["replica_ms"]["predicted"]
        assert predicted == pytest.approx(measured, rel=0.02)
    assert json.loads(json.dumps(found, allow_nan=False))["predicted"][1]["rate"] == 1_000


@pytest.mark.parametrize("content", ["", "{}", '{"points": []}', '{"points": [{"rate": 1}]}'])
def test_a_file_without_points_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "points.json").write_text(content)
    with pytest.raises(InvalidRequest, match="points"):
        read_points(tmp_path / "points.json")


def test_points_are_read_back_as_a_run_prints_them(tmp_path: Path) -> None:
    points = points_of(COSTS)
    file = tmp_path / "points.json"
    file.write_text(json.dumps({"points": [asdict(point) for point in points]}))
    assert read_points(file) == points


@pytest.mark.parametrize(
    ("command", "name", "kind"),
    [
        ("ray::ServeReplica:barp:Router", "ray::ServeRepli", "replica"),
        ("ray::AggregatorActor.record", "ray::Aggregator", "aggregator"),
        ("ray::KeeperActor", "ray::KeeperActo", "keeper"),
        ("/opt/haproxy -db -f x", "haproxy", "proxy"),
        ("ray::ServeController", "ray::ServeContr", "ray"),
    ],
)
def test_processes_are_told_apart(command: str, name: str, kind: str) -> None:
    assert kind_of(command, process_name=name) == kind
