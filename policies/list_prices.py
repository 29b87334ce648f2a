"""List prices as a learner uses them: what a typical call costs, then and now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from policies.arms import PriceTable
from policies.learning import Experience

Array = NDArray[np.float64]

# The length of prompt that list prices are compared at; a request's own is not part of the pmf.
TYPICAL_PROMPT_CHARACTERS: Final = 1_000


def list_costs(prices: Mapping[int, PriceTable]) -> dict[tuple[int, str], float]:
    """Price a typical call, USD, by price table version and arm."""
    return {
        (version, arm.name): arm.list_cost_usd(TYPICAL_PROMPT_CHARACTERS)
        for version, table in prices.items()
        for arm in table.arms
    }


def first_list_costs(
    arms: Sequence[str], seen: Experience, costs: Mapping[tuple[int, str], float]
) -> list[float]:
    """Return the list price that new arms were first seen with, USD, 0 where it is not at hand."""
    first: dict[str, float] = {}
    for names, version in zip(seen.offered, seen.price_version.tolist(), strict=True):
        for name in names:
            first.setdefault(name, costs.get((version, name), 0.0))
    return [first[name] for name in arms]


def costs_at(
    listed: Array,
    arms: Sequence[str],
    seen: Experience,
    costs: Mapping[tuple[int, str], float],
) -> Array:
    """Return what each call would have cost at other list prices, USD, shape (n,).

    Args:
        listed: The list price that each arm is kept at, USD, shape (K,).
        arms: The arms' names, length K.
        seen: The rows.
        costs: The list prices they were decided under, by version and arm.
    """
    number = {name: k for k, name in enumerate(arms)}
    kept = listed[np.array([number[name] for name in seen.arms], dtype=np.int64)]
    keys = zip(seen.price_version.tolist(), seen.arms, strict=True)
    then = np.array([costs.get(key, 0.0) for key in keys], dtype=np.float64)
    return seen.cost_usd * price_ratio(kept, then)


def price_ratio(now_usd: Array, then_usd: Array) -> Array:
    """Divide list prices; 1 where one of them is not given."""
    given = (now_usd > 0) & (then_usd > 0)
    return np.where(given, now_usd / np.where(given, then_usd, 1.0), 1.0)
