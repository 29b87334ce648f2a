"""Interactions that a version remembers, to learn from again: a bounded, seeded sample.

They travel inside the artifact. So an update stays a pure function of parent and new rows, on any
machine, and no older interaction must be found again to make or check a version; the lineage's
range of new rows and its parent say all. The price is the artifact's size, so contexts are kept as
the network sees them, projected and in half precision: some 60 bytes a row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.artifact import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """n rows in the order they came.

    Attributes:
        context: What the network sees of the prompt, float16, shape (n, inputs).
        arm: Index of the arm taken, int16, shape (n,).
        offered: Which arms could be taken, bool, shape (n, K).
        propensity: Probability the logging policy gave the arm, float32, shape (n,).
        outcome: Quality and scaled cost, float32, shape (n, 2).
        rank: A random number of each row, float64, shape (n,): old rows with the lowest stay.
    """

    context: NDArray[np.float16]
    arm: NDArray[np.int16]
    offered: NDArray[np.bool_]
    propensity: NDArray[np.float32]
    outcome: NDArray[np.float32]
    rank: NDArray[np.float64]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.arm)

    @classmethod
    def empty(cls, *, inputs: int, num_arms: int) -> Memory:
        """Remember nothing yet."""
        return cls(
            context=np.zeros((0, inputs), dtype=np.float16),
            arm=np.zeros(0, dtype=np.int16),
            offered=np.zeros((0, num_arms), dtype=np.bool_),
            propensity=np.zeros(0, dtype=np.float32),
            outcome=np.zeros((0, 2), dtype=np.float32),
            rank=np.zeros(0),
        )

    @classmethod
    def read(cls, weights: Weights) -> Memory:
        """Take it out of an artifact."""
        return cls(**{field.name: weights[f"memory.{field.name}"] for field in fields(cls)})

    def weights(self) -> dict[str, NDArray[Any]]:
        """Name it for an artifact."""
        return {f"memory.{field.name}": getattr(self, field.name) for field in fields(self)}

    def with_arms(self, num_arms: int) -> Memory:
        """Add arms that no row remembered could be routed to."""
        missing = num_arms - self.offered.shape[1]
        return replace(self, offered=np.pad(self.offered, ((0, 0), (0, missing))))

    def plus(self, newer: Memory, *, capacity: int) -> Memory:
        """Append rows and forget down to `capacity`.

        The newest half stays; of all older rows ever seen an even sample does: those of lowest
        rank, which no later row can bring back once they are out.
        """
        joined = {
            f.name: np.concatenate([getattr(self, f.name), getattr(newer, f.name)])
            for f in fields(self)
        }
        num_old = len(joined["arm"]) - capacity // 2
        if num_old > capacity - capacity // 2:
            lowest = np.argsort(joined["rank"][:num_old], kind="stable")
            kept = np.sort(lowest[: capacity - capacity // 2])
            kept = np.append(kept, np.arange(num_old, len(joined["arm"])))
            joined = {name: column[kept] for name, column in joined.items()}
        return Memory(**joined)
