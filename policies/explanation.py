"""Why this model: a decision derived again from what was stored of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable
from policies.policy import Assessment, Policy, mix_canary
from policies.preference import Preference
from policies.reward import scalar_reward

Array = NDArray[np.float64]

# Requests assessed together differ from one alone in the last digits only.
TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """What is stored of a decision and needed to derive it again.

    Attributes:
        context: The encoded prompt as used, float32, shape (context_dim,).
        preference: The trade-off it was decided under.
        arms_offered: Names of the arms it could have gone to.
        pmf: Probability of each as logged, float64, shape (num_offered,).
        arm: The one it went to.
        prompt_characters: Length of the prompt.
        canary_share: Probability that the canary drew, 0 without one.
    """

    context: NDArray[np.float32]
    preference: Preference
    arms_offered: tuple[str, ...]
    pmf: Array
    arm: str
    prompt_characters: int
    canary_share: float


def explain(
    logged: Logged,
    *,
    champion: Policy,
    canary: Policy | None,
    prices: PriceTable,
    drawn_by_canary: bool,
    cost_ceiling_usd: float,
) -> dict[str, Any]:
    """Derive the pmf again and lay out, per model, what made it; plain JSON values.

    Args:
        logged: The decision.
        champion: The version that served.
        canary: The version on trial beside it, None where there was none.
        prices: The price table of the decision, which may name models that are gone since.
        drawn_by_canary: Whether the canary drew: then the expectations shown are its own.
        cost_ceiling_usd: What whoever drew scales costs by, USD.

    Raises:
        UnknownArm: The price table does not hold an arm that was offered.
    """
    offered = tuple(prices.arm(name) for name in logged.arms_offered)
    assessed = _assess(champion, logged, offered)
    pmf, who_drew, on_trial = assessed.pmf[0], assessed, None
    if canary is not None:
        on_trial = _assess(canary, logged, offered)
        pmf = mix_canary(assessed.pmf[0], on_trial.pmf[0], share=logged.canary_share)
        who_drew = on_trial if drawn_by_canary else assessed
    worth = _worth(logged, who_drew, cost_ceiling_usd)
    difference = float(np.abs(pmf - logged.pmf).max())
    return {
        "agrees": difference <= TOLERANCE,
        "max_difference": difference,
        "floor": float(pmf.min()),
        "propensity": float(pmf[logged.arms_offered.index(logged.arm)]),
        "not_offered": [name for name in prices.names if name not in logged.arms_offered],
        "models": [
            _row(logged, arm, index, pmf, assessed, on_trial, who_drew)
            | {"expected_reward": _at(worth, index)}
            for index, arm in enumerate(offered)
        ],
    }


def _assess(policy: Policy, logged: Logged, offered: Sequence[Arm]) -> Assessment:
    return policy.assess(logged.context[None], [logged.preference], offered)


def _worth(logged: Logged, assessed: Assessment, cost_ceiling_usd: float) -> Array | None:
    """Weigh what was expected of each arm, shape (1, m); None where nothing was."""
    if assessed.quality is None or assessed.cost_usd is None:
        return None
    return scalar_reward(
        assessed.quality,
        assessed.cost_usd,
        np.array(logged.preference.quality),
        cost_ceiling_usd=cost_ceiling_usd,
    )


def _row(
    logged: Logged,
    arm: Arm,
    index: int,
    pmf: Array,
    champion: Assessment,
    canary: Assessment | None,
    who_drew: Assessment,
) -> dict[str, Any]:
    """Say all there is to say of one model."""
    return {
        "model": arm.name,
        "chosen": arm.name == logged.arm,
        "probability": float(pmf[index]),
        "logged": float(logged.pmf[index]),
        "champion_probability": float(champion.pmf[0, index]),
        "canary_probability": None if canary is None else float(canary.pmf[0, index]),
        "expected_quality": _at(who_drew.quality, index),
        "expected_cost_usd": _at(who_drew.cost_usd, index),
        "list_cost_usd": arm.list_cost_usd(logged.prompt_characters),
    }


def _at(values: Array | None, index: int) -> float | None:
    """Read one number, None where the policy models no outcome."""
    return None if values is None else float(values[0, index])
