"""Explaining decisions from a real ledger: whoever made them, whatever has changed since."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from actor_fakes import NOW
from clock import START_S
from interactions import PRICES, Interactions
from ledgers import RULES
from numpy.typing import NDArray
from replica_fakes import SECRET, Replica

from pipelines.ledger import Ledger
from policies.arms import Arm, PriceTable
from policies.artifact import PolicyArtifact
from policies.barp_dr import BarpDrLearner
from policies.errors import UnknownVersion
from policies.interaction import Decision, decisions_to_batch
from policies.learners import Learner, load_policy
from policies.learning import LearnerSpec
from policies.posterior_learner import PosteriorLearner
from policies.preference import Preference
from services.champion import Champion, LoadedCanary
from services.decider import Decider, RouteRequest
from services.decision_ids import DecisionIds
from services.explain import Explainer

CEILING_USD = 0.01
DIM = 4
WIDE = PRICES.with_arm(Arm(name="new", usd_per_call=0.002), version=2)


@dataclass
class Versions:
    """A registry's artifacts, by number."""

    artifacts: dict[int, PolicyArtifact] = field(default_factory=dict)

    async def artifact(self, version: int) -> PolicyArtifact:
        """Return one."""
        if version not in self.artifacts:
            raise UnknownVersion(f"version={version} is not known", field="version")
        return self.artifacts[version]


@dataclass
class LedgerPort:
    """The real ledger, as the aggregator's actor offers it."""

    ledger: Ledger

    async def context(self, decision_id: str) -> NDArray[np.float32] | None:
        """See `Ledger.context`."""
        return self.ledger.context(decision_id)

    async def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """See `Ledger.price_history`."""
        return self.ledger.price_history(versions)


def learned(learner: Learner, source: Interactions) -> list[PolicyArtifact]:
    """Return a first version and the one after it."""
    spec = LearnerSpec(
        arms=PRICES.arms,
        encoder_id="e",
        context_dim=DIM,
        cost_ceiling_usd=CEILING_USD,
        price_version=1,
    )
    first = learner.initial(spec)
    return [first, learner.update(first, source.rows, {1: PRICES})]


@dataclass
class World:
    """Decisions of several versions in a ledger, and what explains them."""

    ledger: Ledger
    versions: Versions
    decisions: list[Decision] = field(default_factory=list)

    @property
    def explainer(self) -> Explainer:
        """A new replica's explainer."""
        return Explainer(LedgerPort(self.ledger), self.versions, load=load_policy)  # type: ignore[arg-type]  # the ports' parts that it calls

    def explained(self, decision: Decision) -> dict[str, Any]:
        """Explain one as the HTTP API does."""
        record = self.ledger.decision(decision.decision_id)
        assert record is not None
        return asyncio.run(self.explainer.explanation(decision.decision_id, record))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """1,000 decisions by four versions, alone and on trial beside each other; then changes."""
    folder: Path = tmp_path_factory.mktemp("explain")
    ledger = Ledger(
        f"sqlite:///{folder / 'ledger.db'}", rules=RULES, orphan_after_s=60.0, clock=lambda: NOW
    )
    ledger.change_prices(lambda _: PRICES)
    ledger.change_prices(lambda _: WIDE)
    source = Interactions()
    source.happen(300)
    artifacts = [*learned(PosteriorLearner(), source), *learned(BarpDrLearner(), source)]
    versions = Versions(dict(enumerate(artifacts, start=1)))
    made = World(ledger=ledger, versions=versions)
    rng = np.random.default_rng(7)
    for number, (champion, canary) in enumerate([(1, None), (2, 4), (4, 2), (3, 1), (2, None)]):
        prices = PRICES if number % 2 else WIDE
        made.decisions += _decided(versions, champion, canary, prices, rng)
    ledger.record([decisions_to_batch(made.decisions)])
    # Since then: a model was removed, so that prices of now do not even name it.
    ledger.change_prices(lambda table: table.without("poor", version=3))
    return made


def _decided(
    versions: Versions,
    champion: int,
    canary: int | None,
    prices: PriceTable,
    rng: np.random.Generator,
) -> list[Decision]:
    """Draw for 200 random requests, in batches of several sizes."""
    loaded = None
    if canary is not None:
        on_trial = load_policy(versions.artifacts[canary])
        loaded = LoadedCanary(version=canary, policy=on_trial, share=0.3)
    serving = Champion(
        revision=1,
        version=champion,
        policy=load_policy(versions.artifacts[champion]),
        prices=prices,
        swapped_at=NOW,
        canary=loaded,
    )
    decider = Decider(
        DecisionIds(SECRET),
        encoder_id="e",
        default_preference=Preference(quality=0.7, cost=0.3),
        clock=lambda: START_S,
        rng=rng,
    )
    decisions: list[Decision] = []
    while len(decisions) < 200:
        size = min(int(rng.integers(1, 40)), 200 - len(decisions))
        requests = [_request(prices, rng) for _ in range(size)]
        offers = [decider.offer(serving, request) for request in requests]
        contexts = rng.normal(size=(size, DIM)).astype(np.float32)
        routed = decider.decide(serving, requests, offers, contexts)
        decisions += [one.decision for one in routed]
    return decisions


def _request(prices: PriceTable, rng: np.random.Generator) -> RouteRequest:
    """Make a request with a preference and an allow-list of its own."""
    allowed = tuple(name for name in prices.names if rng.random() < 0.7) or None
    quality = float(rng.random())
    return RouteRequest(
        prompt="x" * int(rng.integers(1, 500)),
        preference=Preference(quality=quality, cost=1.0 - quality),
        models=allowed,
    )


def test_a_thousand_decisions_are_derived_again(world: World) -> None:
    assert len(world.decisions) == 1000
    explainer = world.explainer

    async def all_of_them() -> list[dict[str, Any]]:
        named = [
            (one.decision_id, world.ledger.decision(one.decision_id)) for one in world.decisions
        ]
        return [await explainer.explanation(name, record) for name, record in named if record]

    explained = asyncio.run(all_of_them())

    assert len(explained) == 1000
    assert [one for one in explained if not one.get("agrees")] == []
    assert max(one["max_difference"] for one in explained) <= 1e-6
    for decision, one in zip(world.decisions, explained, strict=True):
        chosen = next(model for model in one["models"] if model["chosen"])
        assert chosen["model"] == decision.arm
        assert one["propensity"] == pytest.approx(decision.propensity, abs=1e-6)


def test_an_explanation_says_what_each_version_made_of_it(world: World) -> None:
    on_trial = next(one for one in world.decisions if one.policy_version == one.canary_version)

    why = world.explained(on_trial)

    assert why["drawn_by_version"] == why["canary_version"] == on_trial.canary_version
    assert why["champion_version"] == on_trial.champion_version
    for model in why["models"]:
        mixed = 0.7 * model["champion_probability"] + 0.3 * model["canary_probability"]
        assert model["probability"] == pytest.approx(mixed)
        assert model["list_cost_usd"] > 0
    assert sum(model["probability"] for model in why["models"]) == pytest.approx(1.0)


def test_what_was_expected_is_weighed_as_the_caller_asked(world: World) -> None:
    """The posterior's versions expect outcomes, those of the policy gradient do not."""
    seen = set()
    for decision in world.decisions[::20]:
        for model in world.explained(decision)["models"]:
            quality, cost_usd = model["expected_quality"], model["expected_cost_usd"]
            seen.add(quality is None)
            if quality is None:
                assert model["expected_reward"] is None
                continue
            asked = decision.preference
            worth = asked.quality * quality - asked.cost * min(cost_usd / CEILING_USD, 1.0)
            assert model["expected_reward"] == pytest.approx(worth)
    assert seen == {True, False}


def test_what_was_not_offered_is_named(world: World) -> None:
    narrow = next(one for one in world.decisions if len(one.arms_offered) == 1)
    why = world.explained(narrow)
    assert set(why["not_offered"]) == set(
        (PRICES if narrow.price_version == 1 else WIDE).names
    ) - set(narrow.arms_offered)


def test_a_decision_whose_version_is_gone_says_so(world: World) -> None:
    lost = replace(world, versions=Versions())
    assert lost.explained(world.decisions[0]) == {"unavailable": "version=1 is not known"}


def test_a_log_that_was_altered_does_not_agree(world: World) -> None:
    decision = next(one for one in world.decisions if len(one.arms_offered) > 1)
    record = world.ledger.decision(decision.decision_id)
    assert record is not None
    altered = record | {"pmf": [record["pmf"][0] + 0.01, *record["pmf"][1:]]}

    why = asyncio.run(world.explainer.explanation(decision.decision_id, altered))

    assert not why["agrees"]
    assert why["max_difference"] == pytest.approx(0.01)


def test_over_http_a_decision_explains_itself() -> None:
    replica = Replica()
    routed = replica.route()
    [decision] = replica.decisions
    replica.aggregator.contexts[decision.decision_id] = decision.context
    replica.aggregator.records[decision.decision_id] = {
        "decision_id": decision.decision_id,
        "tenant": decision.tenant,
        "w_quality": decision.preference.quality,
        "w_cost": decision.preference.cost,
        "arms_offered": list(decision.arms_offered),
        "pmf": decision.pmf.tolist(),
        "arm": decision.arm,
        "prompt_characters": decision.prompt_characters,
        "policy_version": decision.policy_version,
        "price_version": decision.price_version,
    }

    why = replica.call("GET", f"/v1/decisions/{routed['decision_id']}").json()["explanation"]

    assert why["agrees"]
    assert why["propensity"] == pytest.approx(routed["propensity"])
