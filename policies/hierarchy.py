"""Many arms' linear models that share what the data say they share.

theta_a = theta_0 + delta_a: one model common to all arms, and each arm's own departure from it. How
far arms depart, in level and in slopes, and how much prompts matter at all, are variances that are
estimated from the same data by expectation maximisation (empirical Bayes, Dempster, Laird, Rubin
1977): a pool whose arms differ little borrows much, and nobody turns a knob for it.

Knows nothing of what is modelled; `policies.outcome_models` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Pseudo-observations behind the guess of each variance.
STRENGTH: Final = 1.0


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
        shared_mean: Of what all arms share, shape (p,).
        shared_covariance: Its covariance, shape (p, p).
        own_variance: How far arms depart from it, shape (p,).
        shared_variance: How large it is expected to be, shape (p,).
    """

    means: Array
    covariances: Array
    shared_mean: Array
    shared_covariance: Array
    own_variance: Array
    shared_variance: Array

    @classmethod
    def prior(cls, guess: Guess, *, num_arms: int, blocks: Sequence[slice]) -> Beliefs:
        """Believe the guess, of every arm the same."""
        p = blocks[-1].stop
        own, shared = np.empty(p), np.empty(p)
        own[0], shared[0] = guess.level, guess.shared_level
        for block in blocks:
            own[block], shared[block] = guess.slope, guess.shared_slope
        mean = np.zeros(p)
        mean[0] = guess.mean
        return cls.with_variances(own, shared, mean=mean, num_arms=num_arms)

    @classmethod
    def with_variances(cls, own: Array, shared: Array, *, mean: Array, num_arms: int) -> Beliefs:
        """Believe the same of every arm, as far apart as `own`, `shared` and `mean` say."""
        return cls(
            means=np.tile(mean, (num_arms, 1)),
            covariances=np.tile(np.diag(own + shared), (num_arms, 1, 1)),
            shared_mean=mean,
            shared_covariance=np.diag(shared),
            own_variance=own,
            shared_variance=shared,
        )

    def forgetting_slopes(self) -> Beliefs:
        """Keep levels and all variances, for features that mean something else from now on."""
        mean = np.zeros_like(self.shared_mean)
        mean[0] = self.shared_mean[0]
        fresh = Beliefs.with_variances(
            self.own_variance, self.shared_variance, mean=mean, num_arms=len(self.means)
        )
        fresh.means[:, 0] = self.means[:, 0]
        return fresh

    @classmethod
    def read(cls, weights: Mapping[str, NDArray[Any]], target: str) -> Beliefs:
        """Take those of one target out of an artifact.

        Raises:
            KeyError: Something is missing.
            ValueError: Shapes that do not belong together.
        """
        found = cls(**{field.name: weights[f"{target}.{field.name}"] for field in fields(cls)})
        k, p = found.means.shape
        expected: dict[str, tuple[int, ...]] = {
            "covariances": (k, p, p),
            "shared_covariance": (p, p),
        }
        for name in ("shared_mean", "own_variance", "shared_variance"):
            expected[name] = (p,)
        for name, shape in expected.items():
            if getattr(found, name).shape != shape:
                raise ValueError(f"{target}.{name} must have the shape {shape}")
        return found

    def weights(self, target: str) -> dict[str, NDArray[Any]]:
        """Name them for an artifact."""
        return {f"{target}.{field.name}": getattr(self, field.name) for field in fields(self)}

    def of(self, arms: Sequence[int | None]) -> tuple[Array, Array]:
        """Return means and covariances of some arms, None for one that is not known.

        Returns:
            Shapes (len(arms), p) and (len(arms), p, p).
        """
        unknown = np.diag(self.own_variance) + self.shared_covariance
        return (
            np.stack([self.shared_mean if k is None else self.means[k] for k in arms]),
            np.stack([unknown if k is None else self.covariances[k] for k in arms]),
        )

    def with_arms(self, num_arms: int) -> Beliefs:
        """Append arms of which nothing is known."""
        known = range(len(self.means))
        means, covariances = self.of([*known, *[None] * (num_arms - len(self.means))])
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Beliefs(**values | {"means": means, "covariances": covariances})


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

    The arms are coupled through theta_0 alone, so that K small inversions do.
    """
    p, own = len(beliefs.own_variance), beliefs.own_variance
    inverse_own = 1.0 / own
    local = np.linalg.inv(gram / noise[:, None, None] + np.diag(inverse_own))
    pull = local * inverse_own  # how an arm's model follows theta_0
    evidence = np.diag(inverse_own) - inverse_own[:, None] * pull
    alone = (local @ (moment / noise[:, None])[:, :, None])[:, :, 0]
    shared_covariance = np.linalg.inv(np.diag(1.0 / beliefs.shared_variance) + evidence.sum(axis=0))
    right = inverse_own * alone.sum(axis=0)
    right[0] += prior_mean / beliefs.shared_variance[0]
    shared_mean = shared_covariance @ right
    means = alone + pull @ shared_mean
    shared_variance = beliefs.shared_variance
    if not last:
        apart = pull - np.eye(p)
        departure = (means - shared_mean) ** 2 + np.einsum("kii->ki", local)
        departure += ((apart @ shared_covariance) * apart).sum(axis=2)
        own = _variances(own, departure.sum(axis=0), len(means), guess.level, guess.slope, blocks)
        size = shared_mean**2 + np.diag(shared_covariance)
        # The pool's level is not estimated from the one pool there is.
        fixed = shared_variance[0]
        shared_variance = _variances(shared_variance, size, 1, fixed, guess.shared_slope, blocks)
        shared_variance[0] = fixed
    return Beliefs(
        means=means,
        covariances=local + (pull @ shared_covariance) @ pull.transpose(0, 2, 1),
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
