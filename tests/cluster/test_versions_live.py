"""Versions that do not fit what serves, on a running service: they work, or say what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from service_load import PRICES
from service_process import ServiceProcess, StartService

from pipelines.registry import Registry
from policies.arms import Arm
from policies.artifact import PolicyArtifact
from policies.learning import LearnerSpec
from policies.posterior_learner import PosteriorLearner

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def service(
    start_service: StartService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    """One replica that has learned nothing; nothing is promoted by itself."""
    running = start_service(tmp_path_factory.mktemp("versions"), min_replicas=1, max_replicas=1)
    for name, prices in PRICES.items():
        running.http.put(f"/v1/models/{name}", json=prices).raise_for_status()
    yield running
    assert running.stop() == 0


def first_version(service: ServiceProcess) -> PolicyArtifact:
    """Read the version that the service began with."""
    return registry(service).artifact(1)


def registry(service: ServiceProcess) -> Registry:
    """Open the service's registry beside it, as an operator's own tools do."""
    uri = f"sqlite:///{service.state_dir / 'mlflow.db'}"
    return Registry(uri, str(service.state_dir / "artifacts"), clock=lambda: 0.0)


def barp(service: ServiceProcess, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command against the service."""
    command = [str(Path(sys.executable).with_name("barp")), *words, "--url", service.url, "--json"]
    return subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)


def test_a_version_of_another_set_of_models_serves_those_on_offer(service: ServiceProcess) -> None:
    """It knows a model that is gone, and does not know two that are there."""
    known = first_version(service)
    spec = LearnerSpec(
        arms=(Arm(name="cheap", usd_per_call=0.001), Arm(name="gone", usd_per_call=0.01)),
        encoder_id=known.encoder_id,
        context_dim=known.context_dim,
        cost_ceiling_usd=known.cost_ceiling_usd,
        price_version=1,
    )
    other = registry(service).register(PosteriorLearner().initial(spec), {}, {})

    moved = barp(service, "versions", "rollback", "--to", str(other))
    assert moved.returncode == 0, moved.stderr
    assert json.loads(moved.stdout.splitlines()[-1])["replicas_swapped"] == 1
    decided = [service.route(f"Is {number} a prime?") for number in range(20)]
    assert {one["policy_version"] for one in decided} == {other}
    assert {one["model"] for one in decided} <= set(PRICES)

    path = f"/v1/decisions/{decided[-1]['decision_id']}"
    service.wait_for(lambda: service.http.get(path).is_success)
    why = service.get(path)["explanation"]
    assert why["agrees"]
    chances = {one["model"]: one["probability"] for one in why["models"]}
    assert set(chances) == set(PRICES)
    assert min(chances.values()) > 0.0
    assert sum(chances.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("words", [("rollback", "--to"), ("promote",)])
def test_a_version_of_another_encoder_is_refused_with_what_to_do(
    service: ServiceProcess, words: tuple[str, ...]
) -> None:
    champion = service.get("/v1/versions")["champion"]
    foreign = replace(first_version(service), encoder_id="another-encoder")
    other = registry(service).register(foreign, {}, {})

    refused = barp(service, "versions", *words, str(other))
    assert refused.returncode != 0
    assert "start the service with encoder_dir set to that encoder" in refused.stderr
    assert "another-encoder" in refused.stderr
    assert service.get("/v1/versions")["champion"] == champion
    assert service.route()["policy_version"] == champion
    error = service.http.post(f"/v1/versions/{other}/promote").json()["error"]
    assert (error["code"], error["value"]) == ("encoder_mismatch", other)
    assert error["allowed"] == f"a version of encoder {first_version(service).encoder_id}"
