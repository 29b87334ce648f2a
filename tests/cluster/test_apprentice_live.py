"""A running service that only learns, watched by a collector: what it says, what it traces."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from collectors import running_collector
from service_load import PRICES, Load
from service_process import StartService

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_one_model_decides_learners_learn_and_every_step_is_traced(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        service = start_service(
            tmp_path,
            apprentice="middle",
            exploration_total=0.2,
            gate="evidence",
            learners="posterior",
            retrain_min_interactions=100,
        )
        for name, prices in PRICES.items():
            service.http.put(f"/v1/models/{name}", json=prices).raise_for_status()

        def learned() -> bool:
            status = service.get("/v1/status")["trainer"]["apprentice"]
            found = status["learners"].get("posterior")
            return found is not None and found["decisions"] >= 100

        with Load(service.url, clients=4) as load:
            service.wait_for(learned, timeout_s=200)
        assert load.failures == []
        status = service.get("/v1/status")["trainer"]
        decided = service.get("/v1/versions")["champion"]
        service.wait_for(lambda: bool(collector.named("train")), timeout_s=60)
        assert service.stop() == 0

    # The rule decided everything, but for what it explores.
    assert {answer["policy_version"] for _, _, answer in load.answers} == {decided}
    chosen = [answer["model"] for _, _, answer in load.answers]
    assert chosen.count("middle") > 0.7 * len(chosen)
    assert set(chosen) == set(PRICES)
    assert (status["apprentice"]["model"], status["apprentice"]["reason"]) == ("middle", None)
    found = status["apprentice"]["learners"]["posterior"]
    assert found["finding"] in ("better", "undecided")
    assert found["reward"]["lower"] <= found["reward"]["mean"] <= found["reward"]["upper"]
    assert found["version"] != decided

    ids = {answer["decision_id"] for _, _, answer in load.answers}
    traces = {uuid.UUID(one.partition(".")[0]).hex for one in ids}
    requests, reports = collector.named("POST /v1/route"), collector.named("POST /v1/feedback")
    assert {span.trace_id for span in requests} == traces
    assert {span.trace_id for span in reports} == traces
    trained = collector.named("train")[0]
    assert trained.attributes["barp.learner"] == "posterior"
    assert {trace_id for trace_id, _ in trained.links} <= traces
    assert trained.links
    assert b"what is" not in collector.raw
