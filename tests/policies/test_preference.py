"""A preference is a point on the simplex, or it is not made."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import InvalidPreference
from policies.preference import Preference, preference_grid

weights = st.floats(0.0, 1.7e308)


@given(weights, weights)
def test_any_finite_weights_are_scaled_onto_the_simplex(quality: float, cost: float) -> None:
    """Huge ones too, whose sum would overflow."""
    if quality == cost == 0.0:
        return
    preference = Preference.normalised(quality=quality, cost=cost)
    assert math.isclose(preference.quality + preference.cost, 1.0)
    assert preference.quality >= 0.0
    assert preference.cost >= 0.0


def test_scaling_keeps_the_ratio_and_a_missing_weight_is_zero() -> None:
    assert Preference.normalised(quality=3.0, cost=1.0).quality == 0.75
    assert Preference.normalised(quality=0.2) == Preference(quality=1.0, cost=0.0)


@pytest.mark.parametrize(
    ("quality", "cost"),
    [(0.0, 0.0), (-0.1, 1.1), (math.nan, 0.5), (0.5, math.nan), (math.inf, 1.0)],
)
def test_what_is_no_trade_off_is_refused(quality: float, cost: float) -> None:
    with pytest.raises(InvalidPreference):
        Preference.normalised(quality=quality, cost=cost)
    with pytest.raises(InvalidPreference):
        Preference(quality=quality, cost=cost)


def test_the_value_itself_does_not_scale() -> None:
    with pytest.raises(InvalidPreference, match=r"quality=0\.9 and cost=0\.9"):
        Preference(quality=0.9, cost=0.9)


def test_the_grid_runs_from_all_cost_to_all_quality() -> None:
    grid = preference_grid()
    assert [round(point.quality, 1) for point in grid] == [i / 10 for i in range(11)]
