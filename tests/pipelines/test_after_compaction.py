"""What can still be told once decisions have left the ledger, models are gone and aliases moved.

The whole way of a version through real parts: deciders, aggregator, trainer, MLflow, promotions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from clock import Clock
from event_lists import EventList
from interactions import PRICES
from ledgers import RULES, WAIT_WINDOW_S
from numpy.typing import NDArray
from registries import FakePublisher, RegistryAndPromotion, open_promotion, open_registry
from replica_fakes import SECRET

from pipelines.aggregator import Aggregator
from pipelines.dataset import InteractionDataset
from pipelines.dataset_parts import MERGE_PARTS
from pipelines.keeper import Keeper
from pipelines.ledger import Ledger
from pipelines.rebuild import Rebuilt
from pipelines.trainer import Trainer
from pipelines.training import TrainingPlan
from policies.arms import Arm, PriceTable
from policies.artifact import PolicyArtifact
from policies.barp_dr import BarpDrLearner
from policies.interaction import Decision, Outcome, decisions_to_batch
from policies.learners import load_policy
from policies.posterior_learner import PosteriorLearner
from policies.preference import Preference
from services.champion import Champion, LoadedCanary
from services.decider import Decider, RouteRequest
from services.decision_ids import DecisionIds
from services.explain import Explainer

DIM = 4
TRAININGS, ROUND = 5, 112
RETENTION_S = 100.0
LEARNERS = (PosteriorLearner(), BarpDrLearner())
PLAN = TrainingPlan(
    encoder_id="e",
    context_dim=DIM,
    cost_ceiling_usd=0.01,
    exploration_total=0.1,
    seed=3,
    holdout_share=0.3,
    min_interactions=50,
    max_age_s=600.0,
    max_tenant_share=0.9,
)


class Source:
    """The keeper as trainer and rebuild read it, without the actor between them."""

    def __init__(self, keeper: Keeper, runner: asyncio.Runner) -> None:
        self._keeper, self._runner = keeper, runner

    def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """Read rows."""
        return self._runner.run(self._keeper.interactions(after_seq, limit))

    def last_seq(self) -> int:
        """Return the last number."""
        return self._runner.run(self._keeper.counts()).last_seq

    def prices(self) -> PriceTable:
        """Return the prices of now."""
        return self._runner.run(self._keeper.prices())

    def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return price tables by version."""
        return self._runner.run(self._keeper.price_history(versions))


class Artifacts:
    """The registry's artifacts as a replica asks for them."""

    def __init__(self, registry: RegistryAndPromotion) -> None:
        self._registry = registry

    async def artifact(self, version: int) -> PolicyArtifact:
        """Read one from MLflow."""
        artifact: PolicyArtifact = self._registry.artifact(version)
        return artifact


class Life:
    """A service's life: five trainings of two learners, promotions, canaries, a rollback."""

    def __init__(self, folder: Path, runner: asyncio.Runner) -> None:
        self.clock, self.runner, self.rng = Clock(), runner, np.random.default_rng(5)
        self.folder = folder / "interactions"
        self.ledger, written = (
            Ledger(
                f"sqlite:///{folder / 'ledger.db'}",
                rules=RULES,
                orphan_after_s=60.0,
                clock=self.clock,
            )
            for _ in range(2)
        )
        written.change_prices(lambda _: PRICES)
        self.aggregator = Aggregator(written, announce=lambda _: None, events=EventList())
        self.keeper = Keeper(
            self.ledger,
            InteractionDataset(self.folder),
            forget=self._forget,
            export_every_s=1.0,
            retention_s=RETENTION_S,
        )
        registry = open_registry(folder, self.clock)
        promotion = open_promotion(registry, FakePublisher(), self.clock)
        self.registry = RegistryAndPromotion(registry, promotion)
        self.trainer = Trainer(
            LEARNERS,
            source=Source(self.keeper, runner),
            registry=self.registry,
            plan=PLAN,
            code="1.0",
            clock=self.clock,
            events=EventList(),
        )
        self.trainer.bootstrap()
        self.decider = Decider(
            DecisionIds(SECRET),
            encoder_id="e",
            default_preference=Preference(quality=0.7, cost=0.3),
            clock=self.clock,
            rng=self.rng,
        )
        self.decisions: list[Decision] = []

    def serve(self, number: int, *, canary: int | None = None) -> None:
        """Decide requests by the champion of now, report outcomes, and export them in parts."""
        serving = self._champion(canary)
        for _ in range(MERGE_PARTS):
            self._serve(serving, number // MERGE_PARTS)
            self.clock.now += 1.0
            self.runner.run(self.keeper.export())

    def _forget(self, retention_s: float, exported_seq: int) -> int:
        """Ask the aggregator from a thread, as the keeper's actor does."""
        asked = self.aggregator.forget(retention_s, exported_seq)
        return asyncio.run_coroutine_threadsafe(asked, self.runner.get_loop()).result()

    def rebuilt(self, version: int) -> Rebuilt:
        """Make a version again."""
        return self.trainer.rebuild(version, LEARNERS)

    def explained(self, *, every: int = 1) -> list[dict[str, Any]]:
        """Explain every n-th decision as a replica does that has only just started."""
        explainer = Explainer(self.keeper, Artifacts(self.registry), load=load_policy)  # type: ignore[arg-type]  # the ports' parts that it calls

        async def all_of_them() -> list[dict[str, Any]]:
            found = []
            for one in self.decisions[::every]:
                record = await self.keeper.decision(one.decision_id)
                assert record is not None
                found.append(await explainer.explanation(one.decision_id, record))
            return found

        return self.runner.run(all_of_them())

    def _champion(self, canary: int | None) -> Champion:
        """Load what serves."""
        version = self.registry.champion()
        assert version is not None
        on_trial = None
        if canary is not None:
            policy = load_policy(self.registry.artifact(canary))
            on_trial = LoadedCanary(version=canary, policy=policy, share=0.3)
        return Champion(
            revision=1,
            version=version,
            policy=load_policy(self.registry.artifact(version)),
            prices=self.runner.run(self.keeper.prices()),
            swapped_at=self.clock.now,
            canary=on_trial,
        )

    def _serve(self, serving: Champion, number: int) -> None:
        """Decide some requests; the first model is better whatever the prompt."""
        requests = [self._request() for _ in range(number)]
        offers = [self.decider.offer(serving, request) for request in requests]
        contexts = self._contexts(number)
        routed = self.decider.decide(serving, requests, offers, contexts)
        made = [one.decision for one in routed]
        self.decisions += made
        self.runner.run(self.aggregator.record(decisions_to_batch(made)))
        tenant = made[0].tenant
        outcomes = [
            Outcome(
                decision_id=one.decision_id,
                quality=float(one.arm == "good") * 0.8 + 0.1 * float(self.rng.random()),
                cost_usd=0.001,
            )
            for one in made
        ]
        self.runner.run(self.aggregator.submit(tenant, outcomes))

    def _contexts(self, number: int) -> NDArray[np.float32]:
        return self.rng.normal(size=(number, DIM)).astype(np.float32)

    def _request(self) -> RouteRequest:
        quality = float(self.rng.random())
        return RouteRequest(
            prompt=f"prompt {self.rng.integers(1 << 40)}",
            preference=Preference(quality=quality, cost=1.0 - quality),
        )


@pytest.fixture(scope="module")
def life(empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Everything has happened, and all decisions have left the ledger since."""
    folder = tmp_path_factory.mktemp("life")
    (folder / "mlflow.db").write_bytes(empty_mlflow.read_bytes())
    with asyncio.Runner() as runner:
        made: Any = Life(folder, runner)
        made.trials = []
        for training in range(TRAININGS):
            made.serve(ROUND)
            newest = [result.version for result in made.trainer.train()]
            made.trials.append((made.registry.champion(), newest[training % 2]))
            made.serve(ROUND // 2, canary=newest[training % 2])
            made.registry.promote(newest[0], who="ann", why=f"training {training}")
            if training == 1:
                dear = Arm(name="new", usd_per_call=0.002)
                runner.run(made.aggregator.put_arm(dear))
        made.serve(ROUND // 2)
        # A rollback, then a model that is gone.
        made.registry.rollback(to=None, who="ann", why="worse on code")
        made.serve(ROUND // 2)
        runner.run(made.aggregator.delete_arm("poor"))
        made.serve(ROUND // 2)
        made.before = made.explained()
        made.parts_before = len(InteractionDataset(made.folder).parts())
        made.clock.now += WAIT_WINDOW_S + RETENTION_S + 10.0
        made.left = runner.run(made.keeper.compact())
        yield made
        runner.run(made.aggregator.stop())
        runner.run(made.keeper.stop())


def test_all_decisions_have_left_and_the_parts_were_merged(life: Any) -> None:
    assert life.left == len(life.decisions) >= 1_000
    assert all(life.ledger.decision(one.decision_id) is None for one in life.decisions)
    assert len(InteractionDataset(life.folder).parts()) < life.parts_before / 4


def test_five_versions_in_a_row_of_each_learner_are_made_again_bit_for_bit(life: Any) -> None:
    numbers = [one.version for one in life.registry.versions()]

    results = [life.rebuilt(version) for version in numbers]

    assert len(results) == len(LEARNERS) * (TRAININGS + 1)
    assert [one.reason for one in results] == ["weights are identical"] * len(results)
    assert all(one.weights_sha256 == one.rebuilt_sha256 for one in results)
    assert all(one.rows == one.rows_found for one in results)


def test_a_thousand_decisions_are_derived_again_after_a_rollback_and_a_removal(life: Any) -> None:
    check(life.before)
    assert len(life.before) >= 1_000
    assert {one["champion_version"] for one in life.before} > {one for one, _ in life.trials}
    tried = {(one["champion_version"], one["canary_version"]) for one in life.before}
    assert tried > set(life.trials)
    offered = {model["model"] for one in life.before for model in one["models"]}
    assert offered == {"good", "poor", "new"}


def test_decisions_that_have_left_the_ledger_are_derived_again(life: Any) -> None:
    later = life.explained(every=5)
    check(later)
    assert later == life.before[::5]


def check(explained: Sequence[dict[str, Any]]) -> None:
    """See that each is the decision that was logged."""
    assert [one for one in explained if not one.get("agrees")] == []
    assert max(one["max_difference"] for one in explained) <= 1e-6
