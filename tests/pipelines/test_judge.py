"""Trials and probation on a real registry: from shadow to champion, and back where it harms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from clock import Clock
from event_lists import EventList
from interactions import PRICES
from mixed_traffic import MixedTraffic
from registries import FakePublisher, damage, open_promotion, open_registry

from pipelines.comparison import JudgePlan
from pipelines.guardrail import Guard
from pipelines.judge import Judge
from pipelines.registry import Registry
from policies.artifact import PolicyArtifact
from policies.events import EventKind
from policies.learning import LearnerSpec
from policies.posterior_learner import PosteriorLearner
from policies.versions import CHALLENGER, AliasMove, VersionInfo

PLAN = JudgePlan(
    cost_ceiling_usd=0.01,
    exploration_total=0.1,
    holdout_share=0.3,
    shadow_decisions=100,
    guard=Guard(decisions=600),
)
SPEC = LearnerSpec(
    arms=PRICES.arms,
    encoder_id="e",
    context_dim=4,
    cost_ceiling_usd=0.01,
    exploration_total=0.1,
    price_version=1,
)


class Setup:
    """A judge on a real registry; version 1 is untrained and serves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.events = folder, Clock(), EventList()
        self.store: Registry = open_registry(folder, self.clock)
        self.promotion = open_promotion(self.store, FakePublisher(), self.clock)
        self.traffic = MixedTraffic(self.store, self.promotion)
        self.start_canary, self.stop_canary = (
            self.promotion.start_canary,
            self.promotion.stop_canary,
        )
        self.promote, self.rollback = self.promotion.promote, self.promotion.rollback
        self.artifact, self.tag = self.store.artifact, self.store.tag
        self.first = PosteriorLearner().initial(SPEC)
        self.store.register(self.first, {}, {})
        self.promote(1, who="trainer", why="first")
        self.judge = self.restarted()

    def restarted(self, plan: JudgePlan = PLAN) -> Judge:
        """Start the judge again, as a new process would."""
        return Judge(self.traffic, self, plan=plan, events=self.events)

    def deciding(self) -> tuple[int | None, int | None]:
        """Return who serves."""
        status = self.promotion.status()
        return status.champion, status.canary

    def versions(self) -> list[VersionInfo]:
        """List all."""
        return self.store.versions()

    def last_move(self) -> AliasMove | None:
        """Return the newest."""
        moves = self.promotion.history(limit=1)
        return moves[0] if moves else None

    def learned(self, *, honest: bool = True, kind: str = "posterior") -> int:
        """Register a version that learned from even traffic, honest or upside down."""
        self.traffic.happen(200)
        rows = self.traffic.rows.slice(len(self.traffic.rows) - 200)
        if not honest:
            position = rows.schema.get_field_index("quality")
            turned = pa.array([1.0 - value for value in rows["quality"].to_pylist()])
            rows = rows.set_column(position, rows.schema.field(position), turned)
        artifact: PolicyArtifact = PosteriorLearner().update(self.first, rows, {1: PRICES})
        return self.store.register(
            replace(artifact, kind=kind), {}, {"last_seq": str(len(self.traffic.rows))}
        )

    def challenge(self, version: int) -> None:
        """Name a challenger."""
        self.store.point(CHALLENGER, version)

    def run(self, decisions: int, *, at_once: int = 100) -> None:
        """Serve, and let the judge take a step now and then."""
        for _ in range(0, decisions, at_once):
            self.traffic.serve(at_once)
            self.judge.step()

    def tags(self, version: int) -> dict[str, str]:
        """Read a version's words."""
        return next(dict(one.tags) for one in self.versions() if one.version == version)


@pytest.fixture
def setup(registry_dir: Path) -> Setup:
    """One untrained champion."""
    return Setup(registry_dir)


def test_a_better_challenger_goes_from_shadow_to_canary_to_champion(setup: Setup) -> None:
    better = setup.learned()
    setup.challenge(better)
    setup.traffic.serve(50)
    setup.judge.step()
    assert (setup.deciding(), setup.judge.status.stage) == ((1, None), "shadow")

    setup.run(100)
    assert setup.deciding() == (1, better)
    setup.run(1_500)
    assert setup.deciding()[0] == better
    tags = setup.tags(better)
    assert (tags["finding"], tags["compared_with"]) == ("promote", "1")
    references = json.loads(tags["evidence"])["references"]
    assert references["best_single"]["mean"] > 0.0
    assert "against the champion: knn" in tags["verdict"]
    evidence = json.loads(tags["evidence"])["uplift"]["asked"]
    assert evidence["lower"] > -0.01
    assert evidence["ess"] < evidence["n"]
    assert {EventKind.CANARY, EventKind.VERDICT} <= set(setup.events.kinds())


def test_a_worse_challenger_is_rejected_and_not_tried_again(setup: Setup) -> None:
    setup.promote(setup.learned(), who="ann", why="")
    setup.judge = setup.restarted(replace(PLAN, guard=Guard(decisions=0)))
    worse = setup.learned(honest=False)
    setup.challenge(worse)
    setup.run(2_000)
    assert setup.deciding() == (2, None)
    assert setup.tags(worse)["finding"] == "reject"
    canaries = [e for e in setup.events if e.kind is EventKind.CANARY]
    assert [event.details.get("share") for event in canaries] == [None, 0.0]
    rejected = [e for e in setup.events if e.kind is EventKind.VERDICT]
    assert [event.details["promote"] for event in rejected] == [False]


def test_a_restart_goes_on_with_the_trial_where_it_was(setup: Setup) -> None:
    better = setup.learned()
    setup.challenge(better)
    setup.run(200)
    assert setup.deciding() == (1, better)
    setup.traffic.serve(150)
    setup.judge = setup.restarted()
    setup.judge.step()
    assert setup.judge.status.decisions >= 150
    setup.run(1_500)
    assert setup.deciding()[0] == better


def test_a_challenger_of_another_encoder_is_rejected_with_the_reason(setup: Setup) -> None:
    spec = replace(SPEC, encoder_id="another")
    other = setup.store.register(PosteriorLearner().initial(spec), {}, {})
    setup.challenge(other)
    setup.run(200)
    assert setup.deciding() == (1, None)
    assert "encoder" in setup.tags(other)["verdict"]


@pytest.mark.parametrize("fault", ["another encoder", "damaged files"])
def test_a_champion_whose_predecessor_cannot_serve_does_without_and_learning_goes_on(
    setup: Setup, fault: str
) -> None:
    """As after a service was started with another encoder: the judge must not stand still."""
    if fault == "another encoder":
        spec = replace(SPEC, encoder_id="another")
        other = setup.store.register(PosteriorLearner().initial(spec), {}, {})
    else:
        other = setup.learned()
    setup.promote(other, who="ann", why="")
    champion = setup.store.register(setup.first, {}, {})
    setup.promote(champion, who="trainer", why="does not fit")
    if fault == "damaged files":
        damage(setup.folder, other)
    setup.challenge(setup.learned())

    setup.run(1_500)

    refused = [event for event in setup.events if event.kind is EventKind.ARTIFACT_REFUSED]
    assert [event.version for event in refused] == [other]
    assert setup.tags(champion)["probation"] == f"impossible beside {other}"
    assert EventKind.VERDICT in setup.events.kinds()
    assert setup.deciding()[0] not in (other, champion)


def test_a_trial_whose_files_are_damaged_meanwhile_ends(setup: Setup) -> None:
    better = setup.learned()
    setup.challenge(better)
    setup.run(200)
    assert setup.deciding() == (1, better)
    damage(setup.folder, better)

    setup.judge = setup.restarted()
    setup.judge.step()

    assert setup.deciding() == (1, None)
    assert setup.tags(better)["finding"] == "reject"
    assert "SHA-256" in setup.tags(better)["verdict"]


def test_nothing_is_tried_while_promotions_are_held(setup: Setup) -> None:
    setup.judge = Judge(
        setup.traffic, setup, plan=PLAN, events=setup.events, held=lambda: "ann went back"
    )
    setup.challenge(setup.learned())
    setup.run(400)
    assert setup.deciding() == (1, None)


def test_a_harmful_champion_goes_back_by_itself_and_stays_away(setup: Setup) -> None:
    good, harmful = setup.learned(), setup.learned(honest=False)
    setup.promote(good, who="ann", why="")
    setup.run(800)
    assert setup.deciding() == (good, None)
    assert "passed" in setup.tags(good)["probation"]

    setup.promote(harmful, who="ann", why="forced")
    setup.traffic.serve(1)
    setup.judge.step()
    assert setup.deciding() == (harmful, good)
    setup.run(1_500)

    assert setup.deciding() == (good, None)
    assert setup.tags(harmful)["quarantined"] == "true"
    move = setup.last_move()
    assert move is not None
    assert (move.version, move.who, move.kind) == (good, "guardrail", "rollback")
    told = setup.events.kinds()
    assert EventKind.GUARDRAIL_BREACH in told
    assert EventKind.QUARANTINE in told
    setup.challenge(harmful)
    setup.run(600)
    assert setup.deciding() == (good, None)


def test_a_rollback_puts_no_control_beside_the_older_version(setup: Setup) -> None:
    setup.promote(setup.learned(), who="ann", why="")
    setup.rollback(to=1, who="ann", why="")
    setup.run(300)
    assert setup.deciding() == (1, None)


def test_a_drift_that_meets_both_versions_is_no_breach(setup: Setup) -> None:
    setup.promote(setup.learned(), who="ann", why="")
    setup.run(200)
    setup.traffic.quality = {"good": 0.5, "poor": 0.1}
    setup.run(600)
    assert setup.deciding() == (2, None)
    assert EventKind.GUARDRAIL_BREACH not in setup.events.kinds()


def test_a_champion_of_which_less_is_heard_goes_back_whatever_its_reward(setup: Setup) -> None:
    """Its calls fail: what is reported is as good as ever, but most of it never comes."""
    setup.promote(setup.learned(), who="ann", why="")
    setup.traffic.serve(1)
    setup.judge.step()
    assert setup.deciding() == (2, 1)
    for _ in range(5):
        start = len(setup.traffic.rows)
        setup.traffic.serve(100)
        new = setup.traffic.rows.slice(start).select(["decision_id", "policy_version"]).to_pylist()
        mine = [row["decision_id"] for row in new if row["policy_version"] == 2]
        setup.traffic.silent |= set(mine[: len(mine) // 2])
        setup.judge.step()
    assert setup.deciding() == (1, None)
    told = next(event for event in setup.events if event.kind is EventKind.GUARDRAIL_BREACH)
    assert (told.details["what"], told.version) == ("feedback", 2)
    assert "fell by" in setup.tags(2)["quarantine_reason"]
