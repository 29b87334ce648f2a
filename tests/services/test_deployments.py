"""The application on a real Serve: both encoder placements, and a stop that loses nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from actor_fakes import NOW, PRICES, FakeAggregator, FakeMetrics
from ray import serve
from replica_actors import OnePublication, named
from replica_fakes import SECRET

from policies.encoder import load_encoder
from policies.learners import LearnerSpec, PosteriorLearner
from policies.publication import Publication
from services.deployments import Autoscaling, router_deployment
from services.router import RouterArgs

pytestmark = pytest.mark.ray

ONE = Autoscaling(min_replicas=1, max_replicas=1)


@pytest.fixture(scope="module")
def url(ray_local: None) -> Iterator[str]:
    """Serve with its proxy on a free port, gone after this file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()  # type: ignore[no-untyped-call]  # Ray has no types here


@pytest.fixture
def args(tmp_path: Path, encoder_dir: Path) -> RouterArgs:
    """A replica that keeps decisions to itself for a minute."""
    return RouterArgs(
        secret=SECRET,
        encoder_dir=encoder_dir,
        publish_dir=tmp_path / "published",
        record_flush_ms=60_000,
    )


@pytest.fixture
def actors(ray_local: None, encoder_dir: Path) -> Iterator[dict[str, Any]]:
    """Aggregator, publisher and metrics under the names that replicas look for."""
    encoder = load_encoder(encoder_dir)
    spec = LearnerSpec(
        arms=PRICES.arms,
        encoder_id=encoder.encoder_id,
        context_dim=encoder.dim,
        cost_ceiling_usd=0.01,
        exploration_total=0.02,
        price_version=PRICES.version,
        seed=0,
    )
    publication = Publication(
        revision=1,
        version=1,
        files=PosteriorLearner().initial(spec).to_files(),
        prices=PRICES,
        published_at=NOW,
    )

    started = {
        "aggregator": named(FakeAggregator, "aggregator-0"),
        "publisher": named(OnePublication, "publisher", publication),
        "metrics": named(FakeMetrics, "metrics"),
    }
    yield started
    for actor in started.values():
        ray.kill(actor)


def _route(url: str, number: int) -> dict[str, Any]:
    """Route one prompt over HTTP."""
    answer = httpx.post(f"{url}/v1/route", json={"prompt": f"What is {number}?"}, timeout=60)
    result: dict[str, Any] = answer.raise_for_status().json()
    return result


def _counted(actors: dict[str, Any]) -> int:
    """Count the decisions the aggregator has."""
    return int(ray.get(actors["aggregator"].counts.remote()).decisions)


@pytest.mark.parametrize("encoder_autoscaling", [None, ONE], ids=["replica", "deployment"])
def test_the_application_routes_and_a_stop_hands_over_every_decision(
    url: str,
    args: RouterArgs,
    actors: dict[str, Any],
    encoder_autoscaling: Autoscaling | None,
) -> None:
    application = router_deployment(args, autoscaling=ONE, encoder_autoscaling=encoder_autoscaling)
    serve.run(application, name="barp", route_prefix="/")
    ready = httpx.get(f"{url}/readyz", timeout=60).json()
    assert (ready["policy_version"], ready["models"]) == (1, len(PRICES.arms))
    assert {_route(url, number)["policy_version"] for number in range(7)} == {1}
    batch = [{"prompt": "one"}, {"prompt": "two"}]
    answer = httpx.post(f"{url}/v1/route/batch", json=batch, timeout=60)
    assert len(answer.json()["results"]) == len(batch)
    assert ray.get(actors["publisher"].held.remote()) == 1
    assert _counted(actors) == 0

    serve.delete("barp")
    assert _counted(actors) == 7 + len(batch)


@pytest.mark.parametrize("size", [1, 3])
def test_autoscaling_reports_load_faster_than_it_decides(size: int) -> None:
    options = Autoscaling(look_back_s=size).options()
    config = options["autoscaling_config"]
    assert config.metrics_interval_s < config.look_back_period_s
    assert options["ray_actor_options"]["num_cpus"] < 1
