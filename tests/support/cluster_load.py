"""Load on a cluster of several nodes, and what an operator asks it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from encoders import small_static_encoder
from ray_clusters import RayCluster, ray_cluster, wait_until_ready
from service_load import COST_USD, QUALITY, Clients

KEY: Final = "k" * 40
HEADERS: Final[Mapping[str, str]] = {"authorization": f"Bearer {KEY}"}


class Load(Clients):
    """Clients that route and report until they are stopped; each request on a new connection.

    A new connection, as callers behind a load balancer have them: one that is kept would tie a
    client to the node whose HAProxy took it first.
    """

    def __init__(self, url: str, *, clients: int = 4, pause_s: float = 0.01) -> None:
        self.decided: list[tuple[float, str, int]] = []
        self.acknowledged: list[str] = []
        self.failures: list[tuple[float, str]] = []
        self._url, self._pause_s = url, pause_s
        super().__init__(clients)

    def _run(self, number: int) -> None:
        for turn, weight in self._turns(number):
            began = time.monotonic()
            try:
                self._once(f"Question {turn} of client {number}", weight)
            except httpx.HTTPError as error:
                self.failures.append((began, repr(error)))
            time.sleep(self._pause_s)

    def _once(self, prompt: str, weight: float) -> None:
        with httpx.Client(base_url=self._url, headers=dict(HEADERS), timeout=30.0) as http:
            body = {"prompt": prompt, "preference": {"quality": weight, "cost": 1 - weight}}
            decision = http.post("/v1/route", json=body).raise_for_status().json()
            self.decided.append((time.time(), decision["decision_id"], decision["policy_version"]))
            model = decision["model"]
            report = {
                "decision_id": decision["decision_id"],
                "quality": QUALITY[model],
                "cost_usd": COST_USD[model],
            }
            http.post("/v1/feedback", json=report).raise_for_status()
            self.acknowledged.append(decision["decision_id"])

    def versions(self) -> set[int]:
        """Which versions have answered so far."""
        return {version for _, _, version in self.decided}


def get(cluster: RayCluster, path: str) -> Any:
    """GET a path as an operator; asks again where the node asked is the one just lost."""
    for _ in range(20):
        try:
            return (
                httpx.get(f"{cluster.url}{path}", headers=dict(HEADERS), timeout=30)
                .raise_for_status()
                .json()
            )
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(path)


def wait_for(promise: Callable[[], bool], *, timeout_s: float) -> float:
    """Poll until a promise holds; return how long it took, seconds."""
    began = time.monotonic()
    while not promise():
        assert time.monotonic() < began + timeout_s, f"not within {timeout_s} s"
        time.sleep(0.2)
    return time.monotonic() - began


def cluster_environment(folder: Path, postgres: str, bucket: str) -> dict[str, str]:
    """What every node of a cluster is told: one database, one bucket, one encoder."""
    return {
        **{name: value for name, value in os.environ.items() if name.startswith("AWS_")},
        "BARP_LEDGER_URL": postgres,
        "BARP_REGISTRY_URL": postgres,
        "BARP_STORAGE_URL": f"{bucket}/{folder.name}",
        "BARP_ENCODER_DIR": str(small_static_encoder(folder / "encoder")),
        "BARP_STATE_DIR": str(folder / "state"),
        "BARP_SIGNING_SECRET": "s" * 32,
        "BARP_API_KEY": KEY,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


@contextmanager
def serving_cluster(
    environment: Mapping[str, str], *, replicas: int, **settings: Any
) -> Iterator[RayCluster]:
    """Run the application on a head and two workers, with three models, for as long as a block."""
    with ray_cluster(2, environment) as running:
        running.deploy(
            min_replicas=replicas,
            max_replicas=replicas,
            max_replicas_per_node=2,
            encoder="static",
            gate="estimate",
            **settings,
        )
        wait_until_ready(running.url, HEADERS)
        for name, cost in COST_USD.items():
            url, body = f"{running.url}/v1/models/{name}", {"usd_per_call": cost}
            httpx.put(url, json=body, headers=dict(HEADERS), timeout=30).raise_for_status()
        yield running
