"""Many arms' linear models that share what the data say they share.

theta_a = theta_0 + loading_a * beta * e_0 + delta_a: one model common to all arms, what something
known of an arm beforehand says of its level, and each arm's own departure from both. How far arms
depart, in level and in slopes, and how much prompts matter at all, are variances that are estimated
from the same data by expectation maximisation (empirical Bayes, Dempster, Laird, Rubin 1977): a
pool whose arms differ little borrows much, and nobody turns a knob for it.

Knows nothing of what is modelled; `policies.outcome_models` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Pseudo-observations behind the guess of each variance.
STRENGTH: Final = 1.0
# Variance of what a unit of loading adds to a level, beta, which is expected to be 0.
PER_LOADING: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """Variances expected before anything was seen.

    Attributes:
        level: Of the arms' levels around the pool's.
        slope: Of the arms' own slopes, each feature.
        shared_slope: Of the slopes that all arms share, each feature.
        shared_level: Of the pool's level around `mean`.
        mean: Where the pool's level is expected.
    """

    level: float
    slope: float
    shared_slope: float
    shared_level: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Beliefs:
    """The joint posterior of K models of p features.

    Attributes:
        means: Of each arm's model, shape (K, p).
        covariances: Of each arm's model, shape (K, p, p).
        loading: What is known of each arm beforehand, shape (K,).
        shared_mean: Of what all arms share, theta_0 and then beta, shape (p + 1,).
        shared_covariance: Its covariance, shape (p + 1, p + 1).
        own_variance: How far arms depart from it, shape (p,).
        shared_variance: How large it is expected to be, shape (p + 1,).
    """

    means: Array
    covariances: Array
    loading: Array
    shared_mean: Array
    shared_covariance: Array
    own_variance: Array
    shared_variance: Array

    @classmethod
    def prior(cls, guess: Guess, *, loading: Array, blocks: Sequence[slice]) -> Beliefs:
        """Believe the guess of every arm, one for each loading."""
        p = blocks[-1].stop
        own, shared = np.empty(p), np.empty(p + 1)
        own[0], shared[0], shared[p] = guess.level, guess.shared_level, PER_LOADING
        for block in blocks:
            own[block], shared[block] = guess.slope, guess.shared_slope
        mean = np.zeros(p + 1)
        mean[0] = guess.mean
        return cls._with_variances(own, shared, mean=mean, loading=loading)

    @classmethod
    def _with_variances(cls, own: Array, shared: Array, *, mean: Array, loading: Array) -> Beliefs:
        """Believe nothing more of an arm than `own`, `shared`, `mean` and its loading say."""
        num_arms, p = len(loading), len(own)
        nothing = cls(
            means=np.empty((num_arms, p)),
            covariances=np.empty((num_arms, p, p)),
            loading=loading,
            shared_mean=mean,
            shared_covariance=np.diag(shared),
            own_variance=own,
            shared_variance=shared,
        )
        means, covariances = nothing.of([None] * num_arms, loading)
        return replace(nothing, means=means, covariances=covariances)

    def forgetting_slopes(self) -> Beliefs:
        """Keep levels and all variances, for features that mean something else from now on."""
        mean = np.zeros_like(self.shared_mean)
        mean[[0, -1]] = self.shared_mean[[0, -1]]
        fresh = Beliefs._with_variances(
            self.own_variance, self.shared_variance, mean=mean, loading=self.loading
        )
        fresh.means[:, 0] = self.means[:, 0]
        return fresh

    @classmethod
    def read(cls, weights: Mapping[str, NDArray[Any]], target: str) -> Beliefs:
        """Take those of one target out of an artifact; one without loadings knows of no beta."""
        found = {name: weights[f"{target}.{name}"] for name in _names() if name != "loading"}
        loading = weights.get(f"{target}.loading")
        if loading is None:
            found |= {
                "shared_mean": np.append(found["shared_mean"], 0.0),
                "shared_covariance": np.pad(found["shared_covariance"], (0, 1)),
                "shared_variance": np.append(found["shared_variance"], PER_LOADING),
            }
            loading = np.zeros(len(found["means"]))
        return cls(**found, loading=loading)

    def weights(self, target: str) -> dict[str, NDArray[Any]]:
        """Name them for an artifact."""
        return {f"{target}.{name}": getattr(self, name) for name in _names()}

    def of(self, arms: Sequence[int | None], loading: Array) -> tuple[Array, Array]:
        """Return means and covariances of some arms, None for one that is not known.

        Args:
            arms: Their numbers, m of them.
            loading: What is known of each beforehand, shape (m,); looked at where nothing else is.

        Returns:
            Shapes (m, p) and (m, p, p).
        """
        design = designs(loading, len(self.own_variance))
        means = design @ self.shared_mean
        covariances = design @ self.shared_covariance @ design.transpose(0, 2, 1)
        covariances += np.diag(self.own_variance)
        for place, arm in enumerate(arms):
            if arm is not None:
                means[place], covariances[place] = self.means[arm], self.covariances[arm]
        return means, covariances

    def with_arms(self, loading: Array) -> Beliefs:
        """Append arms of which nothing but the loading is known; the others' may have moved."""
        known = range(len(self.means))
        arms = [*known, *[None] * (len(loading) - len(self.means))]
        means, covariances = self.of(arms, loading)
        return replace(self, means=means, covariances=covariances, loading=loading)


def _names() -> list[str]:
    """List what beliefs are made of."""
    return [field.name for field in fields(Beliefs)]


def designs(loading: Array, p: int) -> Array:
    """Lay out how each arm's model follows what all share, (theta_0, beta), shape (m, p, p + 1)."""
    follows = np.tile(np.eye(p, p + 1), (len(loading), 1, 1))
    follows[:, 0, p] = loading
    return follows


def step(
    beliefs: Beliefs,
    gram: Array,
    moment: Array,
    noise: Array,
    prior_mean: float,
    guess: Guess,
    blocks: Sequence[slice],
    *,
    last: bool,
) -> Beliefs:
    """Find the exact joint posterior under the present variances, then, unless last, new ones.

    The arms are coupled through theta_0 and beta alone, so that K small inversions do. Each arm's
    covariance is found by the last step alone: the others have no use for it.
    """
    p, own = len(beliefs.own_variance), beliefs.own_variance
    inverse_own, design = 1.0 / own, designs(beliefs.loading, p)
    local = np.linalg.inv(gram / noise[:, None, None] + np.diag(inverse_own))
    pull = local * inverse_own  # how an arm's model follows its expectation
    evidence = np.diag(inverse_own) - inverse_own[:, None] * pull
    alone = (local @ (moment / noise[:, None])[:, :, None])[:, :, 0]
    seen = (design.transpose(0, 2, 1) @ evidence @ design).sum(axis=0)
    shared_covariance = np.linalg.inv(np.diag(1.0 / beliefs.shared_variance) + seen)
    right = (design.transpose(0, 2, 1) @ (inverse_own * alone)[:, :, None]).sum(axis=0)[:, 0]
    right[0] += prior_mean / beliefs.shared_variance[0]
    shared_mean = shared_covariance @ right
    expected, uncertain = design @ shared_mean, design @ shared_covariance
    uncertain = uncertain @ design.transpose(0, 2, 1)
    means = alone + (pull @ expected[:, :, None])[:, :, 0]
    shared_variance, covariances = beliefs.shared_variance, beliefs.covariances
    if last:
        covariances = local + (pull @ uncertain) @ pull.transpose(0, 2, 1)
    else:
        apart = pull - np.eye(p)
        departure = (means - expected) ** 2 + np.einsum("kii->ki", local)
        departure += ((apart @ uncertain) * apart).sum(axis=2)
        own = _variances(own, departure.sum(axis=0), len(means), guess.level, guess.slope, blocks)
        size = shared_mean**2 + np.diag(shared_covariance)
        # The pool's level and beta are not estimated from the one pool there is.
        fixed = shared_variance[[0, p]]
        shared_variance = _variances(
            shared_variance, size, 1, guess.shared_level, guess.shared_slope, blocks
        )
        shared_variance[[0, p]] = fixed
    return replace(
        beliefs,
        means=means,
        covariances=covariances,
        shared_mean=shared_mean,
        shared_covariance=shared_covariance,
        own_variance=own,
        shared_variance=shared_variance,
    )


def _variances(
    old: Array, squares: Array, models: int, level: float, slope: float, blocks: Sequence[slice]
) -> Array:
    """Take the mean square of the level, and of each block of slopes, shrunk toward the guess."""
    new = old.copy()
    new[0] = (STRENGTH * level + squares[0]) / (STRENGTH + models)
    for block in blocks:
        size = models * (block.stop - block.start)
        new[block] = (STRENGTH * slope + squares[block].sum()) / (STRENGTH + size)
    return new
