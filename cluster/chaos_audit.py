"""Compares what callers were told with what ledger and dataset hold after the service stopped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import create_engine, select

from cluster.chaos_load import Told
from pipelines.dataset import InteractionDataset
from pipelines.schema import decisions, outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is on disk.

    Attributes:
        decisions: Recorded decisions.
        outcomes: Stored outcomes, as (decision id, event id).
        learned: How many rows of the dataset each decision has.
    """

    decisions: frozenset[str]
    outcomes: frozenset[tuple[str, str]]
    learned: Counter[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What is wrong, and what was bound to be lost.

    Attributes:
        acknowledged: Outcomes that a caller was told are stored.
        lost: Of these, those that are not, or that nothing will learn from though their decision
            is recorded.
        doubled: Decisions that the dataset holds more than once, though each was reported once.
        orphaned: Acknowledged outcomes whose decision died with a replica.
        decisions_lost: Decisions that a caller was given and that nobody recorded.
    """

    acknowledged: int
    lost: int
    doubled: int
    orphaned: int
    decisions_lost: int


def read_kept(ledger_url: str, dataset_dir: str) -> Kept:
    """Read ledger and dataset of a service that has stopped."""
    engine = create_engine(ledger_url)
    with engine.connect() as connection:
        recorded = frozenset(connection.scalars(select(decisions.c.decision_id)))
        pairs = connection.execute(select(outcomes.c.decision_id, outcomes.c.event_id))
        stored = frozenset((row[0], row[1]) for row in pairs)
    engine.dispose()
    rows = InteractionDataset(dataset_dir).read()
    learned = Counter(rows.column("decision_id").to_pylist())
    # What has left for the dataset may be gone from the ledger.
    return Kept(decisions=recorded | learned.keys(), outcomes=stored, learned=learned)


def audit(told: Told, kept: Kept) -> Audit:
    """Compare what was told with what is kept."""
    lost = orphaned = 0
    for decision_id, event_id in told.acknowledged.items():
        stored = (decision_id, event_id) in kept.outcomes or kept.learned[decision_id] > 0
        if decision_id not in kept.decisions:
            orphaned += stored
            lost += not stored
        else:
            lost += not stored or kept.learned[decision_id] == 0
    return Audit(
        acknowledged=len(told.acknowledged),
        lost=lost,
        doubled=sum(count > 1 for count in kept.learned.values()),
        orphaned=orphaned,
        decisions_lost=len(set(told.decided) - kept.decisions),
    )
