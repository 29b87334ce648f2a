"""The whole loop on a cluster of three nodes: PostgreSQL, an object store, and a node that is lost.

Long and heavy, so by itself: `make test-cluster`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cluster_load import HEADERS, Load, cluster_environment, get, serving_cluster, wait_for
from ray_clusters import RayCluster

from pipelines.dataset import InteractionDataset
from policies.sharding import shard_of

pytestmark = pytest.mark.cluster

REPLICAS = 4
SHARDS = ("aggregator-0", "aggregator-1")


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, object_store: str
) -> dict[str, str]:
    """What every node of the cluster is told."""
    return cluster_environment(tmp_path_factory.mktemp("cluster"), postgres_server, object_store)


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[RayCluster]:
    """A head and two workers, four replicas, two shards, models that cost more and less."""
    serving = serving_cluster(
        environment,
        replicas=REPLICAS,
        aggregator_shards=2,
        control_nodes="node=head",
        retrain_min_interactions=80,
        holdout_share=0.3,
    )
    with serving as running:
        yield running


def replicas(cluster: RayCluster) -> dict[str, int]:
    """Ask the publisher who holds which revision."""
    found: dict[str, int] = get(cluster, "/v1/status")["publisher"]["replicas"]
    return found


def test_replicas_are_spread_and_actors_are_where_they_were_sent(cluster: RayCluster) -> None:
    nodes = Counter(cluster.replica_nodes())
    assert sum(nodes.values()) == REPLICAS
    assert len(nodes) >= 2
    assert max(nodes.values()) <= 2
    actors = {name: node for name, (node, _) in cluster.actors().items()}
    for name in (*SHARDS, "keeper", "registry", "publisher", "trainer", "metrics"):
        assert actors[name] == "head"


def test_every_node_takes_requests(cluster: RayCluster) -> None:
    def proxies() -> set[str]:
        where = cluster.where()
        return {where["nodes"][node] for _, kind, node, _ in where["actors"] if "HAProxy" in kind}

    wait_for(lambda: proxies() == {"head", "worker-0", "worker-1"}, timeout_s=60)


def test_the_cluster_check_is_content(cluster: RayCluster, tmp_path: Path) -> None:
    """Asked on a node, of all nodes: storage, encoder and release are one."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("barp")), "cluster", "check", "--json"],
        env={**cluster.environment, "RAY_ADDRESS": cluster.address},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert {c["name"]: c["found"] for c in said["checks"] if not c["ok"]} == {}
    found = {check["name"]: check["found"] for check in said["checks"]}
    assert found["nodes"] == "3"
    assert "read on 3 nodes" in found["storage"]


def test_versions_are_learned_and_swapped_in(cluster: RayCluster) -> None:
    with Load(cluster.url) as load:
        wait_for(lambda: len(load.versions()) >= 2, timeout_s=180)
    assert load.failures == []
    status = get(cluster, "/v1/status")
    assert len(status["publisher"]["replicas"]) == REPLICAS


def test_what_two_shards_joined_is_once_in_the_object_store(
    cluster: RayCluster, environment: dict[str, str]
) -> None:
    """No node's disk holds the training data; each decision of either shard is there once."""
    with Load(cluster.url) as load:
        wait_for(lambda: len(load.acknowledged) >= 60, timeout_s=60)
    dataset = InteractionDataset(f"{environment['BARP_STORAGE_URL']}/interactions")

    def kept() -> Counter[str]:
        return Counter(dataset.read()["decision_id"].to_pylist())

    wait_for(lambda: kept().keys() >= set(load.acknowledged), timeout_s=60)
    assert set(kept().values()) == {1}
    assert {shard_of(one, len(SHARDS)) for one in load.acknowledged} == set(range(len(SHARDS)))


def test_rollback_reaches_all_replicas_within_a_second(cluster: RayCluster) -> None:
    with Load(cluster.url) as load:
        wait_for(lambda: len(load.decided) >= 20, timeout_s=60)
        url = f"{cluster.url}/v1/versions/rollback"
        move = httpx.post(url, json={"why": "test"}, headers=dict(HEADERS), timeout=30).json()
        moved_at = time.time()
        wait_for(
            lambda: len([d for d in load.decided if d[0] > moved_at + 1.0]) >= 20, timeout_s=60
        )
    assert load.failures == []
    assert (move["replicas_swapped"], move["replicas_waiting"]) == (REPLICAS, 0)
    assert {version for at, _, version in load.decided if at > moved_at + 1.0} == {move["version"]}
    assert max(get(cluster, "/v1/status")["publisher"]["swap_ms"]) < 1000.0


def test_a_lost_node_loses_no_acknowledged_outcome(cluster: RayCluster) -> None:
    """A worker goes as by a power cut; what was in flight there may fail, and nothing else."""
    before = set(replicas(cluster))
    with Load(cluster.url) as load:
        wait_for(lambda: len(load.acknowledged) >= 40, timeout_s=60)
        lost_at = time.monotonic()
        cluster.nodes.pop("worker-1").kill()
        back_s = wait_for(
            lambda: (
                len(set(replicas(cluster))) >= REPLICAS and bool(set(replicas(cluster)) - before)
            ),
            timeout_s=120,
        )
        seen = len(load.acknowledged)
        wait_for(lambda: len(load.acknowledged) >= seen + 40, timeout_s=60)
    assert back_s < 30.0
    late = [failure for failure in load.failures if failure[0] > lost_at + 10.0]
    assert late == []
    assert Counter(cluster.replica_nodes()).keys() == {"head", "worker-0"}

    # Decisions that only the lost replicas held are gone, their outcomes with nothing to join;
    # but whatever was acknowledged is there.
    for decision_id in load.acknowledged:
        record = get(cluster, f"/v1/decisions/{decision_id}")
        assert record["outcomes"], decision_id
