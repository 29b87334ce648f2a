"""The ledger against a plain model: whatever comes, in whatever order, it ends the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TypeVar

import pytest
from clock import Clock
from crashes import Broken, dying_at_file_step, dying_at_statement
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from ledger_model import DECISIONS, IDS, RETENTION_S, Model, batches, closes_at, decided_at
from ledgers import (
    ORPHAN_AFTER_S,
    WAIT_WINDOW_S,
    open_ledger,
    priced,
)
from sqlalchemy import create_engine

from pipelines.archive import Archive
from pipelines.dataset import InteractionDataset, export
from pipelines.ledger import Ledger
from pipelines.schema import metadata
from policies.interaction import Outcome
from policies.reports import reports_to_batch, unpack_statuses
from policies.sharding import shard_of

MOST_SHARDS = 3

T = TypeVar("T")

OUTCOMES = st.builds(
    Outcome,
    decision_id=st.sampled_from(IDS),
    event_id=st.sampled_from([None, None, None, "e", "f"]),
    quality=st.sampled_from([None, 0.0, 0.5, 1.0]),
    cost_usd=st.sampled_from([None, None, 0.0, 0.01]),
    tokens_in=st.sampled_from([None, None, 100]),
    tokens_out=st.sampled_from([None, None, 10, 20]),
    # Always one value, for a report of nothing is no outcome.
    latency_ms=st.sampled_from([1.0, 2.0]),
    final=st.sampled_from([False, False, False, True]),
    correction=st.sampled_from([False, False, True]),
    activate=st.sampled_from([False, True]),
)


class BreakableClock(Clock):
    """A clock at which a transaction can be made to die."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False

    def __call__(self) -> float:
        """Return the time, or raise Broken."""
        if self.broken:
            raise Broken
        return super().__call__()


class LedgerMachine(RuleBasedStateMachine):
    """Records, reports, repeats, waits, crashes and restarts, in any order."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__()
        self.url, self.folder = url, folder
        self.clock, self.model = BreakableClock(), Model()
        self.shards = 1
        self.open()
        self.ledger.change_prices(priced)

    def open(self) -> None:
        """Open ledger and dataset as a process does that has just started."""
        self.ledgers = [open_ledger(self.url, self.clock, shard=n) for n in range(MOST_SHARDS)]
        self.ledger = self.ledgers[0]
        self.dataset = InteractionDataset(self.folder)
        self.archive = Archive(self.ledger, self.dataset)

    @rule(shards=st.integers(1, MOST_SHARDS))
    def change_the_map(self, shards: int) -> None:
        """From now on there are more aggregators, or fewer; those left over keep what they know."""
        self.shards = shards

    @initialize(ids=st.lists(st.sampled_from(IDS), unique=True, max_size=4), exported=st.booleans())
    def begin(self, ids: list[str], exported: bool) -> None:
        """Begin with some decisions that are answered: what can be merged, and leave.

        Left to chance it takes hundreds of runs until two of them are.
        """
        if not ids:
            return
        self.record(ids)
        whole = [Outcome(decision_id=i, quality=0.5, cost_usd=0.01, activate=True) for i in ids]
        self.submit(whole, columns=False)
        if exported:
            self.export()

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=4))
    def record(self, ids: list[str]) -> None:
        """Record decisions; some again, some twice in a batch."""
        for shard, own in self._by_shard(ids, ids):
            before = self.model.decisions
            for decision_id in own:
                self.model.record(decision_id)
            new = self.ledgers[shard].record(batches(own))
            assert sum(new) == self.model.decisions - before

    @rule(outcomes=st.lists(OUTCOMES, min_size=1, max_size=6), columns=st.booleans())
    def submit(self, outcomes: list[Outcome], columns: bool) -> None:
        """Report outcomes in one transaction; the model takes them one by one."""
        for shard, own in self._by_shard([one.decision_id for one in outcomes], outcomes):
            self._submit(self.ledgers[shard], own, columns=columns)

    def _by_shard(self, ids: list[str], items: list[T]) -> list[tuple[int, list[T]]]:
        """Share items out by the ids that they are about, as the present map says."""
        pairs = [(shard_of(name, self.shards), item) for name, item in zip(ids, items, strict=True)]
        return [
            (shard, [item for own, item in pairs if own == shard])
            for shard in dict.fromkeys(own for own, _ in pairs)
        ]

    def _submit(self, ledger: Ledger, outcomes: list[Outcome], *, columns: bool) -> None:
        expected = [self.model.report(outcome, self.clock.now) for outcome in outcomes]
        reports = [(DECISIONS[outcome.decision_id][0], outcome) for outcome in outcomes]
        if columns:
            made = reports_to_batch(reports)
            packed = ledger.submit_batches([made.slice(0, 1), made.slice(1)])
            statuses = unpack_statuses(b"".join(packed))
        else:
            statuses = ledger.submit(reports)
        assert [status.value for status in statuses] == expected

    @rule(seconds=st.sampled_from([1.0, ORPHAN_AFTER_S, -30.0]))
    def wait(self, seconds: float) -> None:
        """Let some time pass; or somebody puts the clock back."""
        self.clock.now += seconds

    @rule()
    def wait_for_the_windows(self) -> None:
        """Go to the very moment at which the next wait windows close."""
        later = [at for i in IDS if (at := closes_at(i)) > self.clock.now]
        self.clock.now = min(later, default=self.clock.now)

    @rule(shard=st.integers(0, MOST_SHARDS - 1))
    def close_windows_of_any(self, shard: int) -> None:
        """Mature what has waited long enough; whoever comes first does it."""
        self.close_windows(self.ledgers[shard])

    def close_windows(self, ledger: Ledger) -> None:
        """Mature what has waited long enough."""
        assert ledger.mature_expired() == self.model.close(self.clock.now)

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=3), outcome=OUTCOMES)
    def die_in_a_transaction(self, ids: list[str], outcome: Outcome) -> None:
        """Nothing of what was under way may remain."""
        self.clock.broken = True
        ledger = self.ledgers[self.shards - 1]
        with pytest.raises(Broken):
            ledger.record(batches(ids))
        with pytest.raises(Broken):
            ledger.submit([(DECISIONS[outcome.decision_id][0], outcome)])
        self.clock.broken = False

    @rule()
    def restart(self) -> None:
        """Open the same database anew."""
        self._close()
        self.open()

    @rule()
    def export(self) -> None:
        """Copy what has matured."""
        # A row a part, so that two of them are enough to merge.
        export(self.ledger.interactions, self.dataset, max_part_rows=1)
        self.model.exported = len(self.model.interactions)
        assert self.dataset.read().equals(self.archive.interactions(0, 1000))

    @rule()
    def wait_for_retention(self) -> None:
        """Go to the very moment at which the next decisions are old enough to leave."""
        leaving = [decided_at(i) + WAIT_WINDOW_S + RETENTION_S for i in IDS]
        self.clock.now = min([at for at in leaving if at > self.clock.now] or [self.clock.now])

    @rule(
        moments=st.sampled_from([1, 1, 2, 3]),
        exported=st.sampled_from([True, True, False]),
        closed=st.sampled_from([True, True, False]),
        late=st.sampled_from([None, *IDS]),
    )
    def live_through_retention(
        self, moments: int, exported: bool, closed: bool, late: str | None
    ) -> None:
        """All that a service does with decisions until they leave, or nearly all."""
        for _ in range(moments):
            self.wait_for_retention()
        if closed:
            self.close_windows(self.ledger)
        if exported:
            self.export()
        self.forget(500)
        self.merge()
        if late is not None:
            self.record([late])

    @rule(limit=st.sampled_from([1, 500]))
    def forget(self, limit: int) -> None:
        """Let what is old leave the ledger, in small transactions or a large one."""
        # What leaves is told by the clock alone, so that it may be told once, before.
        gone = self.model.forget(self.clock.now)
        seen = 0
        # Orphans leave by the same transactions: as many as there are decisions.
        for _ in IDS:
            seen += self._forget(limit)
        assert seen == len(gone)

    def _forget(self, limit: int) -> int:
        exported_seq = self.dataset.last_seq()
        return self.ledger.forget(retention_s=RETENTION_S, exported_seq=exported_seq, limit=limit)

    @rule(step=st.integers(0, 12))
    def die_while_forgetting(self, step: int) -> None:
        """Die between two statements: all of the transaction is there, or nothing."""
        try:
            with dying_at_statement(self.ledger._database.engine, step):
                self._forget(500)
            self.model.forget(self.clock.now)
        except Broken:
            self.restart()

    @rule(step=st.integers(0, 12))
    def die_while_merging(self, step: int) -> None:
        """Die between two steps of the dataset's files, and start again."""
        try:
            with dying_at_file_step(step):
                while self.dataset.merge(parts_to_merge=2):
                    pass
        except Broken:
            self.restart()

    @rule()
    def merge(self) -> None:
        """Merge parts until there is nothing to merge."""
        while self.dataset.merge(parts_to_merge=2):
            pass

    @invariant()
    def the_ledger_is_as_the_model(self) -> None:
        """Counts, interactions, their numbers and their order."""
        assert self.ledger.counts() == self.model.counts(self.clock.now)
        rows = self.archive.interactions(0, 1000).to_pylist()
        assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
        names = ("quality", "cost_usd", "latency_ms")
        assert [
            (row["decision_id"], row["revision"], tuple(row[name] for name in names))
            for row in rows
        ] == self.model.interactions
        latest = {row["decision_id"]: row for row in rows}
        for decision_id, row in latest.items():
            shown = self.archive.decision(decision_id)
            assert shown is not None
            assert shown["interaction"]["seq"] == row["seq"]
            assert shown["tenant"] == row["tenant"]

    def _close(self) -> None:
        for ledger in self.ledgers:
            ledger.close()

    def teardown(self) -> None:
        """Leave an empty database to the next run."""
        self._close()
        engine = create_engine(self.url)
        with engine.begin() as connection:
            for table in metadata.tables.values():
                connection.execute(table.delete())
        engine.dispose()


def test_the_ledger_ends_as_the_model_does(ledger_url: str, tmp_path: Path) -> None:
    def machine() -> LedgerMachine:
        return LedgerMachine(ledger_url, Path(tempfile.mkdtemp(dir=tmp_path)))

    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]  # it takes whatever makes a machine
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            # To make a failure shorter takes minutes; what fails is said in seconds without.
            phases=[Phase.explicit, Phase.generate],
        ),
    )
