"""What an outcome was worth under a preference: one linear scalarisation, used everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def scaled_cost(cost_usd: Array, *, cost_ceiling_usd: float) -> Array:
    """Clip and scale a cost to [0, 1]: at the ceiling and above a call is fully expensive.

    Args:
        cost_usd: What the calls cost, USD, any shape.
        cost_ceiling_usd: The tau of BaRP (arXiv 2510.07429), USD, > 0.

    >>> scaled_cost(np.array([0.0, 1.0, 9.0]), cost_ceiling_usd=4.0)
    array([0.  , 0.25, 1.  ])
    """
    return np.minimum(np.asarray(cost_usd, dtype=np.float64) / cost_ceiling_usd, 1.0)


def scalar_reward(
    quality: Array, cost_usd: Array, w_quality: Array, *, cost_ceiling_usd: float
) -> Array:
    """Weigh what an answer was worth against what it cost.

    Linear scalarisation of BaRP (arXiv 2510.07429): r = w_q q - w_c min(cost / tau, 1).

    Args:
        quality: Judged quality in [0, 1]; broadcasts with the others.
        cost_usd: What the call cost, USD.
        w_quality: Weight on quality in [0, 1]; the weight on cost is the rest.
        cost_ceiling_usd: USD at and above which a call counts as fully expensive.

    >>> scalar_reward(np.array([1.0]), np.array([2.0]), np.array([0.75]), cost_ceiling_usd=4.0)
    array([0.625])
    """
    cost = scaled_cost(cost_usd, cost_ceiling_usd=cost_ceiling_usd)
    return np.asarray(w_quality * quality - (1.0 - w_quality) * cost, dtype=np.float64)
