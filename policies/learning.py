"""What every learner shares: its promise, what it starts from, and interactions as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable
from policies.artifact import PolicyArtifact, digest
from policies.interaction import contexts
from policies.policy import DEFAULT_EXPLORATION_TOTAL


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """What a first version is made from.

    Attributes:
        arms: The arms on offer, with their prices.
        encoder_id: Whose contexts it will see.
        context_dim: Length of a context.
        cost_ceiling_usd: The tau its costs are clipped and scaled with, USD.
        exploration_total: Probability it explores with, shared over the arms offered.
        price_version: Version of the price table the arms are from.
        seed: Of initial weights, draws and shuffles.
    """

    arms: tuple[Arm, ...]
    encoder_id: str
    context_dim: int
    cost_ceiling_usd: float
    exploration_total: float = DEFAULT_EXPLORATION_TOTAL
    price_version: int = 0
    seed: int = 0


class Learner(Protocol):
    """Makes a first version, and from each version the next.

    Both are pure: the same parent and rows give the same artifact, whoever asks.
    """

    @property
    def kind(self) -> str:
        """Name in `PolicyArtifact.kind`; `policies.learners` maps it to the loader."""

    def initial(self, spec: LearnerSpec) -> PolicyArtifact:
        """Make a version that has learned nothing yet."""

    def update(
        self, parent: PolicyArtifact, rows: pa.Table, prices: Mapping[int, PriceTable]
    ) -> PolicyArtifact:
        """Go on learning from new interactions.

        Args:
            parent: The version to go on from; it is not changed.
            rows: Interactions the parent has not seen, schema INTERACTION_SCHEMA.
            prices: The price tables the rows name, by version.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """Interactions as arrays, n rows in sequence order.

    Attributes:
        contexts: Float32, shape (n, context_dim).
        arms: The arm each row went to, length n.
        offered: The arms each row could have gone to, length n.
        w_quality: Weight on quality each was decided under, shape (n,).
        propensity: Probability the logging policy gave the arm, shape (n,).
        quality: Judged quality, NaN where it never came, shape (n,).
        cost_usd: What the call cost, USD, NaN where it never came, shape (n,).
        price_version: The price table of each decision, shape (n,).
        last_seq: Highest sequence number, 0 where there is no row.
    """

    contexts: NDArray[np.float32]
    arms: tuple[str, ...]
    offered: tuple[tuple[str, ...], ...]
    w_quality: NDArray[np.float64]
    propensity: NDArray[np.float64]
    quality: NDArray[np.float64]
    cost_usd: NDArray[np.float64]
    price_version: NDArray[np.int64]
    last_seq: int

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.arms)

    def where(self, keep: NDArray[np.bool_]) -> Experience:
        """Keep some rows, `keep` of shape (n,)."""
        rows = np.flatnonzero(keep)
        return replace(
            self,
            contexts=self.contexts[rows],
            arms=tuple(self.arms[row] for row in rows),
            offered=tuple(self.offered[row] for row in rows),
            w_quality=self.w_quality[rows],
            propensity=self.propensity[rows],
            quality=self.quality[rows],
            cost_usd=self.cost_usd[rows],
            price_version=self.price_version[rows],
        )


def experience(parent: PolicyArtifact, rows: pa.Table) -> Experience:
    """Read what a version can learn from, in sequence order.

    Rows of another encoder are left out: its contexts mean something else. Of a decision that
    was corrected within these rows only the last revision counts; a correction of a row that an
    earlier version has learned from counts as one more observation.
    """
    ordered = rows.sort_by([("seq", "ascending")])
    encoders = ordered.column("encoder_id").to_pylist()
    latest = {name: row for row, name in enumerate(ordered.column("decision_id").to_pylist())}
    keep = [row for row in sorted(latest.values()) if encoders[row] == parent.encoder_id]
    kept = ordered.take(pa.array(keep, type=pa.int64()))
    return Experience(
        contexts=contexts(kept).reshape(len(kept), parent.context_dim),
        arms=tuple(kept.column("arm").to_pylist()),
        offered=tuple(tuple(names) for names in kept.column("arms_offered").to_pylist()),
        w_quality=_floats(kept, "w_quality"),
        propensity=_floats(kept, "propensity"),
        quality=_floats(kept, "quality"),
        cost_usd=_floats(kept, "cost_usd"),
        price_version=kept.column("price_version").to_numpy().astype(np.int64),
        last_seq=int(kept.column("seq")[-1].as_py()) if keep else 0,
    )


def grown_arms(known: tuple[str, ...], seen: Experience) -> tuple[str, ...]:
    """Append the arms that rows offer and a version does not know, in order of appearance."""
    offered: Iterable[str] = (name for names in seen.offered for name in names)
    return tuple(dict.fromkeys((*known, *offered)))


def lineage(parent: PolicyArtifact, seen: Experience) -> dict[str, Any]:
    """Say what a version was made from; whoever registers it adds what only they know."""
    return {
        "parent_sha256": digest(parent),
        "rows_used": len(seen),
        "last_seq": seen.last_seq or parent.training.get("last_seq", 0),
    }


def latest_price_version(parent: PolicyArtifact, prices: Mapping[int, PriceTable]) -> int:
    """Name the newest price table a version has been trained with."""
    return max((parent.price_version, *prices))


def _floats(rows: pa.Table, name: str) -> NDArray[np.float64]:
    """Read a column as float64, null as NaN."""
    return np.asarray(rows.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)
