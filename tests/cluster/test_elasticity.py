"""Replicas come with the load and go with it, and no request pays for either."""

from __future__ import annotations

from pathlib import Path

import pytest
from service_load import PRICES, Load
from service_process import ServiceProcess, StartService

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_replica_comes_under_load_and_goes_after_it_without_a_failure(
    start_service: StartService, tmp_path: Path
) -> None:
    """Behind HAProxy hot requests do not pass through Serve: scaling must see them all the same."""
    service = start_service(
        tmp_path,
        min_replicas=1,
        max_replicas=2,
        target_ongoing_requests=2,
        upscale_delay_s=0.5,
        downscale_delay_s=2,
        look_back_s=2,
    )
    for name, prices in PRICES.items():
        service.http.put(f"/v1/models/{name}", json=prices).raise_for_status()
    answer = service.http.post("/v1/route", json={"prompt": "Name a prime."}).raise_for_status()
    assert "x-request-id" not in answer.headers, "Serve, which adds one, has seen the request"
    first = service.get("/v1/status")["replica"]["id"]
    with Load(service.url, clients=2, feedback=False) as light:
        with Load(service.url, clients=16, feedback=False) as heavy:
            service.wait_for(lambda: who_answers(service) - {first} != set())
        # The light load goes on while the second replica is taken away again.
        service.wait_for(lambda: len(who_answers(service)) == 1, timeout_s=90)
    assert (light.failures, heavy.failures) == ([], [])
    decided = 1 + len(light.answers) + len(heavy.answers)
    service.wait_for(lambda: service.get("/v1/status")["ledger"]["decisions"] == decided)
    assert service.stop() == 0


def who_answers(service: ServiceProcess) -> set[str]:
    """Ask often enough that each replica has answered."""
    return {service.get("/v1/status")["replica"]["id"] for _ in range(12)}
