"""Splits, streams and delays: all chances are drawn ahead, none is shared by accident."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcome_tables import a_table

from pipelines.quality_plan import QualityPlan, delays, draw_stream, first_requests, split_rows
from policies.errors import InvalidRequest


def a_plan(**changes: Any) -> QualityPlan:
    """Plan one learner, some things changed."""
    return QualityPlan(**({"learners": ("posterior",)} | changes))


@given(seed=st.integers(0, 100), split=st.floats(0.2, 0.8))
def test_a_split_uses_each_prompt_once(seed: int, split: float) -> None:
    train, test = split_rows(a_plan(split=split), a_table(20), seed=seed)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(20))
    assert len(test) == round(20 * split)


def test_a_task_left_out_is_judged_on_and_never_trained_on() -> None:
    table = a_table(20)
    train, test = split_rows(a_plan(holdout_tasks=("two",)), table, seed=0)
    assert {table.datasets[row] for row in train} == {"one"}
    assert sorted(test.tolist()) == list(range(1, 20, 2))


def test_deployment_shows_each_prompt_once_simulated_in_every_pass() -> None:
    once = draw_stream(a_plan(), 10, seed=0)
    assert sorted(once.rows.tolist()) == list(range(10))
    often = draw_stream(a_plan(protocol="simulated", passes=3), 10, seed=0)
    for epoch in often.rows.reshape(3, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert len(np.unique(often.w_quality)) == 30


def test_seeds_redraw_everything_and_one_seed_nothing() -> None:
    first, again, other = (draw_stream(a_plan(), 50, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.w_quality, again.w_quality)
    assert (first.rows != other.rows).any()
    assert (first.w_quality != other.w_quality).all()


def test_most_of_a_typical_stream_asks_for_the_default() -> None:
    drawn = draw_stream(a_plan(stream="typical"), 2_000, seed=0)
    assert (drawn.w_quality == 0.7).mean() == pytest.approx(0.7, abs=0.03)


def test_losses_come_at_the_rate_asked_for() -> None:
    assert not draw_stream(a_plan(), 100, seed=0).is_missing.any()
    lost = draw_stream(a_plan(missing=0.1), 5_000, seed=0).is_missing.mean()
    assert lost == pytest.approx(0.1, abs=0.02)


def test_with_losses_dear_answers_take_longer_the_mean_stays() -> None:
    np.testing.assert_array_equal(delays(a_plan(delay=64), a_table()), np.full((6, 2), 64.0))
    uneven = delays(a_plan(delay=64, missing=0.1), a_table())
    assert uneven[:, 0].max() < uneven[:, 1].min()
    assert uneven.mean() == pytest.approx(64, abs=1)


def test_a_stream_can_be_cut_short() -> None:
    whole = draw_stream(a_plan(), 10, seed=0)
    cut = first_requests(whole, 4)
    np.testing.assert_array_equal(cut.rows, whole.rows[:4])
    assert len(cut.uniforms) == len(cut.w_quality) == len(cut.is_missing) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seeds", 0),
        ("split", 1.0),
        ("delay", -1),
        ("passes", 0),
        ("missing", 1.0),
        ("passes", 5),
        ("first_seed", -1),
        ("cost_ceiling_usd", 0.0),
    ],
)
def test_numbers_that_make_no_measurement_are_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=f"{field}={value}") as refused:
        a_plan(**{field: value})
    assert refused.value.field == field


def test_an_unknown_task_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="holdout_tasks=three must be one of one, two"):
        split_rows(a_plan(holdout_tasks=("three",)), a_table(), seed=0)
    with pytest.raises(InvalidRequest, match="both parts"):
        split_rows(a_plan(holdout_tasks=("one", "two")), a_table(), seed=0)
