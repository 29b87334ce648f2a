"""Confidence sequences: ends that hold at every look, whatever hangs together in a unit."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.sequences import boundary, confidence_sequence

ALPHA = 0.1


def share_of_paths_that_ever_miss(*, seed: int, dependent: bool) -> tuple[float, float]:
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
            found = confidence_sequence(scores[:look], units[:look], alpha=ALPHA)
            missed[path] |= (found.lower > 1.0, found.upper < 1.0)
    lower, upper = missed.mean(axis=0)
    return float(lower), float(upper)


@pytest.mark.parametrize("dependent", [False, True])
def test_each_end_errs_at_any_look_no_more_often_than_stated(dependent: bool) -> None:
    # Three standard errors of a share of 400.
    allowed = ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / 400)
    for missed in share_of_paths_that_ever_miss(seed=5, dependent=dependent):
        assert missed <= allowed


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
