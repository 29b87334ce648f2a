"""What each version's decisions have earned, summed where the interactions are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, and_, case, func, select

from pipelines.schema import decisions, interactions


@dataclass(frozen=True, slots=True, kw_only=True)
class Earned:
    """What interactions brought that one version decided, summed.

    Attributes:
        policy_version: The version that drew.
        interactions: How many, each with quality and cost known.
        quality: Sum of their qualities.
        cost_usd: Sum of their costs, USD.
        gain: Sum of weight on quality times quality.
        loss: Sum of weight on cost times cost, clipped and scaled by the ceiling.
    """

    policy_version: int
    interactions: int
    quality: float
    cost_usd: float
    gain: float
    loss: float


def select_earned(
    connection: Connection, *, after_seq: int, up_to_seq: int, cost_ceiling_usd: float
) -> list[Earned]:
    """Sum the interactions in a range of sequence numbers, by the version that drew.

    Args:
        connection: To the ledger's database.
        after_seq: Only those with a higher number; corrections count as one more each.
        up_to_seq: Only those with this number or a lower one.
        cost_ceiling_usd: USD at and above which a call counts as fully expensive.
    """
    scaled = interactions.c.cost_usd / cost_ceiling_usd
    clipped = case((scaled > 1.0, 1.0), else_=scaled)
    query = (
        select(
            decisions.c.policy_version,
            func.count(),
            func.sum(interactions.c.quality),
            func.sum(interactions.c.cost_usd),
            func.sum(decisions.c.w_quality * interactions.c.quality),
            func.sum(decisions.c.w_cost * clipped),
        )
        .join(decisions, decisions.c.decision_id == interactions.c.decision_id)
        .where(
            and_(
                interactions.c.seq > after_seq,
                interactions.c.seq <= up_to_seq,
                interactions.c.quality.is_not(None),
                interactions.c.cost_usd.is_not(None),
            )
        )
        .group_by(decisions.c.policy_version)
    )
    return [
        Earned(
            policy_version=int(version),
            interactions=int(number),
            quality=float(quality),
            cost_usd=float(cost_usd),
            gain=float(gain),
            loss=float(loss),
        )
        for version, number, quality, cost_usd, gain, loss in connection.execute(query)
    ]


def sum_earned(rows: pa.Table, *, cost_ceiling_usd: float) -> list[Earned]:
    """Sum interactions as `select_earned` does, of the dataset.

    Args:
        rows: Schema INTERACTION_SCHEMA.
        cost_ceiling_usd: USD at and above which a call counts as fully expensive.
    """
    known = rows.filter(pc.and_(rows["quality"].is_valid(), rows["cost_usd"].is_valid()))
    clipped = pc.min_element_wise(pc.divide(known["cost_usd"], cost_ceiling_usd), 1.0)
    terms = pa.table(
        {
            "policy_version": known["policy_version"],
            "quality": known["quality"],
            "cost_usd": known["cost_usd"],
            "gain": pc.multiply(known["w_quality"], known["quality"]),
            "loss": pc.multiply(known["w_cost"], clipped),
        }
    )
    names = ("quality", "cost_usd", "gain", "loss")
    sums = terms.group_by("policy_version").aggregate(
        [("quality", "count"), *((name, "sum") for name in names)]
    )
    return [
        Earned(
            policy_version=row["policy_version"],
            interactions=row["quality_count"],
            **{name: row[f"{name}_sum"] for name in names},
        )
        for row in sums.to_pylist()
    ]


def merge_earned(one: Sequence[Earned], other: Sequence[Earned]) -> list[Earned]:
    """Add up sums of different interactions, version by version."""
    total = {earned.policy_version: earned for earned in one}
    for added in other:
        known = total.get(added.policy_version)
        total[added.policy_version] = added if known is None else _added(known, added)
    return list(total.values())


def _added(one: Earned, other: Earned) -> Earned:
    """Add up two sums of one version."""
    return replace(
        one,
        interactions=one.interactions + other.interactions,
        quality=one.quality + other.quality,
        cost_usd=one.cost_usd + other.cost_usd,
        gain=one.gain + other.gain,
        loss=one.loss + other.loss,
    )
