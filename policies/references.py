"""What a policy is measured against where every model's outcome is known.

Everything is exact: expectations over the pmf, no sampling. Knows nothing of how the outcomes
were recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.arms import Arm
from policies.policy import Policy
from policies.preference import Preference
from policies.reward import scalar_reward, scaled_cost

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What each of K arms was worth and cost on n prompts that nothing was trained on.

    Attributes:
        contexts: The encoded prompts, float32, shape (n, context_dim).
        scores: Quality in [0, 1], shape (n, K).
        costs: What the call cost, USD, shape (n, K).
        arms: The arms with their prices, length K, in the order of the columns.
        cost_ceiling_usd: USD at and above which a call counts as fully expensive.
    """

    contexts: NDArray[np.float32]
    scores: Array
    costs: Array
    arms: tuple[Arm, ...]
    cost_ceiling_usd: float

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together; raises ValueError."""
        shape = (len(self.contexts), len(self.arms))
        if not self.scores.shape == self.costs.shape == shape:
            raise ValueError(f"scores and costs must be {shape}, not {self.scores.shape}")

    def rewards(self, preference: Preference) -> Array:
        """Return what each arm was worth under a preference, shape (n, K)."""
        return _rewards(self.scores, self.costs, preference, self.cost_ceiling_usd)


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Mean reward of simple rules on the held-out prompts, over the preference grid.

    Attributes:
        random: Every arm with the same probability.
        cheapest: Always the arm with the lowest mean cost in training.
        largest: Always the arm with the highest.
        best_single: At each preference the arm with the best mean reward in training.
        oracle: For each prompt and preference the arm that turns out best.
    """

    random: float
    cheapest: float
    largest: float
    best_single: float
    oracle: float

    def gap_closed(self, reward: float) -> float:
        """Return how far from best single (0) to oracle (1) a mean reward lies."""
        return (reward - self.best_single) / (self.oracle - self.best_single)


def reference_rewards(
    held_out: HeldOut, train_scores: Array, train_costs: Array, grid: Sequence[Preference]
) -> References:
    """Judge every reference on the same prompts.

    Args:
        held_out: What they are judged on.
        train_scores: Quality of the same arms on other prompts, shape (m, K).
        train_costs: Their cost there, USD, shape (m, K).
        grid: The preferences to average over.
    """
    mean_cost = train_costs.mean(axis=0)
    ceiling = held_out.cost_ceiling_usd
    # Per preference: each arm's mean on the held-out prompts, and in training.
    means = np.array([held_out.rewards(w).mean(axis=0) for w in grid])
    trained = [_rewards(train_scores, train_costs, w, ceiling).mean(axis=0) for w in grid]
    best_trained = np.argmax(trained, axis=1)
    return References(
        random=float(means.mean()),
        cheapest=float(means[:, mean_cost.argmin()].mean()),
        largest=float(means[:, mean_cost.argmax()].mean()),
        best_single=float(means[np.arange(len(grid)), best_trained].mean()),
        oracle=float(np.mean([held_out.rewards(w).max(axis=1).mean() for w in grid])),
    )


def fixed_choices(
    held_out: HeldOut,
    train_scores: Array,
    train_costs: Array,
    grid: Sequence[Preference],
    *,
    seed: int = 0,
) -> dict[str, Array]:
    """Lay out every rule that looks at no prompt, and the oracle, which looks at the outcome.

    `even_log` is the best single arm by what one arm a training prompt, each as likely as another,
    tells of its quality: what a bandit that spreads its requests evenly knows of levels.

    Args:
        held_out: What they are to be judged on, n prompts and K arms.
        train_scores: Quality of the same arms on other prompts, shape (m, K).
        train_costs: Their cost there, USD, shape (m, K).
        grid: The preferences, G of them.
        seed: Of the even log.

    Returns:
        Probability of each arm by name of the rule, shape (G, n, K).
    """
    num_prompts, num_arms = held_out.scores.shape
    shape, always = (len(grid), num_prompts, num_arms), np.eye(num_arms)
    mean_cost, ceiling = train_costs.mean(axis=0), held_out.cost_ceiling_usd
    trained = [_rewards(train_scores, train_costs, w, ceiling).mean(axis=0) for w in grid]
    best_trained = always[np.argmax(trained, axis=1)][:, None, :]
    logged = even_log_quality(train_scores, seed=seed)
    paid = scaled_cost(train_costs, cost_ceiling_usd=ceiling).mean(axis=0)
    by_log = [(w.quality * logged - w.cost * paid).argmax() for w in grid]
    return {
        "uniform": np.full(shape, 1.0 / num_arms),
        "cheapest": np.broadcast_to(always[mean_cost.argmin()], shape),
        "largest": np.broadcast_to(always[mean_cost.argmax()], shape),
        "best_single": np.broadcast_to(best_trained, shape),
        "even_log": np.broadcast_to(always[by_log][:, None, :], shape),
        "oracle": always[np.array([held_out.rewards(w).argmax(axis=1) for w in grid])],
    }


def even_log_quality(scores: Array, *, seed: int) -> Array:
    """Return each arm's mean quality over prompts dealt evenly to the arms, shape (K,).

    An arm that was dealt no prompt counts 0.

    Args:
        scores: Quality, shape (n, K).
        seed: Of the deal.
    """
    num, num_arms = scores.shape
    dealt = np.random.default_rng([seed, 3]).permutation(num) % num_arms
    taken = scores[np.arange(num), dealt]
    count = np.bincount(dealt, minlength=num_arms)
    return np.asarray(np.bincount(dealt, taken, minlength=num_arms) / np.maximum(count, 1))


def heldout_reward(policy: Policy, held_out: HeldOut, grid: Sequence[Preference]) -> Array:
    """Return the expected reward of a policy's pmf at each preference, shape (len(grid),)."""
    return np.array(
        [(pmfs(policy, held_out, w) * held_out.rewards(w)).sum(axis=1).mean() for w in grid]
    )


def arm_share(policy: Policy, held_out: HeldOut, w_quality: float) -> dict[str, float]:
    """Return the mean probability of each arm, by name, at one weight on quality."""
    preference = Preference(quality=w_quality, cost=1.0 - w_quality)
    shares = pmfs(policy, held_out, preference).mean(axis=0)
    return {arm.name: float(share) for arm, share in zip(held_out.arms, shares, strict=True)}


def pmfs(policy: Policy, held_out: HeldOut, preference: Preference) -> Array:
    """Return the pmf on every held-out prompt at one preference, shape (n, K)."""
    return np.array([policy.pmf(row, preference, held_out.arms) for row in held_out.contexts])


def _rewards(scores: Array, costs: Array, preference: Preference, ceiling_usd: float) -> Array:
    """Weigh every outcome by one preference."""
    w_quality = np.array(preference.quality)
    return scalar_reward(scores, costs, w_quality, cost_ceiling_usd=ceiling_usd)
