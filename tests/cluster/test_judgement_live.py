"""The gate on a running service: a version wins its place on evidence, a harmful one loses it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from encoders import small_static_encoder
from service_load import PRICES, Load
from service_process import ServiceProcess, StartService

from pipelines.dataset import InteractionDataset
from pipelines.evidence import EvidenceLog
from pipelines.guardrail import Guard, breach
from pipelines.registry import Registry
from policies.arms import Arm, PriceTable
from policies.learners import load_policy

RATE = 200.0

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_harmful_version_forced_to_champion_goes_back_by_itself(
    start_service: StartService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Its line for each request would cost the load its rate, where figures are asked for.
    caplog.set_level(logging.WARNING, logger="httpx")
    service = start_service(
        tmp_path,
        # Two cores encode no 200 prompts a second with MiniLM and do all the rest.
        encoder="static",
        encoder_dir=small_static_encoder(tmp_path / "encoder"),
        gate="evidence",
        learners="posterior",
        retrain_min_interactions=300,
        shadow_decisions=50,
        holdout_share=0.2,
        min_replicas=2,
        max_replicas=2,
    )
    for name, prices in PRICES.items():
        service.http.put(f"/v1/models/{name}", json=prices).raise_for_status()

    with Load(service.url, clients=16, rate=RATE) as load:
        service.wait_for(lambda: bool(service.get("/v1/versions")["champion"] > 1), timeout_s=240)
        gate_move = history(service)[0]
        assert gate_move["who"] == "gate"
        good = int(gate_move["version"])
        harmful = with_shuffled_arms(tmp_path, good)
        body = {"who": "ann", "why": "forced"}
        promoted = service.http.post(f"/v1/versions/{harmful}/promote", json=body)
        assert (promoted.status_code, promoted.json()["replicas_swapped"]) == (200, 2)

        service.wait_for(lambda: history(service)[0]["who"] == "guardrail", timeout_s=240)
        back, forced = history(service)[:2]
        service.wait_for(lambda: load.answers[-1][0] > moment(back["at"]) + 2.0)
        models = service.get("/v1/models")

    assert load.failures == []
    assert (forced["version"], forced["previous"], forced["why"]) == (harmful, good, "forced")
    assert (back["version"], back["previous"], back["kind"]) == (good, harmful, "rollback")
    assert (back["replicas_swapped"], back["replicas_waiting"]) == (2, 0)
    assert "reward fell" in back["why"]
    tags = service.get(f"/v1/versions/{harmful}")["tags"]
    assert (tags["quarantined"], tags["quarantine_reason"]) == ("true", back["why"])
    shown = read_by_an_operator(service, "versions", "show", str(harmful))
    assert "in quarantine; nothing promotes it by itself: reward fell" in shown
    assert "champion: rollback" in shown
    moves = read_by_an_operator(service, "versions", "history")
    assert {"guardrail_breach", "quarantine"} <= set(moves.split())
    promoted_one = read_by_an_operator(service, "versions", "show", str(good))
    assert f"serves; promoted against version {gate_move['previous']}" in promoted_one
    logger.info("%s\n%s\n%s", shown, promoted_one, moves)
    told = {event["kind"]: event for event in service.get("/v1/events?limit=1000")["events"]}
    assert {"canary", "verdict", "guardrail_breach", "quarantine"} <= set(told)
    assert told["guardrail_breach"]["version"] == harmful
    assert service.stop() == 0

    told_at, decisions = first_breach(shared(tmp_path, harmful, good), tmp_path, models)
    answered = [at for at, _, one in load.answers if one["policy_version"] == harmful]
    forced_at, last = moment(forced["at"]), max(answered)
    # Nobody can go back before it shows; what came after the last harmful answer is not harm.
    assert forced_at < told_at < last
    after = {one["policy_version"] for at, _, one in load.answers if at > last}
    assert after == {good}
    logger.info(
        "the breach showed after %d shared decisions, %.1f s after the promotion; the alias was "
        "back %.1f s later, the last harmful answer came %.1f s later; %d requests at %.0f a "
        "second, none failed",
        decisions,
        told_at - forced_at,
        moment(back["at"]) - told_at,
        last - told_at,
        len(load.answers),
        len(load.answers) / (load.answers[-1][0] - load.answers[0][0]),
    )


def read_by_an_operator(service: ServiceProcess, *words: str) -> str:
    """Run a command against the service; return what it shows a person, on lines as they come."""
    command = [str(Path(sys.executable).with_name("barp")), *words, "--url", service.url]
    wide = os.environ | {"COLUMNS": "400"}
    done = subprocess.run(
        command, check=True, timeout=120, capture_output=True, text=True, env=wide
    )
    return done.stderr


def history(service: ServiceProcess) -> list[dict[str, Any]]:
    """List the champion's moves, newest first."""
    moves: list[dict[str, Any]] = service.get("/v1/versions/history")["history"]
    return moves


def moment(at: str) -> float:
    """Read a time of the history, seconds since the epoch."""
    return datetime.fromisoformat(at).timestamp()


def registry_of(state_dir: Path) -> Registry:
    """Open a service's registry beside it, as an operator's own tools do."""
    uri = f"sqlite:///{state_dir / 'mlflow.db'}"
    return Registry(uri, str(state_dir / "artifacts"), clock=lambda: 0.0)


def with_shuffled_arms(state_dir: Path, version: int) -> int:
    """Register a version that takes each model for another one; return its number."""
    registry = registry_of(state_dir)
    sound = registry.artifact(version)
    return registry.register(replace(sound, arms=sound.arms[1:] + sound.arms[:1]), {}, {})


def shared(state_dir: Path, champion: int, beside: int) -> pa.Table:
    """Read the decisions that two versions shared, of a service that has stopped."""
    rows = InteractionDataset(state_dir / "interactions").read()
    mine = pc.and_(
        pc.equal(rows["champion_version"], champion), pc.equal(rows["canary_version"], beside)
    )
    return rows.filter(pc.fill_null(mine, False))


def first_breach(mine: pa.Table, state_dir: Path, models: dict[str, Any]) -> tuple[float, int]:
    """Look at a probation after every few decisions; return when its breach first showed.

    Args:
        mine: The decisions that champion and predecessor shared, in the order they matured.
        state_dir: Of the service.
        models: What it said of its models.

    Returns:
        When, seconds since the epoch, and after how many decisions.
    """
    arms = [
        Arm(name=one["name"], **{k: one[k] for k in ("input_usd_per_mtok", "output_usd_per_mtok")})
        for one in models["models"]
    ]
    version = mine["price_version"][0].as_py()
    prices = {version: PriceTable(version=version, arms=tuple(arms))}
    registry = registry_of(state_dir)
    pair = (mine[name][0].as_py() for name in ("champion_version", "canary_version"))
    log = EvidenceLog(*(load_policy(registry.artifact(one)) for one in pair), cost_ceiling_usd=0.01)
    read_to = 0
    for n in count(Guard().min_units, 5):
        log.add(mine.slice(read_to, n - read_to), prices)
        read_to = n
        if breach(log.evidence(), Guard()) is not None:
            return mine["matured_at"][n - 1].as_py().timestamp(), n
        assert n < len(mine), "the breach never shows"
    raise AssertionError
