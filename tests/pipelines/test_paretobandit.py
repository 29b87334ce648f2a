"""ParetoBandit behind our contract: it routes, learns quality, and its cost dial turns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from experiences import some_arms

from pipelines.paretobandit import SHIPPED_DIM, ParetoBanditContender, shipped_features
from policies.preference import Preference

ARMS = some_arms(0.0005, 0.02)
ONLY_QUALITY, ONLY_COST = Preference(quality=1, cost=0), Preference(quality=0, cost=1)
CONTEXT = np.ones(3, dtype=np.float32)


def _taught() -> ParetoBanditContender:
    """Teach it that the dear arm answers better."""
    contender = ParetoBanditContender(ARMS, context_dim=3, seed=0)
    rows = {
        "arm": ["a", "b"] * 20,
        "context": [CONTEXT.tolist()] * 40,
        "quality": [0.1, 0.9] * 19 + [None, None],
    }
    contender.learn(pa.table(rows, schema=_schema()))
    return contender


def _schema() -> pa.Schema:
    return pa.schema(
        [("arm", pa.string()), ("context", pa.list_(pa.float32())), ("quality", pa.float64())]
    )


@pytest.mark.parametrize("preference", [ONLY_QUALITY, ONLY_COST])
def test_it_takes_one_arm(preference: Preference) -> None:
    pmf = ParetoBanditContender(ARMS, context_dim=3, seed=0).pmf(CONTEXT, preference)
    assert sorted(pmf.tolist()) == [0.0, 1.0]


def test_the_preference_turns_its_cost_dial() -> None:
    contender = _taught()
    np.testing.assert_array_equal(contender.greedy_pmf(CONTEXT, ONLY_QUALITY), [0.0, 1.0])
    np.testing.assert_array_equal(contender.greedy_pmf(CONTEXT, ONLY_COST), [1.0, 0.0])


def test_judging_it_changes_nothing() -> None:
    contender = _taught()
    before = contender.greedy_pmf(CONTEXT, Preference(quality=0.5, cost=0.5))
    for w in np.linspace(0, 1, 20):
        contender.greedy_pmf(CONTEXT, Preference(quality=float(w), cost=float(1 - w)))
    np.testing.assert_array_equal(
        contender.greedy_pmf(CONTEXT, Preference(quality=0.5, cost=0.5)), before
    )


def test_contexts_of_minilm_are_cut_to_the_components_it_ships() -> None:
    matrix, offset = shipped_features(SHIPPED_DIM)
    assert matrix.shape == (26, SHIPPED_DIM)
    assert offset[-1] == 1.0
    assert (matrix[-1] == 0.0).all()


def test_other_contexts_are_given_as_they_are() -> None:
    matrix, offset = shipped_features(3)
    np.testing.assert_array_equal(matrix @ CONTEXT + offset, [1.0, 1.0, 1.0, 1.0])
