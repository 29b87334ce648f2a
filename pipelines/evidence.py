"""Lays live decisions out for judging: what champion and challenger would have done with each.

Rows are added as they mature; a corrected outcome replaces the one it corrects. What is laid out
once is not asked of the policies again.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from policies.arms import PriceTable
from policies.evaluation import LoggedRows
from policies.interaction import contexts
from policies.policy import Policy
from policies.preference import Preference, preference_grid
from policies.projection import features, fit_projection
from policies.reward import scaled_cost

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# Five points: two in the region of cost, one between, two in the region of quality.
GATE_GRID: Final = preference_grid(5)
FOLDS: Final = 5
MODEL_COMPONENTS: Final = 16
# One row alone has no direction in which it differs from others.
MIN_ROWS: Final = 2
# Enough to find the directions in which prompts differ.
PROJECTION_ROWS: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """n decisions over K arms, scored at the preference asked for and at G others.

    Attributes:
        log: What was done and what came of it; its contexts are what the reward model sees.
        units: Which independent unit each decision belongs to, numbered from 0, shape (n,).
        w_quality: Weight on quality each was decided under, shape (n,).
        champion: The champion's pmf at that preference, shape (n, K).
        challenger: The challenger's, shape (n, K).
        grid: The preferences each decision is scored at once more, G of them.
        champion_on_grid: The champion's pmf there, shape (G, n, K).
        challenger_on_grid: The challenger's, shape (G, n, K).
    """

    log: LoggedRows
    units: Indices
    w_quality: Array
    champion: Array
    challenger: Array
    grid: Sequence[Preference]
    champion_on_grid: Array
    challenger_on_grid: Array

    def __len__(self) -> int:
        """Count the decisions."""
        return len(self.w_quality)

    def swapped(self) -> Evidence:
        """Return the same decisions with champion and challenger in each other's place."""
        return Evidence(
            log=self.log,
            units=self.units,
            w_quality=self.w_quality,
            champion=self.challenger,
            challenger=self.champion,
            grid=self.grid,
            champion_on_grid=self.challenger_on_grid,
            challenger_on_grid=self.champion_on_grid,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Some rows, laid out over the arms known when they came."""

    arm: Indices
    propensity: Array
    w_quality: Array
    folds: Indices
    units: Indices
    contexts: NDArray[np.float32]
    pmfs: Array  # (2, 1 + G, rows, arms): champion and challenger, as asked and on the grid


class EvidenceLog:
    """Decisions that two policies are compared on, in the order they matured.

    Args:
        champion: The policy that serves.
        challenger: The policy that asks to.
        cost_ceiling_usd: USD at and above which a call counts as fully expensive.
        grid: Preferences at which every decision is scored once more.
    """

    def __init__(
        self,
        champion: Policy,
        challenger: Policy,
        *,
        cost_ceiling_usd: float,
        grid: Sequence[Preference] = GATE_GRID,
    ) -> None:
        self._policies, self._grid = (champion, challenger), tuple(grid)
        self._cost_ceiling_usd = cost_ceiling_usd
        self._arms: dict[str, int] = {}
        self._units: dict[str, int] = {}
        self._rows: dict[str, int] = {}
        self._outcomes: list[tuple[float, float]] = []
        self._chunks: list[_Chunk] = []

    def __len__(self) -> int:
        """Count the decisions."""
        return len(self._outcomes)

    def __contains__(self, decision_id: object) -> bool:
        """Say whether a decision is laid out."""
        return decision_id in self._rows

    def challenged_by(self, challenger: Policy) -> None:
        """Ask another challenger about the rows that are added from now on."""
        self._policies = (self._policies[0], challenger)

    def add(self, rows: pa.Table, prices: Mapping[int, PriceTable]) -> None:
        """Take up rows of one encoder, schema INTERACTION_SCHEMA; incomplete ones are left out.

        Args:
            rows: Interactions, in sequence order.
            prices: Price tables by version; a row whose table is not among them is left out.
        """
        usable = complete_rows(rows, prices)
        fresh = []
        ids = usable["decision_id"].to_pylist()
        quality = usable["quality"].to_pylist()
        cost = scaled_cost(
            np.asarray(usable["cost_usd"], dtype=np.float64),
            cost_ceiling_usd=self._cost_ceiling_usd,
        ).tolist()
        for row, decision_id in enumerate(ids):
            outcome = (quality[row], -cost[row])
            position = self._rows.get(decision_id)
            if position is None:
                self._rows[decision_id] = len(self._outcomes)
                self._outcomes.append(outcome)
                fresh.append(row)
            else:
                self._outcomes[position] = outcome
        if fresh:
            self._chunks.append(self._laid_out(usable.take(pa.array(fresh)), prices))

    def evidence(self) -> Evidence:
        """Put all rows together; raises ValueError where there are fewer than two."""
        if len(self) < MIN_ROWS:
            raise ValueError("evidence takes at least two decisions")
        num_arms = len(self._arms)
        pmfs = np.concatenate(
            [
                np.pad(chunk.pmfs, ((0, 0),) * 3 + ((0, num_arms - chunk.pmfs.shape[-1]),))
                for chunk in self._chunks
            ],
            axis=2,
        )
        contexts_ = np.concatenate([chunk.contexts for chunk in self._chunks])
        centre, projection = fit_projection(
            contexts_[:PROJECTION_ROWS], components=MODEL_COMPONENTS
        )
        log = LoggedRows(
            contexts=features(contexts_, centre, projection)[:, 1:],
            arm=self._joined("arm"),
            propensity=self._joined("propensity"),
            outcomes=np.array(self._outcomes, dtype=np.float64),
            folds=self._joined("folds"),
        )
        return Evidence(
            log=log,
            units=self._joined("units"),
            w_quality=self._joined("w_quality"),
            champion=pmfs[0, 0],
            challenger=pmfs[1, 0],
            grid=self._grid,
            champion_on_grid=pmfs[0, 1:],
            challenger_on_grid=pmfs[1, 1:],
        )

    def _joined(self, name: str) -> NDArray[Any]:
        """Put one column of all chunks together."""
        return np.concatenate([getattr(chunk, name) for chunk in self._chunks])

    def _laid_out(self, rows: pa.Table, prices: Mapping[int, PriceTable]) -> _Chunk:
        """Ask both policies about rows, at the preferences asked for and on the grid."""
        for name in pc.unique(pc.list_flatten(rows["arms_offered"])).to_pylist():
            self._arms.setdefault(name, len(self._arms))
        w_quality = np.asarray(rows["w_quality"], dtype=np.float64)
        asked = [Preference(quality=w, cost=1.0 - w) for w in w_quality]
        points = [asked, *([point] * len(rows) for point in self._grid)]
        pmfs = np.stack(
            [
                np.stack([pmfs_of(policy, rows, prices, wanted, self._arms) for wanted in points])
                for policy in self._policies
            ]
        )
        return _Chunk(
            arm=np.array([self._arms[name] for name in rows["arm"].to_pylist()], dtype=np.int64),
            propensity=np.asarray(rows["propensity"], dtype=np.float64),
            w_quality=w_quality,
            folds=folds(rows),
            units=np.array(
                [self._units.setdefault(unit, len(self._units)) for unit in _unit_names(rows)],
                dtype=np.int64,
            ),
            contexts=contexts(rows),
            pmfs=pmfs,
        )


def complete_rows(rows: pa.Table, prices: Mapping[int, PriceTable]) -> pa.Table:
    """Keep the rows that can be scored: quality, cost and prices known."""
    known = pc.and_(pc.is_valid(rows["quality"]), pc.is_valid(rows["cost_usd"]))
    priced = pc.is_in(rows["price_version"], pa.array(list(prices), type=pa.int32()))
    return rows.filter(pc.and_(known, priced))


def folds(rows: pa.Table) -> Indices:
    """Put each row in a fold by its prompt, so that a prompt never predicts itself."""
    names = rows["prompt_hash"].to_pylist()
    return np.array([zlib.crc32(name.encode()) % FOLDS for name in names], dtype=np.int64)


def pmfs_of(
    policy: Policy,
    rows: pa.Table,
    prices: Mapping[int, PriceTable],
    preferences: Sequence[Preference],
    index: Mapping[str, int],
) -> Array:
    """Ask a policy for its pmf of each row at a preference, shape (rows, len(index)).

    Args:
        policy: Who is asked.
        rows: Interactions, schema INTERACTION_SCHEMA.
        prices: Price tables by version, those that the rows name.
        preferences: One a row.
        index: Position of each arm.
    """
    context = contexts(rows)
    probs = np.zeros((len(rows), len(index)))
    groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
    offers = zip(rows["arms_offered"].to_pylist(), rows["price_version"].to_pylist(), strict=True)
    for row, (names, version) in enumerate(offers):
        groups.setdefault((tuple(names), version), []).append(row)
    for (names, version), members in groups.items():
        offered = [prices[version].arm(name) for name in names]
        assessed = policy.assess(context[members], [preferences[row] for row in members], offered)
        probs[np.ix_(members, [index[name] for name in names])] = assessed.pmf
    return probs


def _unit_names(rows: pa.Table) -> list[str]:
    """Name the unit of each row: its tenant's session, or the decision where it has none."""
    columns = (rows[name].to_pylist() for name in ("tenant", "session", "decision_id"))
    return [
        f"d{decision_id}" if session is None else f"s{len(tenant)}.{tenant}.{session}"
        for tenant, session, decision_id in zip(*columns, strict=True)
    ]
