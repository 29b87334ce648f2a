"""The records that travel: columns as written, outcomes that can be true, canonical bytes."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from experiences import a_spec, routed, some_arms

from policies.errors import InvalidOutcome
from policies.interaction import (
    INTERACTION_SCHEMA,
    Outcome,
    canonical_rows,
    contexts,
    decisions_to_batch,
)
from policies.policy import mix_exploration, sample
from policies.posterior import PosteriorPolicy
from policies.posterior_learner import PosteriorLearner

ARMS = some_arms(0.001, 0.009)
POLICY = PosteriorPolicy(PosteriorLearner().initial(a_spec(ARMS)))
CONTEXTS = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)


def _rows() -> pa.Table:
    """Route twelve prompts."""
    outcomes = np.full((12, 2), 0.5)
    rng = np.random.default_rng(0)
    return routed(POLICY, CONTEXTS, ARMS, outcomes, outcomes / 100, rng=rng)


def test_contexts_come_back_as_they_went_in() -> None:
    np.testing.assert_array_equal(contexts(_rows()), CONTEXTS)
    np.testing.assert_array_equal(contexts(_rows().slice(3, 4)), CONTEXTS[3:7])


def test_the_propensity_is_the_pmf_at_the_arm_taken() -> None:
    for row in _rows().to_pylist():
        assert row["propensity"] == row["pmf"][row["arms_offered"].index(row["arm"])]


def test_no_decisions_make_an_empty_batch() -> None:
    assert decisions_to_batch([]).num_rows == 0


def test_contexts_of_two_encoders_in_one_batch_are_refused() -> None:
    short = routed(
        PosteriorPolicy(PosteriorLearner().initial(a_spec(ARMS, context_dim=2))),
        CONTEXTS[:1, :2],
        ARMS,
        np.ones((1, 2)),
        np.ones((1, 2)),
        rng=np.random.default_rng(0),
    )
    with pytest.raises(ValueError, match="several lengths"):
        contexts(pa.concat_tables([_rows(), short]))


def test_canonical_bytes_do_not_depend_on_chunks_or_order() -> None:
    rows = _rows()
    shuffled = pa.concat_tables([rows.slice(7), rows.slice(0, 3), rows.slice(3, 4)])
    assert canonical_rows(shuffled) == canonical_rows(rows)
    assert canonical_rows(rows.slice(1)) != canonical_rows(rows)
    assert pa.ipc.open_stream(canonical_rows(rows)).schema == INTERACTION_SCHEMA


@pytest.mark.parametrize(
    ("reported", "field"),
    [
        ({"quality": 1.7}, "quality"),
        ({"quality": math.nan}, "quality"),
        ({"cost_usd": -1.0}, "cost_usd"),
        ({"latency_ms": math.inf}, "latency_ms"),
        ({"tokens_in": -1}, "tokens_in"),
        ({}, "quality"),
    ],
)
def test_an_outcome_that_cannot_be_true_is_refused(reported: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidOutcome) as refused:
        Outcome(decision_id="d", **reported)  # type: ignore[arg-type]  # numbers, some of them bad
    assert refused.value.field == field


def test_an_outcome_may_say_that_nothing_more_will_come() -> None:
    assert Outcome(decision_id="d", final=True).quality is None


def test_exploration_is_shared_over_the_arms() -> None:
    """The total stays the same in a larger pool."""
    for num_arms in (2, 20):
        sure = np.eye(num_arms)[0]
        mixed = mix_exploration(sure, exploration_total=0.1)
        assert mixed[0] == pytest.approx(0.9 + 0.1 / num_arms)
        assert mixed.sum() == pytest.approx(1.0)


def test_sampling_follows_the_pmf() -> None:
    pmf = np.array([0.2, 0.0, 0.8])
    draws = [sample(pmf, uniform=(i + 0.5) / 1000) for i in range(1000)]
    np.testing.assert_array_equal(np.bincount(draws, minlength=3), [200, 0, 800])
    assert sample(np.array([0.5, 0.5 - 1e-12]), uniform=1 - 1e-16) == 1
