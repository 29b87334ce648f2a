"""Decisions and ledgers for the tests of what is built on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from clock import START_S, Clock

from pipelines.ledger import Ledger
from pipelines.tenants import Rulebook, TenantRules
from policies.arms import Arm, PriceTable
from policies.interaction import Decision, JoinStatus, Outcome, decisions_to_batch
from policies.preference import Preference

TENANT: Final = "acme"
WAIT_WINDOW_S: Final = 1000.0
ORPHAN_AFTER_S: Final = 60.0
RULES: Final = Rulebook(
    default=TenantRules(wait_window_s=WAIT_WINDOW_S),
    tenants={
        "mean": TenantRules(wait_window_s=WAIT_WINDOW_S, quality_signals="mean"),
        "earliest": TenantRules(wait_window_s=WAIT_WINDOW_S, quality_signals="earliest"),
        "zero": TenantRules(wait_window_s=WAIT_WINDOW_S / 2, default_quality=0.0),
    },
)
ARM: Final = Arm(name="dear", input_usd_per_mtok=5.0, output_usd_per_mtok=25.0)


def decision(
    decision_id: str,
    *,
    at: float = START_S,
    tenant: str = TENANT,
    price_version: int = 1,
    session: str | None = None,
    deferred: bool = False,
) -> Decision:
    """Make a decision between two arms; its context is drawn from its id."""
    rng = np.random.default_rng(list(decision_id.encode()))
    return Decision(
        decision_id=decision_id,
        decided_at=datetime.fromtimestamp(at, UTC),
        tenant=tenant,
        session=session,
        prompt_hash=f"hash-{decision_id}",
        prompt_characters=120,
        preference=Preference(quality=0.7, cost=0.3),
        context=rng.normal(size=8).astype(np.float32),
        encoder_id="minilm",
        arms_offered=("cheap", "dear"),
        pmf=np.array([1 / 3, 2 / 3]),
        arm="dear",
        propensity=2 / 3,
        policy_version=4,
        price_version=price_version,
        deferred=deferred,
    )


def dated_id(name: str, *, at: float = START_S) -> str:
    """Make a decision id that says when it was issued, as the real ones do: a UUIDv7 and a tag."""
    milliseconds = f"{round(at * 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}-7000-8000-000000000000.{name}"


def batch(
    decision_ids: Iterable[str],
    *,
    at: float = START_S,
    tenant: str = TENANT,
    deferred: bool = False,
) -> pa.RecordBatch:
    """Lay such decisions out in columns."""
    return decisions_to_batch(
        [decision(one, at=at, tenant=tenant, deferred=deferred) for one in decision_ids]
    )


def priced(table: PriceTable) -> PriceTable:
    """Change a price table: put the arm on it that all the decisions went to."""
    return table.with_arm(ARM, version=table.version + 1)


def open_ledger(url: str, clock: Callable[[], float], *, shard: int = 0) -> Ledger:
    """Open a ledger with the windows of these tests."""
    return Ledger(
        url,
        rules=RULES,
        orphan_after_s=ORPHAN_AFTER_S,
        clock=clock,
        shard=shard,
    )


def submit(ledger: Ledger, *outcomes: Outcome, tenant: str = TENANT) -> list[JoinStatus]:
    """Report outcomes in one transaction."""
    return ledger.submit([(tenant, outcome) for outcome in outcomes])


def matured(ledger: Ledger) -> list[tuple[int, str, int, float | None, float | None]]:
    """List all interactions: seq, decision, revision, quality, cost."""
    names = ("seq", "decision_id", "revision", "quality", "cost_usd")
    rows = ledger.interactions(0, 1000).select(names).to_pylist()
    return [tuple(row[name] for name in names) for row in rows]


def interactions_of(num: int, folder: Path) -> pa.Table:
    """Make real interactions: decisions d00, d01, ... and an outcome of each, through a ledger.

    Returns:
        Schema INTERACTION_SCHEMA, in the order they matured.
    """
    ledger = open_ledger(f"sqlite:///{folder / 'ledger.db'}", Clock())
    ids = [f"d{number:02d}" for number in range(num)]
    ledger.record([batch(ids)])
    ledger.submit([(TENANT, Outcome(decision_id=i, quality=0.5, final=True)) for i in ids])
    read = ledger.interactions(0, num)
    ledger.close()
    return read
