"""Remembered costs at the prices of now: what barp-dr replays after a price has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from policies.artifact import PolicyArtifact
from policies.learning import Experience
from policies.list_prices import first_list_costs, price_ratio
from policies.memory import Memory
from policies.reward import scaled_cost

TINY_SPREAD: Final = 1e-12


def listed_costs(
    parent: PolicyArtifact,
    grown: PolicyArtifact,
    seen: Experience,
    costs: Mapping[tuple[int, str], float],
) -> dict[str, NDArray[np.float64]]:
    """Return the list prices that costs are remembered at, and those of now, USD, shape (K,).

    Args:
        parent: The version before.
        grown: The same with the arms that the rows added.
        seen: The rows.
        costs: List price of a typical call by price table and arm, USD.
    """
    new = first_list_costs(grown.arms[len(parent.arms) :], seen, costs)
    kept = np.append(parent.weights["list_cost_usd"], new)
    before = np.append(parent.weights["list_cost_now_usd"], new)
    now = [
        costs.get((grown.price_version, arm), known)
        for arm, known in zip(grown.arms, before, strict=True)
    ]
    return {"list_cost_usd": kept, "list_cost_now_usd": np.array(now, dtype=np.float64)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """What remembered costs become at the prices of now.

    Attributes:
        ratios: List price now by the one that costs are remembered at, shape (K,).
        listed: Scaled list cost now, 0 where no price is given, shape (K,).
        spread: Deviation of each component, which memory holds at one, root of their squares' sum
            as one: what varies little says little. Shape (components,).
    """

    ratios: NDArray[np.float64]
    listed: NDArray[np.float64]
    spread: NDArray[np.float64]

    @classmethod
    def read(cls, artifact: PolicyArtifact) -> Priced:
        """Take it out of an artifact."""
        lengths = np.linalg.norm(artifact.weights["projection"], axis=1)
        spread = np.where(lengths > 0, 1.0 / np.where(lengths > 0, lengths, 1.0), 0.0)
        now, kept = artifact.weights["list_cost_now_usd"], artifact.weights["list_cost_usd"]
        return cls(
            ratios=price_ratio(now, kept),
            listed=scaled_cost(now, cost_ceiling_usd=artifact.cost_ceiling_usd),
            spread=spread / max(float(np.linalg.norm(spread)), TINY_SPREAD),
        )

    def outcome(self, memory: Memory) -> NDArray[np.float64]:
        """Return quality and scaled cost of every row, shape (n, 2)."""
        outcome = memory.outcome.astype(np.float64)
        outcome[:, 1] = np.minimum(outcome[:, 1] * self.ratios[memory.arm], 1.0)
        return outcome
