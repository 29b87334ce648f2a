"""Many arms' linear models that share what the data say they share.

theta_a = theta_0 + delta_a: one model common to all arms, and each arm's own departure from it. How
far arms depart, in level and in slopes, and how much prompts matter at all, are variances that are
estimated from the same data by expectation maximisation (empirical Bayes, Dempster, Laird, Rubin
1977): a pool whose arms differ little borrows much, and nobody turns a knob for it.

Quality is fitted as a logistic model, cost as a linear one. Knows nothing of artifacts, prices or
preferences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# Pseudo-observations behind the guess of each variance.
STRENGTH: Final = 1.0
# A logistic model's own variance is never taken for less: certainty would stop all learning.
LEAST_VARIANCE: Final = 0.02
# Pseudo-observations that shrink an arm's noise toward the pool's, and the pool's toward its guess.
QUALITY_NOISE: Final = (20.0, 8.0)
COST_NOISE: Final = (8.0, 4.0)
GUESSED_COST_NOISE: Final = 0.02
LEAST_COST_NOISE: Final = 1e-5
MAX_LOGIT: Final = 30.0


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


# On the logit scale; and of scaled cost, as a departure from list price.
QUALITY_GUESS: Final = Guess(level=0.5, slope=0.02, shared_slope=0.1, shared_level=1.0, mean=0.0)
COST_GUESS: Final = Guess(level=0.02, slope=0.005, shared_slope=0.02, shared_level=0.25, mean=0.0)


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
        """Take those of one target out of an artifact."""
        return cls(**{field.name: weights[f"{target}.{field.name}"] for field in fields(cls)})

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What one target is fitted to, sorted by arm.

    Attributes:
        features: Shape (n, p).
        arm: Index of the arm each row belongs to, shape (n,), ascending.
        target: Shape (n,).
        borders: Where each arm's rows begin, and where the last one's end, shape (K + 1,).
    """

    features: Array
    arm: Indices
    target: Array
    borders: Indices

    @classmethod
    def sorted(cls, features: Array, arm: Indices, target: Array, *, num_arms: int) -> Rows:
        """Sort rows, those without a target (NaN) left out."""
        known = np.flatnonzero(~np.isnan(target))
        order = known[np.argsort(arm[known], kind="stable")]
        return cls(
            features=features[order],
            arm=arm[order],
            target=target[order],
            borders=np.searchsorted(arm[order], np.arange(num_arms + 1)),
        )

    @property
    def count(self) -> Array:
        """Rows of each arm, shape (K,)."""
        return np.diff(self.borders).astype(np.float64)

    def by_arm(self, values: Array) -> Array:
        """Add values up by arm, shape (K,)."""
        sums = np.bincount(self.arm, weights=values, minlength=len(self.borders) - 1)
        return np.asarray(sums, dtype=np.float64)

    def predicted(self, means: Array) -> Array:
        """Return each row's features times its arm's model, shape (n,)."""
        return np.asarray((self.features * means[self.arm]).sum(axis=1))

    def sums(self, weight: Array, target: Array) -> tuple[Array, Array]:
        """Return weighted Gram matrices (K, p, p) and moments (K, p)."""
        weighted = self.features * weight[:, None]
        parts = [slice(a, b) for a, b in zip(self.borders[:-1], self.borders[1:], strict=True)]
        return (
            np.stack([self.features[part].T @ weighted[part] for part in parts]),
            np.stack([weighted[part].T @ target[part] for part in parts]),
        )


def fit_quality(start: Beliefs, rows: Rows, blocks: Sequence[slice], rounds: int) -> Beliefs:
    """Fit a logistic model; quality may be graded, then it is quasi-binomial.

    By the bound of Jaakkola and Jordan (2000): each round is a weighted least squares that cannot
    make the fit worse, however far off it starts, and that rests where the likelihood does.
    Newton's steps diverge where new rows contradict what was believed. A step of expectation
    maximisation comes with each round.

    Args:
        start: Beliefs to go on from.
        rows: Qualities in [0, 1], at least one.
        blocks: Features that have a variance in common.
        rounds: How many steps; few are enough where little is new.
    """
    pool = float(np.clip(rows.target.mean(), 0.02, 0.98))
    prior_mean = float(np.log(pool / (1.0 - pool)))
    beliefs = start
    for number in range(rounds + 1):
        logit = rows.predicted(beliefs.means)
        weight, noise = bound_weight(logit), _quality_noise(rows, sigmoid(logit))
        sums = rows.sums(weight, (rows.target - 0.5) / weight)
        last = number == rounds
        beliefs = _step(beliefs, *sums, noise, prior_mean, QUALITY_GUESS, blocks, last=last)
    return _with_exact_curvature(beliefs, rows, prior_mean, blocks)


def bound_weight(logit: Array) -> Array:
    """Return the curvature of the quadratic bound on the logistic likelihood that touches here.

    >>> bound_weight(np.array([0.0, 2.0])).round(4)
    array([0.25  , 0.1904])
    """
    size = np.maximum(np.abs(logit), 1e-6)
    return np.asarray(np.tanh(size / 2.0) / (2.0 * size))


def _with_exact_curvature(
    beliefs: Beliefs, rows: Rows, prior_mean: float, blocks: Sequence[slice]
) -> Beliefs:
    """State covariances by the likelihood's own curvature: the bound's is too sure of itself."""
    logit = rows.predicted(beliefs.means)
    quality = sigmoid(logit)
    sums = rows.sums(np.maximum(quality * (1.0 - quality), LEAST_VARIANCE), logit)
    noise = _quality_noise(rows, quality)
    exact = _step(beliefs, *sums, noise, prior_mean, QUALITY_GUESS, blocks, last=True)
    return replace(
        beliefs, covariances=exact.covariances, shared_covariance=exact.shared_covariance
    )


def _quality_noise(rows: Rows, quality: Array) -> Array:
    """Estimate how much wider than binomial each arm's outcomes spread, shape (K,)."""
    shrink_arm, shrink_pool = QUALITY_NOISE
    variance = np.maximum(quality * (1.0 - quality), LEAST_VARIANCE)
    pearson = (rows.target - quality) ** 2 / variance
    common = (shrink_pool + pearson.sum()) / (shrink_pool + len(pearson))
    noise = (shrink_arm * common + rows.by_arm(pearson)) / (shrink_arm + rows.count)
    return np.asarray(np.clip(noise, 0.05, 1.5))


def fit_cost(start: Beliefs, rows: Rows, blocks: Sequence[slice], rounds: int) -> Beliefs:
    """Fit a linear model whose noise is each arm's own, shrunk toward the pool's.

    Args:
        start: Beliefs to go on from.
        rows: Scaled costs, or departures from a known level, at least one.
        blocks: Features that have a variance in common.
        rounds: How many steps; one is enough where little is new.
    """
    shrink_arm, shrink_pool = COST_NOISE
    gram, moment = rows.sums(np.ones(len(rows.target)), rows.target)
    beliefs = start
    for number in range(rounds + 1):
        residual = (rows.target - rows.predicted(beliefs.means)) ** 2
        guessed = shrink_pool * GUESSED_COST_NOISE
        common = (guessed + residual.sum()) / (shrink_pool + len(residual))
        noise = (shrink_arm * common + rows.by_arm(residual)) / (shrink_arm + rows.count)
        last = number == rounds
        noise = np.maximum(noise, LEAST_COST_NOISE)
        beliefs = _step(
            beliefs, gram, moment, noise, COST_GUESS.mean, COST_GUESS, blocks, last=last
        )
    return beliefs


def sigmoid(logit: Array) -> Array:
    """Map logits to probabilities."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logit, -MAX_LOGIT, MAX_LOGIT))))


def _step(
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
