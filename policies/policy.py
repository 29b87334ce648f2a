"""What every policy promises, and the two steps all of them share: exploration and the draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from policies.arms import Arm
from policies.preference import Preference

DEFAULT_EXPLORATION_TOTAL: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What a policy makes of n requests that are offered the same m arms.

    Attributes:
        pmf: Probability of each arm, exploration included, shape (n, m).
        quality: Expected quality in [0, 1], shape (n, m); None where no outcome is modelled.
        cost_usd: Expected cost, USD, shape (n, m); None where no outcome is modelled.
    """

    pmf: NDArray[np.float64]
    quality: NDArray[np.float64] | None = None
    cost_usd: NDArray[np.float64] | None = None


class Policy(Protocol):
    """A frozen decision rule, loaded from one artifact.

    The pmf is a pure function of context, preference, version and the arms offered with their
    prices: it holds no state and draws nothing, so that a batch of n equals n batches of one and
    `barp explain` can derive it again.
    """

    @property
    def kind(self) -> str:
        """Which learner made it."""

    @property
    def encoder_id(self) -> str:
        """Whose contexts it was trained on."""

    @property
    def context_dim(self) -> int:
        """Length of a context."""

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return the probability of each arm offered, exploration included.

        Args:
            context: The encoded prompt, float32, shape (context_dim,).
            preference: The caller's trade-off.
            offered: The arms that may be chosen, at least one, with the prices of now.

        Returns:
            Probabilities in the order of `offered`, float64, shape (num_offered,).
        """

    def assess(
        self,
        contexts: NDArray[np.float32],
        preferences: Sequence[Preference],
        offered: Sequence[Arm],
    ) -> Assessment:
        """Return pmf and expectation of n requests at once, up to rounding as one by one.

        Args:
            contexts: The encoded prompts, float32, shape (n, context_dim).
            preferences: The callers' trade-offs, length n.
            offered: The arms that all of them may be sent to, at least one.
        """

    def greedy_pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return the pmf with exploration off: what the policy knows, apart from what it tries.

        For judging only, never served: an arm may have no probability at all.
        """


def assess_one_by_one(
    pmf: Callable[[NDArray[np.float32], Preference, Sequence[Arm]], NDArray[np.float64]],
    contexts: NDArray[np.float32],
    preferences: Sequence[Preference],
    offered: Sequence[Arm],
) -> Assessment:
    """Assess requests with a policy's `pmf`, for one that models no outcome."""
    requests = zip(contexts, preferences, strict=True)
    return Assessment(pmf=np.stack([pmf(context, w, offered) for context, w in requests]))


def mix_exploration(probs: NDArray[np.float64], *, exploration_total: float) -> NDArray[np.float64]:
    """Share a fixed probability over all arms, so that each can be evaluated off-policy.

    The total is shared: a constant per arm would grow with the pool.

    Args:
        probs: Probabilities, shape (num_offered,), summing to one.
        exploration_total: Probability in [0, 1] that is spread evenly.

    >>> mix_exploration(np.array([1.0, 0.0]), exploration_total=0.1)
    array([0.95, 0.05])
    """
    mixed = (1.0 - exploration_total) * probs + exploration_total / len(probs)
    return np.asarray(mixed / mixed.sum(), dtype=np.float64)


def mix_canary(
    champion: NDArray[np.float64], canary: NDArray[np.float64], *, share: float
) -> NDArray[np.float64]:
    """Return the pmf of a draw that a canary makes with a given probability.

    Args:
        champion: The champion's probabilities, shape (..., num_offered).
        canary: The canary's, of the same shape.
        share: Probability in [0, 1] that the canary draws.

    >>> mix_canary(np.array([1.0, 0.0]), np.array([0.0, 1.0]), share=0.25)
    array([0.75, 0.25])
    """
    return np.asarray((1.0 - share) * champion + share * canary, dtype=np.float64)


def all_on(index: int, num_arms: int) -> NDArray[np.float64]:
    """Return the pmf that always takes one arm, shape (num_arms,).

    >>> all_on(1, 3)
    array([0., 1., 0.])
    """
    probs = np.zeros(num_arms)
    probs[index] = 1.0
    return probs


def sample(probs: NDArray[np.float64], *, uniform: float) -> int:
    """Draw an index from a pmf by inversion.

    Args:
        probs: Probabilities, shape (num_offered,), summing to one.
        uniform: The random number to invert, in [0, 1).

    >>> [sample(np.array([0.25, 0.75]), uniform=u) for u in (0.0, 0.24, 0.25, 0.99)]
    [0, 0, 1, 1]
    """
    index = int(np.searchsorted(np.cumsum(probs), uniform, side="right"))
    # Rounding may leave the last cumulative sum a hair below one.
    return min(index, len(probs) - 1)


def sample_rows(probs: NDArray[np.float64], *, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draw an index from each of several pmfs, as `sample` does for one.

    Args:
        probs: Probabilities, shape (n, num_offered), rows summing to one.
        uniforms: The random numbers to invert, in [0, 1), shape (n,).

    Returns:
        Shape (n,).

    >>> sample_rows(np.array([[0.25, 0.75], [1.0, 0.0]]), uniforms=np.array([0.25, 0.99]))
    array([1, 0])
    """
    passed = np.cumsum(probs, axis=1) <= uniforms[:, None]
    # Rounding may leave the last cumulative sum a hair below one.
    return np.asarray(np.minimum(passed.sum(axis=1), probs.shape[1] - 1), dtype=np.int64)
