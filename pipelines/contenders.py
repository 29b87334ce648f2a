"""Who is measured while it learns: what a stream asks of them, and our learners behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import PriceTable
from policies.learners import load_policy
from policies.learning import Learner, LearnerSpec
from policies.policy import Policy
from policies.preference import Preference

Array = NDArray[np.float64]
Context = NDArray[np.float32]

PRICE_VERSION: Final = 1


class Contender(Protocol):
    """One run of one method: it decides, and learns from what came of its decisions."""

    def pmf(self, context: Context, preference: Preference) -> Array:
        """Return the probabilities a request is decided with, shape (K,)."""

    def greedy_pmf(self, context: Context, preference: Preference) -> Array:
        """Return them with exploration off, shape (K,)."""

    def learn(self, rows: pa.Table) -> None:
        """Learn from interactions, schema INTERACTION_SCHEMA."""


class LearnerContender:
    """A learner, updated as the trainer does it: each version from the one before."""

    def __init__(self, learner: Learner, spec: LearnerSpec, *, fresh_draws: bool = False) -> None:
        """Make the first version.

        Args:
            learner: Who learns.
            spec: What from.
            fresh_draws: Draw anew for each request what a Thompson policy keeps in its version:
                for comparison only, its pmf is no function of version and request any more.
        """
        self._learner, self._arms = learner, spec.arms
        self._fresh = np.random.default_rng([spec.seed, 2]) if fresh_draws else None
        self._prices = {PRICE_VERSION: PriceTable(version=PRICE_VERSION, arms=spec.arms)}
        self._artifact = learner.initial(spec)
        self._policy = load_policy(self._artifact)

    def pmf(self, context: Context, preference: Preference) -> Array:
        """Return the policy's pmf."""
        policy = self._policy if self._fresh is None else self._redrawn(self._fresh)
        return policy.pmf(context, preference, self._arms)

    def greedy_pmf(self, context: Context, preference: Preference) -> Array:
        """Return the policy's pmf without exploration."""
        return self._policy.greedy_pmf(context, preference, self._arms)

    def learn(self, rows: pa.Table) -> None:
        """Make the next version."""
        self._artifact = self._learner.update(self._artifact, rows, self._prices)
        self._policy = load_policy(self._artifact)

    def _redrawn(self, rng: np.random.Generator) -> Policy:
        """Return the policy with other draws; one that has none stays what it is."""
        weights = self._artifact.weights
        if "draws" not in weights:
            return self._policy
        drawn = rng.permuted(weights["draws"], axis=1)
        return load_policy(replace(self._artifact, weights={**weights, "draws": drawn}))
