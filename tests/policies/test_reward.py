"""The one scalarisation: bounds, ends and monotonicity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.reward import scalar_reward, scaled_cost

shares = st.floats(0.0, 1.0)
costs = st.floats(0.0, 1e6)


def _reward(quality: float, cost_usd: float, w_quality: float) -> float:
    """Score one outcome at a ceiling of 2 USD."""
    outcome = (np.array(quality), np.array(cost_usd), np.array(w_quality))
    return float(scalar_reward(*outcome, cost_ceiling_usd=2.0))


@given(shares, costs, shares)
def test_a_reward_lies_between_minus_and_plus_one(q: float, cost_usd: float, w: float) -> None:
    assert -(1 - w) - 1e-12 <= _reward(q, cost_usd, w) <= w + 1e-12


@given(shares, costs)
def test_the_ends_see_one_side_only(quality: float, cost_usd: float) -> None:
    assert _reward(quality, cost_usd, 1.0) == quality
    assert _reward(quality, cost_usd, 0.0) == -min(cost_usd / 2.0, 1.0)


@given(shares, shares, costs, st.floats(0.0, 10.0))
def test_a_dearer_call_is_never_worth_more(
    quality: float, w: float, cost_usd: float, more: float
) -> None:
    assert _reward(quality, cost_usd + more, w) <= _reward(quality, cost_usd, w)


def test_at_the_ceiling_a_call_is_fully_expensive() -> None:
    found = scaled_cost(np.array([1.0, 2.0, 50.0]), cost_ceiling_usd=2.0)
    assert found == pytest.approx([0.5, 1.0, 1.0])
