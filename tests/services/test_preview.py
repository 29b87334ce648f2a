"""A preview says what would be decided, and decides nothing."""

from __future__ import annotations

from collections import Counter

import pytest
from replica_fakes import HeldChampion, PricePolicy, Replica, a_champion

from services.champion import LoadedCanary

PATH = "/v1/route/preview"


def test_the_probabilities_are_those_that_route_draws_from() -> None:
    replica = Replica()
    body = {"prompt": "Name a prime.", "preference": {"quality": 0.5, "cost": 0.5}}
    shown = replica.call("POST", PATH, json=body).json()
    replica.route(**body)
    [decision] = replica.decisions
    logged = dict(zip(decision.arms_offered, decision.pmf.tolist(), strict=True))
    assert {one["model"]: one["probability"] for one in shown["models"]} == logged
    assert shown["policy_version"] == decision.policy_version
    assert shown["preference"] == {"quality": 0.5, "cost": 0.5}
    assert (shown["canary_version"], shown["not_offered"]) == (None, [])


def test_the_likeliest_comes_first_with_what_is_expected_of_it() -> None:
    models = Replica().call("POST", PATH, json={"prompt": "x"}).json()["models"]
    shares = [one["probability"] for one in models]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)
    assert all(one["list_cost_usd"] >= 0 and "quality" in one["expected"] for one in models)


def test_nothing_is_recorded_or_drawn() -> None:
    previewed, plain = Replica(seed=3), Replica(seed=3)
    for _ in range(5):
        assert previewed.call("POST", PATH, json={"prompt": "x"}).status_code == 200
    assert previewed.decisions == []
    assert "x-barp-decision-id" not in previewed.call("POST", PATH, json={"prompt": "x"}).headers
    drawn = Counter(previewed.route()["model"] for _ in range(20))
    assert drawn == Counter(plain.route()["model"] for _ in range(20))


def test_limits_leave_models_out() -> None:
    replica = Replica()
    names = replica.champion.current.prices.names
    shown = replica.call("POST", PATH, json={"prompt": "x", "models": [names[0]]}).json()
    assert [one["model"] for one in shown["models"]] == [names[0]]
    assert shown["not_offered"] == list(names[1:])


def test_a_canary_counts_with_its_share() -> None:
    canary = LoadedCanary(version=7, policy=PricePolicy(), share=0.5)
    replica = Replica(champion=HeldChampion(a_champion(canary=canary)))
    shown = replica.call("POST", PATH, json={"prompt": "x"}).json()
    replica.route(prompt="x")
    assert shown["canary_version"] == 7
    assert {one["model"]: one["probability"] for one in shown["models"]} == pytest.approx(
        dict(zip(replica.decisions[0].arms_offered, replica.decisions[0].pmf.tolist(), strict=True))
    )


@pytest.mark.parametrize(
    ("body", "field"),
    [({"prompt": " "}, "prompt"), ({"prompt": "x", "models": ["nobody"]}, "models")],
)
def test_what_route_refuses_is_refused(body: dict[str, object], field: str) -> None:
    answer = Replica().call("POST", PATH, json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field
