"""Feedback over HTTP to two real aggregators on PostgreSQL: one is killed, one more comes."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import ray
from ledgers import RULES, decision
from postgres_servers import execute
from replica_fakes import Replica, some_args
from sqlalchemy import make_url

from pipelines.aggregator import AggregatorActor
from pipelines.keeper import KeeperActor
from policies.interaction import decisions_to_batch
from policies.sharding import shard_of
from services.actors import NAMESPACE
from services.bulk import ARROW_STREAM
from services.shards import KEEPER, aggregator_names, named_ports

pytestmark = pytest.mark.ray

TENANT = "default"
PATIENCE_S = 120.0


class Actors:
    """Keeper and aggregators under the names that replicas look for."""

    def __init__(self, ledger_url: str, folder: Path) -> None:
        self.ledger = {"ledger_url": ledger_url, "rules": RULES, "orphan_after_s": 60.0}
        self.started: dict[str, Any] = {}
        dataset = {"dataset_dir": str(folder / "interactions"), "export_every_s": 0.2}
        self.start(KEEPER, KeeperActor, **dataset)

    def start(self, name: str, kind: type, **own: Any) -> None:
        """Start one, or not: it may be there."""
        remote: Any = ray.remote(kind)
        options = {"num_cpus": 0, "max_restarts": -1, "namespace": NAMESPACE}
        self.started[name] = remote.options(name=name, **options).remote(**self.ledger, **own)

    def have(self, shards: int) -> None:
        """See to it that there are so many aggregators, and that all are ready."""
        for shard, name in enumerate(aggregator_names(shards)):
            if name not in self.started:
                self.start(name, AggregatorActor, shard=shard, publisher="no-publisher")
        ray.get([actor.ready.remote() for actor in self.started.values()], timeout=PATIENCE_S)


@pytest.fixture
def actors(ray_local: None, postgres_server: str, tmp_path: Path) -> Iterator[Actors]:
    """Two aggregators and the keeper, on a schema of their own."""
    server, schema = make_url(postgres_server), f"barp_{uuid.uuid4().hex}"
    execute(server, f"CREATE SCHEMA {schema}")
    url = server.update_query_dict({"options": f"-csearch_path={schema}"})
    made = Actors(url.render_as_string(hide_password=False), tmp_path)
    made.have(2)
    yield made
    for actor in made.started.values():
        ray.kill(actor)
    execute(server, f"DROP SCHEMA {schema} CASCADE")


class Sharded(Replica):
    """A replica whose feedback goes to real aggregators."""

    def __init__(self, shards: int) -> None:
        super().__init__(args=some_args())
        self.aggregator = named_ports(shards).aggregator  # type: ignore[assignment]  # the real one


async def report(http: httpx.AsyncClient, ids: list[str], way: str) -> list[str]:
    """Report one outcome of each, again and again until it is acknowledged; return statuses."""
    rows = [
        {"decision_id": name, "event_id": "e", "quality": 1.0, "cost_usd": 0.01} for name in ids
    ]
    request: dict[str, Any] = {"json": rows}
    if way == "one":
        request = {"json": rows[0]}
    elif way == "lines":
        content = "\n".join(map(json.dumps, rows))
        request = {"content": content, "headers": {"content-type": "application/x-ndjson"}}
    elif way == "arrow":
        table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        headers = {"content-type": ARROW_STREAM}
        request = {"content": bytes(sink.getvalue()), "headers": headers}
    deadline = time.monotonic() + PATIENCE_S
    while (answer := await http.post("/v1/feedback", **request)).status_code == 503:
        assert time.monotonic() < deadline, answer.text
        await asyncio.sleep(0.05)
    assert answer.status_code in (200, 202), answer.text
    body = answer.json()
    if way == "one":
        return [body["status"]]
    if way == "arrow":
        return [status for status, number in body["counts"].items() for _ in range(number)]
    return [result["status"] for result in body["results"]]


async def report_all(replica: Replica, ids: list[str], *, kill: Any = None) -> list[str]:
    """Report on all ids, ten a call, every way in turn; kill an aggregator in the middle."""
    statuses: list[str] = []
    transport = httpx.ASGITransport(replica.api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        for turn, start in enumerate(range(0, len(ids), 10)):
            some = ids[start : start + 10]
            way = ("one", "list", "lines", "arrow")[turn % 4]
            calls = [[name] for name in some] if way == "one" else [some]
            if kill is not None and start == len(ids) // 2:
                ray.kill(kill, no_restart=False)
            for found in await asyncio.gather(*(report(http, part, way) for part in calls)):
                statuses += found
    return statuses


def test_nothing_acknowledged_is_lost_when_one_dies_and_another_comes(actors: Actors) -> None:
    replica = Sharded(2)
    ids = [replica.ids.issue(TENANT) for _ in range(160)]
    assert {shard_of(name, 2) for name in ids} == {0, 1}
    made = [decision(name, at=time.time(), tenant=TENANT) for name in ids]
    assert asyncio.run(replica.aggregator.record(decisions_to_batch(made))) == 160

    first = asyncio.run(report_all(replica, ids, kill=actors.started["aggregator-1"]))

    # One that died after its commit has its report repeated.
    assert set(first) <= {"joined", "duplicate"}
    counts = asyncio.run(replica.aggregator.counts())
    assert (counts.outcomes, counts.joined, counts.interactions) == (160, 160, 160)

    actors.have(3)
    more = Sharded(3)
    assert {shard_of(name, 3) for name in ids} == {0, 1, 2}
    assert set(asyncio.run(report_all(more, ids))) == {"duplicate"}
    rows = ray.get(actors.started[KEEPER].interactions.remote(0, 1000))
    assert sorted(rows["decision_id"].to_pylist()) == sorted(ids)
    assert rows["seq"].to_pylist() == list(range(1, 161))
