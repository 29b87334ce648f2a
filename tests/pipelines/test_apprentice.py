"""One model decides, learners learn: who serves, what is estimated, and what cannot be known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clock import Clock
from event_lists import EventList
from interactions import PRICES
from mixed_traffic import MixedTraffic
from registries import FakePublisher, RegistryAndPromotion, open_promotion, open_registry

from pipelines.apprentice import Apprentice
from pipelines.foregone import Foregone
from pipelines.trainer import Trainer
from pipelines.training import TrainingPlan
from policies.events import EventKind
from policies.fixed import FIXED
from policies.learning import LearnerSpec
from policies.posterior_learner import PosteriorLearner
from policies.versions import CHALLENGER, VersionInfo

PLAN = TrainingPlan(
    encoder_id="e",
    context_dim=4,
    cost_ceiling_usd=0.01,
    exploration_total=0.2,
    seed=0,
    holdout_share=0.3,
    min_interactions=50,
    max_age_s=600.0,
    apprentice="poor",
)


class Setup:
    """A trainer whose rule decides, traffic that the rule routes, and who looks at both."""

    def __init__(self, folder: Path, plan: TrainingPlan = PLAN) -> None:
        self.clock, self.events, self.plan = Clock(), EventList(), plan
        self.store = open_registry(folder, self.clock)
        self.promotion = open_promotion(self.store, FakePublisher(), self.clock)
        self.registry = RegistryAndPromotion(self.store, self.promotion)
        self.traffic = MixedTraffic(self.store, self.promotion)
        self.artifact, self.tag = self.store.artifact, self.store.tag
        self.trainer = self.restarted(plan)
        self.apprentice = self.looked_at_anew()

    def restarted(self, plan: TrainingPlan) -> Trainer:
        """Start the trainer again, as a new process would."""
        trainer = Trainer(
            (PosteriorLearner(),),
            source=self.traffic,
            registry=self.registry,
            plan=plan,
            code="1.0 abc",
            clock=self.clock,
            events=self.events,
        )
        trainer.bootstrap()
        return trainer

    def looked_at_anew(self, max_decisions: int = 20_000) -> Apprentice:
        """Start to look again, as a new process would."""
        return Apprentice(
            self.traffic,
            self,
            model=self.plan.apprentice or "",
            cost_ceiling_usd=0.01,
            events=self.events,
            max_decisions=max_decisions,
        )

    def deciding(self) -> tuple[int | None, int | None]:
        """Return who serves."""
        status = self.promotion.status()
        return status.champion, status.canary

    def versions(self) -> list[VersionInfo]:
        """List all."""
        return self.store.versions()

    def kind(self, version: int | None) -> str:
        """Return a version's kind."""
        return next(one.kind for one in self.versions() if one.version == version)

    def run(self, rounds: int) -> Foregone:
        """Serve, train and look, again and again; return what is known of the learner."""
        for _ in range(rounds):
            self.traffic.serve(200)
            self.clock.now += 1.0
            self.trainer.train()
            self.apprentice.step()
        return self.apprentice.status.learners["posterior"]


@pytest.fixture
def setup(registry_dir: Path) -> Setup:
    """The worse of two models decides, with a fifth of exploration."""
    return Setup(registry_dir)


def test_the_rule_decides_whatever_the_learners_learn(setup: Setup) -> None:
    setup.run(3)
    champion, beside = setup.deciding()
    assert (setup.kind(champion), beside) == (FIXED, None)
    assert len(setup.registry.history()) == 1
    named = [one.version for one in setup.versions() if CHALLENGER in one.aliases]
    assert named == [setup.versions()[0].version]


def test_what_would_have_been_gained_is_near_the_truth(setup: Setup) -> None:
    """The learner takes `good` with 0.9, the rule `poor`: 0.7 * (0.9 - 0.3) * (0.9 - 0.1)."""
    found = setup.run(8)
    assert found.finding == "better"
    assert found.reward is not None
    assert found.quality is not None
    assert found.cost_usd is not None
    truth = 0.7 * 0.6 * 0.8
    assert found.reward.lower < truth < found.reward.upper
    assert found.reward.lower > 0.0
    assert found.quality.lower < 0.6 * 0.8 < found.quality.upper
    assert found.cost_usd.mean == pytest.approx(0.0, abs=1e-4)
    assert found.ess < found.decisions / 2
    assert any("surely better" in one.tags.get("apprentice", "") for one in setup.versions())
    told = [e for e in setup.events if e.kind is EventKind.VERDICT and e.who == "apprentice"]
    assert [event.details["finding"] for event in told] == ["better"]


def test_no_decision_is_scored_by_a_version_that_learned_from_it(setup: Setup) -> None:
    """The first 200 decisions made the first version, so they are nobody's evidence."""
    found = setup.run(5)
    setup.apprentice = setup.looked_at_anew()
    setup.apprentice.step()
    again = setup.apprentice.status.learners["posterior"]
    assert found.decisions <= again.decisions <= 800
    assert again.reward is not None


def test_a_long_log_is_let_go_by_half(setup: Setup) -> None:
    setup.apprentice = setup.looked_at_anew(max_decisions=500)
    assert setup.run(8).decisions <= 700


def test_without_exploration_nothing_is_claimed(registry_dir: Path) -> None:
    """A learner that prefers what the log never tried: no estimate, and a word on what to do."""
    setup = Setup(registry_dir, replace(PLAN, exploration_total=0.0))
    setup.traffic.serve(300)
    spec = LearnerSpec(
        arms=PRICES.arms,
        encoder_id="e",
        context_dim=4,
        cost_ceiling_usd=0.01,
        exploration_total=0.0,
        price_version=1,
    )
    learner = PosteriorLearner()
    first = setup.traffic.rows.slice(0, 100)
    made = learner.update(learner.initial(spec), first, {1: PRICES})
    setup.store.register(made, {}, {"last_seq": "100"})
    setup.apprentice.step()
    found = setup.apprentice.status.learners["posterior"]
    assert (found.finding, found.reward) == ("unsupported", None)
    assert found.unsupported > 0.01
    assert "exploration_total" in found.reason
    propensities = setup.traffic.rows["propensity"].to_numpy()
    assert np.array_equal(propensities, np.ones(300))


def test_a_person_s_word_stands_and_the_status_says_so(setup: Setup) -> None:
    setup.clock.now += 1.0
    learned = next(one.version for one in setup.versions() if one.kind == "posterior")
    setup.promotion.promote(learned, who="ann", why="enough learned")
    setup.restarted(PLAN)
    assert setup.deciding() == (learned, None)
    setup.traffic.serve(50)
    setup.apprentice.step()
    assert setup.apprentice.status.reason == f"version {learned} decides, not poor"


def test_a_rule_set_on_a_running_service_takes_over_and_another_replaces_it(
    setup: Setup, registry_dir: Path
) -> None:
    before, _ = setup.deciding()
    setup.clock.now += 1.0
    setup.restarted(replace(PLAN, apprentice="good"))
    now, _ = setup.deciding()
    assert now != before
    assert setup.kind(now) == FIXED
    assert setup.artifact(now or 0).arms == ("good",)
    assert setup.registry.history()[0].who == "trainer"
