"""Which decisions of two versions got feedback in time, read where decisions and outcomes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, select

from pipelines.schema import decisions, outcomes

US_PER_S: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What had come back for one decision by a fixed time after it.

    Attributes:
        decision_id: Which decision.
        unit: What it depends on others by: its tenant's session, or itself.
        by_canary: Whether the version beside the champion drew.
        canary_share: Probability that it did.
        judged: Whether its quality was reported.
        reported: Whether anything was.
    """

    decision_id: str
    unit: str
    by_canary: bool
    canary_share: float
    judged: bool
    reported: bool


def select_answers(
    connection: Connection,
    *,
    champion: int,
    canary: int,
    after_id: str,
    within_s: float,
    now_us: int,
    limit: int,
) -> list[Answer]:
    """Read the decisions that two versions shared, in the order they were made.

    Ids begin with the time, so the primary key gives the order. Every decision is looked at the
    same time after it was made, however late it is read: so what is said of it never changes.

    Args:
        connection: To the ledger's database.
        champion: The champion of then.
        canary: The version beside it.
        after_id: Only decisions with a later id.
        within_s: Time that an outcome may take, seconds; younger decisions are left for later.
        now_us: Microseconds since the epoch, UTC.
        limit: Most decisions to return.
    """
    within_us = int(within_s * US_PER_S)
    in_time = outcomes.c.received_at <= decisions.c.decided_at + within_us
    same = outcomes.c.decision_id == decisions.c.decision_id
    judged = select(outcomes.c.decision_id).where(same, in_time, outcomes.c.quality.is_not(None))
    reported = select(outcomes.c.decision_id).where(same, in_time)
    unit = func.coalesce(decisions.c.tenant + "/" + decisions.c.session, decisions.c.decision_id)
    query = (
        select(
            decisions.c.decision_id,
            unit,
            decisions.c.policy_version,
            decisions.c.canary_share,
            judged.exists(),
            reported.exists(),
        )
        .where(
            decisions.c.decision_id > after_id,
            decisions.c.champion_version == champion,
            decisions.c.canary_version == canary,
            decisions.c.decided_at <= now_us - within_us,
        )
        .order_by(decisions.c.decision_id)
        .limit(limit)
    )
    return [
        Answer(
            decision_id=decision_id,
            unit=unit,
            by_canary=version == canary,
            canary_share=float(share),
            judged=bool(judged),
            reported=bool(reported),
        )
        for decision_id, unit, version, share, judged, reported in connection.execute(query)
    ]
