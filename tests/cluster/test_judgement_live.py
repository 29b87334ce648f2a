"""The gate on a running service: a version wins its place on evidence, a harmful one loses it."""

from __future__ import annotations

from pathlib import Path

import pytest
from service_load import PRICES, Load
from service_process import StartService

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_harmful_version_forced_to_champion_goes_back_by_itself(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service(
        tmp_path,
        gate="evidence",
        retrain_min_interactions=300,
        shadow_decisions=50,
        probation_decisions=800,
        holdout_share=0.2,
        min_replicas=2,
        max_replicas=2,
    )
    for name, prices in PRICES.items():
        service.http.put(f"/v1/models/{name}", json=prices).raise_for_status()

    def champion() -> int:
        return int(service.get("/v1/versions")["champion"])

    with Load(service.url, clients=4) as load:
        service.wait_for(lambda: champion() > 1, timeout_s=240)
        newest = service.get("/v1/versions/history")["history"][0]
        assert newest["who"] == "gate"
        # The version that has learned nothing chooses blindly: that is the harm.
        service.http.post("/v1/versions/1/promote", json={"why": "forced"}).raise_for_status()

        def gone_back() -> bool:
            move = service.get("/v1/versions/history")["history"][0]
            return bool(move["who"] == "guardrail" and move["previous"] == 1)

        service.wait_for(gone_back, timeout_s=240)
    assert load.failures == []
    tags = service.get("/v1/versions/1")["tags"]
    assert tags["quarantined"] == "true"
    assert "reward fell" in tags["quarantine_reason"]
    told = {event["kind"] for event in service.get("/v1/events")["events"]}
    assert {"canary", "verdict", "guardrail_breach", "quarantine"} <= told
    assert service.stop() == 0
