"""Confidence sequences: ends that hold at every look, whatever hangs together in a unit."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from policies.sequences import (
    LOOKS,
    Sequence,
    boundary,
    confidence_sequence,
    planned_boundary,
    planned_sequence,
)

ALPHA = 0.1
ENDS = ("lower", "upper")


def planned(scores: NDArray[np.float64], units: NDArray[np.int64], *, alpha: float) -> Sequence:
    """Take the ends of a trial whose last look is at 4,000."""
    return planned_sequence(scores, units, last_look=4_000, alpha=alpha)


def share_of_paths_that_ever_miss(
    ends: Callable[..., Sequence], *, seed: int, dependent: bool
) -> tuple[float, float]:
    """Look at 400 made-up logs at some 25 sizes each; return how many lower, upper ends missed.

    Scores are rare and large, as importance weighted ones are; with `dependent` all scores of a
    session are the same.
    """
    rng = np.random.default_rng(seed)
    looks = np.unique(np.geomspace(200, 4_000, 25).astype(int))
    missed = np.zeros((400, 2), dtype=bool)
    for path in range(len(missed)):
        sizes = rng.geometric(0.5, size=4_000)
        units = np.repeat(np.arange(4_000), sizes)[:4_000]
        scores = np.where(rng.uniform(size=4_000) < 0.2, rng.normal(5.0, 2.0, size=4_000), 0.0)
        if dependent:
            scores = scores[units]
        for look in looks:
            found = ends(scores[:look], units[:look], alpha=ALPHA)
            missed[path] |= (found.lower > 1.0, found.upper < 1.0)
    lower, upper = missed.mean(axis=0)
    return float(lower), float(upper)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("ends", [confidence_sequence, planned])
def test_each_end_errs_at_any_look_no_more_often_than_stated(
    ends: Callable[..., Sequence], dependent: bool
) -> None:
    # Three standard errors of a share of 400.
    allowed = ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / 400)
    for missed in share_of_paths_that_ever_miss(ends, seed=5, dependent=dependent):
        assert missed <= allowed


@pytest.mark.parametrize(("alpha", "known"), [(0.05, 1.751), (0.025, 2.040), (0.005, 2.623)])
def test_planned_looks_meet_the_boundary_that_tables_give(alpha: float, known: float) -> None:
    """O'Brien and Fleming's constants for five looks (Jennison and Turnbull 2000, table 2.3)."""
    assert planned_boundary(alpha) == pytest.approx(known, abs=2e-3)


def test_planned_looks_are_exceeded_as_often_as_stated() -> None:
    rng = np.random.default_rng(1)
    walks = rng.normal(size=(200_000, LOOKS)).cumsum(axis=1)
    exceeded = (walks > planned_boundary(0.02) * LOOKS**0.5).any(axis=1).mean()
    assert exceeded == pytest.approx(0.02, abs=4 * (0.02 * 0.98 / 200_000) ** 0.5)


def test_a_planned_trial_has_narrower_ends_at_its_last_look_and_little_wider_ones_before() -> None:
    rng = np.random.default_rng(2)
    scores, units = rng.normal(size=4_000), np.arange(4_000)
    for size, narrower in ((700, False), (4_000, True)):
        found = planned(scores[:size], units[:size], alpha=0.05)
        always = confidence_sequence(scores[:size], units[:size], alpha=0.05)
        ratio = (found.upper - found.lower) / (always.upper - always.lower)
        assert ratio < 0.75 if narrower else 1.0 < ratio < 1.1


def test_a_planned_look_says_the_same_however_much_has_come_since() -> None:
    rng = np.random.default_rng(3)
    scores = np.concatenate([rng.normal(size=4_000), rng.normal(loc=9.0, size=500)])
    units = np.arange(4_500)
    then, later = (planned(scores[:n], units[:n], alpha=0.05) for n in (4_000, 4_500))
    assert later.upper <= then.upper
    assert later.n == 4_500


def test_a_planned_look_at_few_units_is_left_out() -> None:
    scores, units = np.random.default_rng(4).normal(size=1_000), np.arange(1_000) // 10
    found = planned_sequence(scores, units, last_look=1_000, alpha=0.05)
    assert (found.lower, found.upper) == pytest.approx(
        tuple(getattr(confidence_sequence(scores, units, alpha=0.03), end) for end in ENDS)
    )


def test_an_ordinary_interval_would_err_more_often_by_far() -> None:
    """What the sequence is for: the one-sided 90 % end of a normal interval, looked at as often."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(400, 4_000))
    counts = np.unique(np.geomspace(200, 4_000, 25).astype(int))
    means = scores.cumsum(axis=1)[:, counts - 1] / counts
    assert ((means - 1.2816 / np.sqrt(counts)) > 0).any(axis=1).mean() > 2 * ALPHA
    ends = np.array([boundary(int(count), alpha=ALPHA) for count in counts])
    assert (means - ends > 0).any(axis=1).mean() <= ALPHA


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.floats(-5, 5), min_size=2, max_size=40),
    labels=st.permutations(range(40)),
    alpha=st.floats(0.01, 0.3),
)
def test_names_of_units_do_not_matter(scores: list[float], labels: list[int], alpha: float) -> None:
    values = np.array(scores)
    units = np.arange(len(values)) // 2
    found = confidence_sequence(values, units, alpha=alpha)
    renamed = confidence_sequence(values, np.array(labels)[units], alpha=alpha)
    ends = (renamed.lower, renamed.upper)
    assert (found.lower, found.upper) == pytest.approx(ends, abs=1e-9)
    assert found.lower <= found.mean <= found.upper
    assert (found.units, found.n) == ((len(values) + 1) // 2, len(values))


@given(count=st.integers(200, 20_000), alpha=st.floats(0.01, 0.2))
def test_more_caution_is_wider_and_more_units_are_narrower(count: int, alpha: float) -> None:
    at = boundary(count, alpha=alpha, tuned_to=count)
    assert boundary(count, alpha=alpha / 2, tuned_to=count) > at
    assert boundary(2 * count, alpha=alpha, tuned_to=count) < at
    # An ordinary one-sided interval is narrower, by a factor below two.
    once = NormalDist().inv_cdf(1.0 - alpha) / count**0.5
    assert once < at < 3 * once


def test_one_unit_alone_says_nothing() -> None:
    found = confidence_sequence(np.ones(5), np.zeros(5, dtype=np.int64))
    assert (found.lower, found.upper, found.units) == (-np.inf, np.inf, 1)


def test_no_score_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        confidence_sequence(np.zeros(0), np.zeros(0, dtype=np.int64))
