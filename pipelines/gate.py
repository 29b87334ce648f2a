"""Judges a challenger on held-out decisions alone: what promotes with `gate = estimate`.

Pure functions; trials on live traffic are `pipelines.judge`. The uplift is paired and doubly
robust: challenger minus champion on the same logged decisions, each scored at every preference of a
grid, since what a call is worth at another preference follows from the same quality and cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.evidence import GATE_GRID, complete_rows, folds, pmfs_of
from pipelines.rows import latest_revisions
from policies.arms import PriceTable
from policies.evaluation import Estimate, doubly_robust, estimate
from policies.interaction import contexts
from policies.policy import Policy
from policies.preference import Preference
from policies.reward import scaled_cost
from policies.reward_model import cross_fitted

Array = NDArray[np.float64]

MIN_ROWS: Final = 30
# About a second of judging for each thousand rows on one core.
MAX_ROWS: Final = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate says of a challenger.

    Attributes:
        promote: Whether it may become champion.
        uplift: Reward of the challenger minus that of the champion, mean over the preference
            grid; None where it could not be estimated.
        rows: Held-out decisions looked at.
        reason: The verdict in words.
    """

    promote: bool
    uplift: Estimate | None
    rows: int
    reason: str


def judge(
    challenger: Policy,
    champion: Policy,
    rows: pa.Table,
    prices: Mapping[int, PriceTable],
    *,
    cost_ceiling_usd: float,
    grid: Sequence[Preference] = GATE_GRID,
    min_rows: int = MIN_ROWS,
    max_rows: int = MAX_ROWS,
    margin: float = 0.0,
) -> Verdict:
    """Decide whether the challenger may become champion; without evidence it may not.

    Args:
        challenger: The policy that asks.
        champion: The policy that serves.
        rows: Held-out interactions, schema INTERACTION_SCHEMA.
        prices: Price tables by version, those that the rows name.
        cost_ceiling_usd: USD at and above which a call counts as fully expensive.
        grid: The preferences each decision is scored at.
        min_rows: Fewest decisions with known quality and cost that count as evidence.
        max_rows: Most that are scored, the newest ones.
        margin: What the uplift must exceed, in units of reward.
    """
    if challenger.encoder_id != champion.encoder_id:
        reason = f"cannot be compared: the champion's encoder is {champion.encoder_id}"
        return Verdict(promote=False, uplift=None, rows=0, reason=reason)
    usable = usable_rows(rows, prices, encoder_id=challenger.encoder_id)
    if len(usable) < min_rows:
        reason = f"too few held-out decisions: {len(usable)} of {min_rows}"
        return Verdict(promote=False, uplift=None, rows=len(usable), reason=reason)
    newest = usable.slice(max(0, len(usable) - max_rows))
    scores = uplift_scores(
        challenger, champion, newest, prices, cost_ceiling_usd=cost_ceiling_usd, grid=grid
    )
    uplift = estimate(scores)
    promote = should_promote(uplift, margin=margin)
    words = "above" if promote else "not above"
    reason = f"uplift {uplift.mean:+.4f} is {words} {margin:g}, on {uplift.n} held-out decisions"
    return Verdict(promote=promote, uplift=uplift, rows=uplift.n, reason=reason)


def should_promote(uplift: Estimate, *, margin: float) -> bool:
    """Promote when the uplift clears `margin`.

    The mean decides, not the low end of the interval: with a few hundred held-out decisions no
    routine improvement could ever clear that. Evidence at a stated error rate needs a canary.
    """
    return uplift.mean > margin


def usable_rows(rows: pa.Table, prices: Mapping[int, PriceTable], *, encoder_id: str) -> pa.Table:
    """Keep what can be scored: one row a decision, quality, cost and prices known, same encoder."""
    complete = complete_rows(latest_revisions(rows), prices)
    return complete.filter(pc.equal(complete["encoder_id"], encoder_id))


def uplift_scores(
    challenger: Policy,
    champion: Policy,
    rows: pa.Table,
    prices: Mapping[int, PriceTable],
    *,
    cost_ceiling_usd: float,
    grid: Sequence[Preference] = GATE_GRID,
) -> Array:
    """Score each decision: doubly robust difference of the two policies, mean over the grid.

    Unbiased whatever the reward model says, because the logged propensities are the true ones;
    the model only takes variance out (Dudik, Langford, Li 2011, arXiv 1103.4601).

    Returns:
        One score a row, in the rows' order, float64, shape (rows,).
    """
    arms = sorted(set(pc.list_flatten(rows["arms_offered"]).to_pylist()))
    index = {name: position for position, name in enumerate(arms)}
    taken = np.array([index[name] for name in rows["arm"].to_pylist()], dtype=np.int64)
    quality = np.asarray(rows["quality"], dtype=np.float64)
    cost = scaled_cost(np.asarray(rows["cost_usd"]), cost_ceiling_usd=cost_ceiling_usd)
    outcomes = np.stack([quality, -cost], axis=1)
    modelled = cross_fitted(
        contexts(rows).astype(np.float64), taken, outcomes, folds(rows), num_arms=len(arms)
    )
    difference = _pmfs(challenger, rows, prices, grid, index)
    difference -= _pmfs(champion, rows, prices, grid, index)
    propensity = np.asarray(rows["propensity"])
    scores = np.zeros((len(rows), len(grid)))
    for point, preference in enumerate(grid):
        # The estimator is linear in the pmf, so the difference of two pmfs scores as one.
        weights = np.array([preference.quality, preference.cost])
        reward, expected = outcomes @ weights, modelled @ weights
        scores[:, point] = doubly_robust(difference[:, point], propensity, reward, taken, expected)
    return np.asarray(scores.mean(axis=1), dtype=np.float64)


def _pmfs(
    policy: Policy,
    rows: pa.Table,
    prices: Mapping[int, PriceTable],
    grid: Sequence[Preference],
    index: Mapping[str, int],
) -> Array:
    """Ask a policy for its pmf, each row at each preference, shape (rows, grid, arms)."""
    points = [pmfs_of(policy, rows, prices, [point] * len(rows), index) for point in grid]
    return np.stack(points, axis=1)
