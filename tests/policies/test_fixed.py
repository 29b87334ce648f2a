"""The rule that takes one model: what every policy promises, and what it does without its model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from experiences import a_spec, some_arms
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.arms import Arm
from policies.artifact import PolicyArtifact
from policies.errors import ArtifactError
from policies.fixed import fixed_artifact
from policies.learners import load_policy
from policies.preference import Preference

ARMS = some_arms(0.001, 0.004, 0.009)
BALANCED = Preference(quality=0.5, cost=0.5)
CONTEXT = np.zeros(6, dtype=np.float32)


def _rule(arm: str) -> PolicyArtifact:
    """Make a version that takes one arm, through the files it is stored as."""
    return PolicyArtifact.from_files(fixed_artifact(arm, a_spec(ARMS)).to_files())


@given(w=st.floats(0.0, 1.0), first=st.integers(0, 2), number=st.integers(1, 4))
@settings(max_examples=30)
def test_it_keeps_the_promises_of_a_policy(w: float, first: int, number: int) -> None:
    """The pmf sums to one, its floor is the exploration's, and a batch equals its requests."""
    artifact, preference = _rule(ARMS[first].name), Preference(quality=w, cost=1.0 - w)
    policy = load_policy(artifact)
    pmf = policy.pmf(CONTEXT, preference, ARMS)
    assert pmf.sum() == pytest.approx(1.0, abs=1e-12)
    assert pmf.min() == pytest.approx(artifact.exploration_total / len(ARMS))
    assert pmf.argmax() == first
    assessed = policy.assess(np.tile(CONTEXT, (number, 1)), [preference] * number, ARMS)
    assert np.array_equal(assessed.pmf, np.tile(pmf, (number, 1)))


def test_without_its_model_it_takes_the_cheapest_on_offer() -> None:
    policy = load_policy(_rule("not in the table"))
    dear_first = (ARMS[2], ARMS[1], Arm(name="free"))
    assert policy.greedy_pmf(CONTEXT, BALANCED, dear_first).tolist() == [0.0, 0.0, 1.0]


def test_without_exploration_only_its_model_has_a_chance() -> None:
    policy = load_policy(replace(_rule(ARMS[1].name), exploration_total=0.0))
    assert policy.pmf(CONTEXT, BALANCED, ARMS).tolist() == [0.0, 1.0, 0.0]


def test_an_artifact_of_two_arms_is_refused() -> None:
    with pytest.raises(ArtifactError, match="one arm, not 2"):
        load_policy(replace(_rule(ARMS[0].name), arms=("a", "b")))
