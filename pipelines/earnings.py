"""What each version's decisions have earned, summed where the interactions are."""

from __future__ import annotations

from dataclasses import dataclass

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
