"""The trainer: what it reads, when it trains, what it writes down, and what it survives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from clock import Clock
from event_lists import EventList
from interactions import Interactions
from registries import FakePublisher, RegistryAndPromotion, open_promotion, open_registry

from pipelines.rows import split_rows
from pipelines.trainer import Trainer
from pipelines.training import TrainingPlan
from policies.arms import PriceTable
from policies.artifact import PolicyArtifact
from policies.errors import Unavailable
from policies.events import EventKind
from policies.interaction import canonical_rows
from policies.learning import Learner, LearnerSpec
from policies.posterior_learner import PosteriorLearner
from policies.versions import CHALLENGER, CHAMPION

PLAN = TrainingPlan(
    encoder_id="e",
    context_dim=4,
    cost_ceiling_usd=0.01,
    exploration_total=0.1,
    seed=0,
    holdout_share=0.3,
    min_interactions=50,
    max_age_s=600.0,
)


class BrokenLearner:
    """Has a first version, and fails at every update."""

    kind = "barp"

    def initial(self, spec: LearnerSpec) -> PolicyArtifact:
        """Borrow another learner's first version."""
        return replace(PosteriorLearner().initial(spec), kind=self.kind)

    def update(
        self, parent: PolicyArtifact, rows: pa.Table, prices: Mapping[int, PriceTable]
    ) -> PolicyArtifact:
        """Fail."""
        raise ValueError("one bad row")


class Setup:
    """A trainer on a real registry."""

    def __init__(self, folder: Path, *learners: Learner) -> None:
        self.clock, self.source = Clock(), Interactions()
        self.events = EventList()
        registry = open_registry(folder, self.clock)
        promotion = open_promotion(registry, FakePublisher(), self.clock)
        self.registry = RegistryAndPromotion(registry, promotion)
        self.learners = learners or (PosteriorLearner(),)
        self.trainer = self.restarted()

    def restarted(self, plan: TrainingPlan = PLAN) -> Trainer:
        """Start the trainer again, as a new process would."""
        trainer = Trainer(
            self.learners,
            source=self.source,
            registry=self.registry,
            plan=plan,
            code="1.0 abc",
            clock=self.clock,
            events=self.events,
        )
        trainer.bootstrap()
        return trainer


@pytest.fixture
def setup(registry_dir: Path) -> Setup:
    """One learner, nothing learned."""
    return Setup(registry_dir)


def test_the_first_version_serves_before_anything_is_learned(setup: Setup) -> None:
    (first,) = setup.registry.versions()

    assert (first.version, first.kind, first.aliases) == (1, "posterior", (CHAMPION,))
    setup.restarted()
    assert len(setup.registry.versions()) == 1


def test_training_is_due_by_count_or_by_age(setup: Setup) -> None:
    assert not setup.trainer.due()
    setup.clock.now += PLAN.max_age_s
    assert not setup.trainer.due()

    setup.source.happen(1)
    assert setup.trainer.due()

    setup.trainer.train()
    setup.source.happen(PLAN.min_interactions - 1)
    assert not setup.trainer.due()
    setup.source.happen(1)
    assert setup.trainer.due()


def test_a_better_version_is_registered_judged_and_promoted(setup: Setup) -> None:
    setup.source.happen(400)

    (result,) = setup.trainer.train()

    assert (result.kind, result.version, result.promoted) == ("posterior", 2, True)
    assert result.verdict.uplift is not None
    assert result.verdict.uplift.mean > 0
    newest = setup.registry.versions()[0]
    assert newest.aliases == (CHALLENGER, CHAMPION)
    assert newest.metrics["uplift"] == result.verdict.uplift.mean
    assert newest.metrics["rows"] == result.rows
    assert setup.registry.history()[0].who == "trainer"
    made, judged = setup.events
    assert (made.kind, made.version) == (EventKind.TRAINING, 2)
    assert made.details["rows"] == result.rows
    assert (judged.kind, judged.why) == (EventKind.VERDICT, result.verdict.reason)


def test_lineage_names_exactly_the_rows_trained_on(setup: Setup) -> None:
    setup.source.happen(60)
    setup.trainer.train()
    setup.source.happen(70)

    (result,) = setup.trainer.train()

    lineage = setup.registry.artifact(result.version).training
    unseen = setup.source.rows.slice(60)
    trained, _ = split_rows(unseen, share=PLAN.holdout_share)
    assert lineage["parent_version"] == result.version - 1
    assert (lineage["first_seq"], lineage["last_seq"]) == (61, 130)
    assert lineage["rows"] == len(trained) == result.rows
    assert lineage["rows_sha256"] == hashlib.sha256(canonical_rows(trained)).hexdigest()
    assert lineage["code_version"] == "1.0 abc"
    assert lineage["holdout_share"] == PLAN.holdout_share


def test_without_evidence_nothing_is_promoted(setup: Setup) -> None:
    setup.source.happen(60)

    (result,) = setup.trainer.train()

    assert not result.promoted
    assert "too few held-out decisions" in result.verdict.reason
    assert setup.registry.champion() == 1


def test_learning_goes_on_after_a_restart(setup: Setup) -> None:
    setup.source.happen(400)
    setup.trainer.train()
    heldout = setup.trainer.status.heldout_rows

    restarted = setup.restarted()
    assert not restarted.due()
    setup.source.happen(50)
    assert restarted.due()
    (result,) = restarted.train()

    assert setup.registry.artifact(result.version).training["first_seq"] == 401
    assert restarted.status.heldout_rows > heldout


def test_a_failing_learner_stops_neither_the_other_nor_the_loop(registry_dir: Path) -> None:
    setup = Setup(registry_dir, PosteriorLearner(), BrokenLearner())
    setup.source.happen(400)

    results = setup.trainer.train()

    assert [result.kind for result in results] == ["posterior"]
    assert setup.trainer.status.failures == {"barp": 1}
    assert setup.trainer.status.last_failures == {"barp": "ValueError: one bad row"}
    failure = next(e for e in setup.events if e.kind is EventKind.TRAINING_FAILED)
    assert (failure.why, failure.details["learner"]) == ("ValueError: one bad row", "barp")
    assert not setup.trainer.due()


def test_a_rollback_holds_for_a_while_and_then_learning_decides_again(setup: Setup) -> None:
    setup.trainer = setup.restarted(replace(PLAN, rollback_hold_s=100.0, tolerance=1.0))
    setup.source.happen(400)
    setup.trainer.train()
    setup.registry.rollback(to=1, who="ann", why="answers got worse")

    setup.source.happen(50)
    (held,) = setup.trainer.train()

    assert not held.promoted
    assert setup.trainer.status.held is not None
    assert "ann went back to version 1" in setup.trainer.status.held
    assert setup.registry.champion() == 1

    setup.clock.now += 101
    setup.source.happen(50)
    (free,) = setup.trainer.train()

    assert free.promoted
    assert setup.trainer.status.held is None


def test_a_version_in_quarantine_is_no_parent(setup: Setup) -> None:
    first = setup.registry.artifact(1)
    setup.registry.register(first, {}, {"quarantined": "true"})
    setup.source.happen(60)

    (result,) = setup.trainer.train()

    assert setup.registry.artifact(result.version).training["parent_version"] == 1


def test_an_aggregator_that_is_away_is_said_so(setup: Setup) -> None:
    setup.source.away = True

    with pytest.raises(Unavailable):
        setup.trainer.due()


def test_on_evidence_a_training_names_a_challenger_and_promotes_nothing(setup: Setup) -> None:
    trainer = setup.restarted(replace(PLAN, on_evidence=True))
    setup.source.happen(400)
    (first,) = trainer.train()
    setup.source.happen(100)
    trainer.train()

    named = [one.version for one in setup.registry.versions() if CHALLENGER in one.aliases]
    assert not first.promoted
    assert setup.registry.champion() == 1
    # It keeps its place until it is judged.
    assert named == [first.version]
    # An estimate that promotes nothing is not told as a verdict that would.
    words = next(one.tags for one in setup.registry.versions() if one.version == first.version)
    assert words["verdict"].startswith("estimate on held-out decisions, which promotes nothing")
    told = [event for event in setup.events if event.kind is EventKind.VERDICT]
    assert [event.details["promote"] for event in told] == [False, False]
