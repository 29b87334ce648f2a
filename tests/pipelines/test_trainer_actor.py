"""The four actors together: outcomes come in, a version is learned, judged and kept."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ray

from pipelines.aggregator import AggregatorActor
from pipelines.keeper import KeeperActor
from pipelines.publisher import PublisherActor
from pipelines.registry_actor import RegistryActor
from pipelines.tenants import Rulebook, TenantRules
from pipelines.trainer_actor import TrainerActor
from pipelines.training import TrainingPlan
from policies.arms import Arm
from policies.interaction import Decision, Outcome, decisions_to_batch
from policies.learners import load_policy
from policies.preference import Preference

pytestmark = pytest.mark.ray

PATIENCE_S = 120.0
ARMS = ("good", "poor")
PLAN = TrainingPlan(
    encoder_id="e",
    context_dim=8,
    cost_ceiling_usd=0.01,
    exploration_total=0.1,
    seed=0,
    holdout_share=0.3,
    min_interactions=200,
    max_age_s=3600.0,
)


class Loop:
    """All actors between a recorded decision and a published version."""

    def __init__(self, folder: Path) -> None:
        suffix = uuid.uuid4().hex[:8]
        names = {
            part: f"{part}-{suffix}"
            for part in ("aggregator", "keeper", "publisher", "registry", "trainer")
        }
        published, artifacts = str(folder / "published"), str(folder / "artifacts")
        ledger: dict[str, Any] = {
            "ledger_url": f"sqlite:///{folder / 'ledger.db'}",
            "rules": Rulebook(default=TenantRules(wait_window_s=3600.0)),
            "orphan_after_s": 60.0,
        }
        made: dict[str, tuple[type, dict[str, Any]]] = {
            "keeper": (
                KeeperActor,
                {
                    **ledger,
                    "dataset_dir": str(folder / "interactions"),
                    "export_every_s": 1.0,
                    "aggregator": names["aggregator"],
                },
            ),
            "aggregator": (AggregatorActor, {**ledger, "publisher": names["publisher"]}),
            "publisher": (
                PublisherActor,
                {"folder": published, "keeper": names["keeper"]},
            ),
            "registry": (
                RegistryActor,
                {
                    "uri": f"sqlite:///{folder / 'mlflow.db'}",
                    "artifact_dir": artifacts,
                    "publisher": names["publisher"],
                },
            ),
            "trainer": (
                TrainerActor,
                {
                    "plan": PLAN,
                    "poll_s": 0.1,
                    "keeper": names["keeper"],
                    "registry": names["registry"],
                },
            ),
        }
        self.actors: dict[str, Any] = {}
        for part, (actor, arguments) in made.items():
            remote = cast(Any, ray.remote(actor)).options(name=names[part], num_cpus=0)
            self.actors[part] = remote.remote(**arguments)

    def ask(self, part: str, method: str, *args: Any) -> Any:
        """Call an actor and wait for its answer."""
        return ray.get(getattr(self.actors[part], method).remote(*args), timeout=PATIENCE_S)

    def until(self, done: Callable[[], bool]) -> None:
        """Wait until something has come about."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, "it never came about"
            time.sleep(0.1)


@pytest.fixture
def loop(ray_local: None, registry_dir: Path) -> Iterator[Loop]:
    """All five actors, ended with the test."""
    made = Loop(registry_dir)
    yield made
    for actor in reversed(made.actors.values()):
        ray.kill(actor)


def test_outcomes_become_a_version_that_knows_better_and_serves(loop: Loop) -> None:
    for name in ARMS:
        loop.ask("aggregator", "put_arm", Arm(name=name, usd_per_call=0.001))
    loop.ask("trainer", "ready")
    prices = loop.ask("keeper", "prices")
    first = {info.kind: info.version for info in loop.ask("registry", "versions")}

    feed(loop, 600, price_version=prices.version)
    loop.until(lambda: loop.ask("trainer", "status")["trainings"] > 0)

    assert set(first) == {"posterior", "barp-dr"}
    status = loop.ask("trainer", "status")
    assert status["failures"] == {}
    assert status["trained_to_seq"] >= PLAN.min_interactions
    champion = loop.ask("registry", "champion")
    assert champion not in first.values()
    loop.until(lambda: loop.ask("publisher", "status")["version"] == champion)
    policy = load_policy(loop.ask("registry", "artifact", champion))
    preference = Preference(quality=0.9, cost=0.1)
    pmf = policy.pmf(np.zeros(8, dtype=np.float32), preference, prices.arms)
    assert pmf[prices.names.index("good")] > 0.5
    for info in loop.ask("registry", "versions"):
        rebuilt = loop.ask("trainer", "rebuild", info.version)
        assert rebuilt["identical"], rebuilt


def feed(loop: Loop, number: int, *, price_version: int) -> None:
    """Record decisions between a good arm and a poor one, and what came of them."""
    rng = np.random.default_rng(0)
    arms = [str(rng.choice(ARMS)) for _ in range(number)]
    decisions = [
        Decision(
            decision_id=f"d{index}",
            decided_at=datetime.now(UTC),
            tenant="t",
            session=None,
            prompt_hash=f"p{index}",
            prompt_characters=10,
            preference=Preference(quality=0.7, cost=0.3),
            context=rng.normal(size=8).astype(np.float32),
            encoder_id=PLAN.encoder_id,
            arms_offered=ARMS,
            pmf=np.array([0.5, 0.5]),
            arm=arm,
            propensity=0.5,
            policy_version=1,
            price_version=price_version,
        )
        for index, arm in enumerate(arms)
    ]
    outcomes = [
        Outcome(decision_id=f"d{index}", quality=0.9 if arm == "good" else 0.1, cost_usd=0.001)
        for index, arm in enumerate(arms)
    ]
    loop.ask("aggregator", "record", decisions_to_batch(decisions))
    loop.ask("aggregator", "submit", "t", outcomes)
