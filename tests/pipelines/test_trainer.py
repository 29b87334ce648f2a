"""The trainer: what it reads, when it trains, what it writes down, and what it survives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from clock import Clock
from registries import FakePublisher, open_promotion, open_registry

from pipelines.lineage import code_version
from pipelines.promotion import Promotion
from pipelines.registry import Registry
from pipelines.rows import HeldOut, read_rows, split_rows
from pipelines.trainer import Trainer
from pipelines.training import TrainingPlan
from policies.arms import Arm, PriceTable
from policies.artifact import PolicyArtifact
from policies.errors import Unavailable
from policies.interaction import INTERACTION_SCHEMA, canonical_rows, is_holdout
from policies.learning import Learner, LearnerSpec
from policies.posterior import PosteriorLearner
from policies.versions import CHALLENGER, CHAMPION, AliasMove, VersionInfo

PRICES = PriceTable(
    version=1, arms=(Arm(name="good", usd_per_call=0.001), Arm(name="poor", usd_per_call=0.001))
)
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


class Interactions:
    """Interactions of a world in which one of two arms is better whatever the prompt."""

    def __init__(self) -> None:
        self.rows: pa.Table = INTERACTION_SCHEMA.empty_table()
        self.away = False
        self._rng = np.random.default_rng(0)

    def happen(self, number: int) -> None:
        """Let some requests be routed evenly, and their outcomes come back."""
        start = len(self.rows)
        rows = [self._row(start + index) for index in range(number)]
        new = pa.Table.from_pylist(rows, schema=INTERACTION_SCHEMA)
        self.rows = pa.concat_tables([self.rows, new])

    def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """Return rows after a sequence number."""
        self._answer()
        return self.rows.slice(after_seq, limit)

    def last_seq(self) -> int:
        """Return the last sequence number."""
        self._answer()
        return len(self.rows)

    def prices(self) -> PriceTable:
        """Return the only price table."""
        self._answer()
        return PRICES

    def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return the only price table."""
        return {PRICES.version: PRICES}

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("aggregator is away")

    def _row(self, index: int) -> dict[str, object]:
        arm = str(self._rng.choice(PRICES.names))
        level = 0.9 if arm == "good" else 0.1
        now = datetime(2026, 11, 23, tzinfo=UTC)
        return {
            "seq": index + 1,
            "revision": 0,
            "decision_id": f"d{index}",
            "decided_at": now,
            "tenant": "t",
            "prompt_hash": f"p{index}",
            "prompt_characters": 10,
            "w_quality": 0.7,
            "w_cost": 0.3,
            "context": self._rng.normal(size=4).astype(np.float32),
            "encoder_id": "e",
            "arms_offered": list(PRICES.names),
            "pmf": [0.5, 0.5],
            "arm": arm,
            "propensity": 0.5,
            "policy_version": 1,
            "price_version": 1,
            "quality": float(np.clip(level + self._rng.normal(scale=0.05), 0, 1)),
            "cost_usd": 0.001,
            "matured_at": now,
        }


class RegistryAndPromotion:
    """What the registry actor offers, on a real registry and without the actor."""

    def __init__(self, registry: Registry, promotion: Promotion) -> None:
        self._registry, self._promotion = registry, promotion
        self.register, self.artifact = registry.register, registry.artifact
        self.promote, self.champion = promotion.promote, promotion.champion

    def challenge(self, version: int) -> None:
        """Point the alias."""
        self._registry.point(CHALLENGER, version)

    def versions(self) -> list[VersionInfo]:
        """List all."""
        return self._registry.versions()

    def history(self) -> list[AliasMove]:
        """List all moves."""
        return self._promotion.history(limit=100)


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
        registry = open_registry(folder, self.clock)
        promotion = open_promotion(registry, FakePublisher(), self.clock)
        self.registry = RegistryAndPromotion(registry, promotion)
        self.learners = learners or (PosteriorLearner(),)
        self.trainer = self.restarted()

    def restarted(self) -> Trainer:
        """Start the trainer again, as a new process would."""
        trainer = Trainer(
            self.learners,
            source=self.source,
            registry=self.registry,
            plan=PLAN,
            code="1.0 abc",
            clock=self.clock,
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
    assert not setup.trainer.due()


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


def test_held_out_prompts_are_never_trained_on() -> None:
    source = Interactions()
    source.happen(200)

    trained, heldout = split_rows(source.rows, share=0.3)

    assert len(trained) + len(heldout) == 200
    assert 30 < len(heldout) < 90
    for name in trained.column("prompt_hash").to_pylist():
        assert not is_holdout(name, 0.3)


def test_the_held_out_window_is_bounded_and_keeps_the_newest() -> None:
    source = Interactions()
    window = HeldOut(share=0.3, max_rows=20)
    for _ in range(3):
        source.happen(100)
        window.refresh(source)

    _, heldout = split_rows(source.rows, share=0.3)

    assert window.rows.column("seq").to_pylist() == heldout.column("seq").to_pylist()[-20:]


def test_a_corrected_outcome_replaces_the_one_held_out_before() -> None:
    source, window = Interactions(), HeldOut(share=0.999)
    source.happen(1)
    window.refresh(source)
    (first,) = source.rows.to_pylist()
    corrected = pa.Table.from_pylist(
        [first | {"seq": 2, "revision": 1, "quality": 0.25}], schema=INTERACTION_SCHEMA
    )
    source.rows = pa.concat_tables([source.rows, corrected])

    window.refresh(source)

    assert window.rows.column("quality").to_pylist() == [0.25]


def test_rows_are_read_in_pages_up_to_a_bound() -> None:
    source = Interactions()
    source.happen(30)

    assert read_rows(source, after_seq=10).column("seq").to_pylist() == list(range(11, 31))
    assert read_rows(source, after_seq=0, max_rows=7).column("seq").to_pylist() == list(range(1, 8))


def test_code_is_named_by_release_and_commit(tmp_path: Path) -> None:
    release = code_version(tmp_path)
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git" / "refs" / "heads" / "main").write_text("0123456789abcdef0123\n")

    assert code_version(tmp_path) == f"{release} 0123456789ab"
