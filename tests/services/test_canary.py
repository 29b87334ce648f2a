"""A canary beside the champion: who decides for whom, and what the log says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from replica_fakes import SECRET, HeldChampion, PricePolicy, Replica, a_champion, some_args

from policies.arms import Arm
from policies.evaluation import estimate, ips
from policies.interaction import Decision
from policies.policy import mix_canary, mix_exploration
from policies.preference import Preference
from services.champion import LoadedCanary
from services.decider import RouteRequest
from services.decision_ids import DecisionIds

SHARE = 0.2
CANARY = 5


class DearPolicy(PricePolicy):
    """Takes the dearest arm, 5 % exploration."""

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """All on the highest price."""
        prices = np.array([arm.input_usd_per_mtok for arm in offered])
        return mix_exploration((prices == prices.max()).astype(float), exploration_total=0.05)


def replica(*, share: float = SHARE, version: int = CANARY, seed: int = 0) -> Replica:
    """Return a replica with a canary."""
    canary = LoadedCanary(version=version, policy=DearPolicy(), share=share)
    held = HeldChampion(a_champion(canary=canary))
    return Replica(args=some_args(max_batch=100_000), champion=held, seed=seed)


def decide(where: Replica, *requests: RouteRequest) -> list[Decision]:
    """Route requests as one batch."""
    return [one.decision for one in asyncio.run(where.router.decide(requests))]


def pmfs(decision: Decision) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pmf of champion and canary for a logged decision."""
    offered = a_champion().prices.offered(allow=decision.arms_offered)
    asked = (decision.context, decision.preference, offered)
    return PricePolicy().pmf(*asked), DearPolicy().pmf(*asked)


@settings(max_examples=30, deadline=None)
@given(
    prompts=st.lists(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1)),
    share=st.floats(0.01, 0.99),
    w_quality=st.floats(0, 1),
)
def test_the_logged_pmf_is_the_mixture(prompts: list[str], share: float, w_quality: float) -> None:
    preference = Preference(quality=w_quality, cost=1 - w_quality)
    requests = [RouteRequest(prompt=prompt, preference=preference) for prompt in prompts]
    for decision in decide(replica(share=share), *requests):
        champion, canary = pmfs(decision)
        np.testing.assert_allclose(decision.pmf, mix_canary(champion, canary, share=share))
        chosen = decision.arms_offered.index(decision.arm)
        assert decision.propensity == decision.pmf[chosen] > 0
        assert decision.policy_version in (2, CANARY)
        assert (decision.champion_version, decision.canary_version) == (2, CANARY)
        assert decision.canary_share == share


def test_without_a_canary_the_log_says_so() -> None:
    (decision,) = decide(Replica(), RouteRequest(prompt="x"))
    assert (decision.champion_version, decision.canary_version) == (None, None)
    assert decision.canary_share == 0.0


def test_all_requests_of_a_session_are_decided_by_one_version_on_every_replica() -> None:
    requests = [
        RouteRequest(prompt=f"{turn}", session=f"s{number}")
        for turn in range(3)
        for number in range(200)
    ]
    sides: dict[str, set[int]] = {}
    for seed in range(2):
        for decision in decide(replica(seed=seed), *requests):
            sides.setdefault(str(decision.session), set()).add(decision.policy_version)
    assert {len(versions) for versions in sides.values()} == {1}
    on_canary = sum(versions == {CANARY} for versions in sides.values())
    # Four standard errors of a share of 200 sessions.
    assert abs(on_canary / 200 - SHARE) < 4 * np.sqrt(SHARE * (1 - SHARE) / 200)


def test_the_next_canary_and_another_tenant_draw_their_sessions_anew() -> None:
    ids = DecisionIds(SECRET)

    def sides(tenant: str, version: int) -> list[bool]:
        draws = [ids.canary_draw(f"s{i}", tenant=tenant, canary_version=version) for i in range(99)]
        assert all(0.0 <= drawn < 1.0 for drawn in draws)
        return [drawn < 0.5 for drawn in draws]

    assert sides("acme", 5) == sides("acme", 5)
    assert sides("acme", 5) != sides("acme", 6)
    assert sides("acme", 5) != sides("other", 5)


@pytest.mark.parametrize("of_canary", [False, True])
def test_each_versions_value_estimated_from_the_mixed_log_agrees_with_the_truth(
    of_canary: bool,
) -> None:
    """Inverse propensity scores of the log of the real router, against the exact expectation."""
    rng = np.random.default_rng(3)
    weights = rng.uniform(size=4_000)
    requests = [
        RouteRequest(
            prompt=f"prompt {number}",
            preference=Preference(quality=w, cost=1 - w),
            session=f"s{number // 3}" if number % 2 else None,
        )
        for number, w in enumerate(weights)
    ]
    log = decide(replica(), *requests)
    # What an arm is worth follows from prompt and arm alone.
    worth = np.array([[0.2, 0.9, 0.5]]) * np.array([d.context[:1] for d in log], dtype=np.float64)
    taken = np.array([decision.arms_offered.index(decision.arm) for decision in log])
    rows = np.arange(len(log))
    target = np.array([pmfs(decision)[of_canary] for decision in log])
    propensity = np.array([decision.propensity for decision in log])
    truth = (target * worth).sum(axis=1)
    scores = ips(target[rows, taken], propensity, worth[rows, taken])
    error = estimate(scores - truth, level=0.999)
    assert error.lower < 0 < error.upper
    assert error.upper - error.lower < 0.1
