"""What a cluster can lose without losing anything that was acknowledged.

Serve's controller, the publisher for a while, the node with the ledger's actors.

Long and heavy, so by itself: `make test-cluster`. The tests stand in the order of the damage.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest
from cluster_load import HEADERS, Load, cluster_environment, get, serving_cluster, wait_for
from ray_clusters import RayCluster
from redis_servers import running_redis

pytestmark = pytest.mark.cluster

REPLICAS = 3
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
# Ray gives a node up, and restarts actors, after its health check has failed several times.
BACK_S = 120.0


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, object_store: str
) -> Iterator[dict[str, str]]:
    """What every node is told; Ray's own tables are in Redis, as on Kubernetes."""
    folder = tmp_path_factory.mktemp("failures")
    told = cluster_environment(folder, postgres_server, object_store)
    with running_redis(folder) as redis:
        yield told | {"RAY_REDIS_ADDRESS": redis, "RAY_external_storage_namespace": "barp"}


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[RayCluster]:
    """A head and two workers; ledger, registry and publisher have their actors on a worker."""
    serving = serving_cluster(
        environment,
        replicas=REPLICAS,
        control_nodes="node=worker-0",
        retrain_min_interactions=10_000,
    )
    with serving as running:
        yield running


def promote(cluster: RayCluster, version: int, *, timeout_s: float = 60.0) -> httpx.Response:
    """Ask for a version to serve."""
    url = f"{cluster.url}/v1/versions/{version}/promote"
    return httpx.post(url, json={"why": "test"}, headers=dict(HEADERS), timeout=timeout_s)


def serving(cluster: RayCluster) -> set[int]:
    """Ask some replicas which version decides."""
    found = set()
    for _ in range(4 * REPLICAS):
        with httpx.Client(base_url=cluster.url, headers=HEADERS, timeout=30) as http:
            answer = http.post("/v1/route", json={"prompt": "hello"}).raise_for_status()
            found.add(int(answer.json()["policy_version"]))
    return found


def eventually(promise: Callable[[], bool], *, timeout_s: float = BACK_S) -> float:
    """Wait until a promise holds; what cannot be asked yet does not hold."""

    def holds() -> bool:
        try:
            return promise()
        except (httpx.HTTPError, AssertionError):
            return False

    return wait_for(holds, timeout_s=timeout_s)


def assert_nothing_acknowledged_is_lost(cluster: RayCluster, load: Load) -> None:
    for decision_id in load.acknowledged:
        assert get(cluster, f"/v1/decisions/{decision_id}")["outcomes"], decision_id


def test_routing_goes_on_without_serves_controller(cluster: RayCluster) -> None:
    """It is killed, and comes back; replicas and proxies do not notice."""
    _, before = cluster.actors()[CONTROLLER]
    with Load(cluster.url, clients=2) as load:
        wait_for(lambda: len(load.acknowledged) >= 20, timeout_s=60)
        os.kill(before, signal.SIGKILL)
        eventually(lambda: cluster.actors()[CONTROLLER][1] != before)
        seen = len(load.acknowledged)
        wait_for(lambda: len(load.acknowledged) >= seen + 20, timeout_s=60)
    assert load.failures == []
    assert_nothing_acknowledged_is_lost(cluster, load)


def test_a_publisher_cut_off_stops_nobody_and_replicas_catch_up(cluster: RayCluster) -> None:
    """As in a partition: its process takes no step, and its connections stay open."""
    versions = sorted(v["version"] for v in get(cluster, "/v1/versions")["versions"])
    (first,) = serving(cluster)
    other = next(version for version in versions if version != first)
    _, publisher = cluster.actors()["publisher"]
    process = psutil.Process(publisher)
    with Load(cluster.url, clients=2) as load:
        wait_for(lambda: len(load.acknowledged) >= 20, timeout_s=60)
        process.suspend()
        try:
            cut_off = len(load.acknowledged)
            answer = promote(cluster, other)
            wait_for(lambda: len(load.acknowledged) >= cut_off + 20, timeout_s=60)
        finally:
            process.resume()
        began = time.monotonic()
        eventually(lambda: serving(cluster) == {other}, timeout_s=60)
        caught_up_s = time.monotonic() - began
    assert answer.status_code in (200, 503), answer.text
    assert load.failures == []
    assert caught_up_s < 30.0
    assert_nothing_acknowledged_is_lost(cluster, load)


def test_the_node_of_the_ledgers_actors_is_lost(cluster: RayCluster) -> None:
    """They come up on another; feedback is refused meanwhile, and none of what was taken goes."""
    assert cluster.actors()["publisher"][0] == "worker-0"
    with Load(cluster.url, clients=2) as load:
        wait_for(lambda: len(load.acknowledged) >= 20, timeout_s=60)
        cluster.nodes.pop("worker-0").kill()
        seen = len(load.acknowledged)
        eventually(lambda: len(load.acknowledged) >= seen + 40)
    assert cluster.actors()["publisher"][0] != "worker-0"
    assert_nothing_acknowledged_is_lost(cluster, load)
    (version,) = serving(cluster)
    other = next(
        v["version"] for v in get(cluster, "/v1/versions")["versions"] if v["version"] != version
    )
    eventually(lambda: promote(cluster, other).status_code == 200)
    eventually(lambda: serving(cluster) == {other}, timeout_s=30)
