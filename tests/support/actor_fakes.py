"""The named actors without Ray, as a replica sees them: plain in-process parts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable, patched
from policies.artifact import PolicyArtifact
from policies.errors import InvalidRequest, Unavailable, UnknownVersion
from policies.events import Event, EventKind
from policies.interaction import JoinStatus, LedgerCounts, Outcome
from policies.publication import Publication
from policies.reports import pack_statuses
from policies.versions import AliasMove, VersionInfo
from services.actors import Sample

DIM: Final = 8
ENCODER_ID: Final = "hash-encoder"
NOW: Final = 1_800_000_000.0
ARMS: Final = (
    Arm(name="cheap", input_usd_per_mtok=0.1, output_usd_per_mtok=0.4),
    Arm(name="dear", input_usd_per_mtok=5.0, output_usd_per_mtok=25.0),
    Arm(name="meta/middle", input_usd_per_mtok=1.0, output_usd_per_mtok=4.0),
)
PRICES: Final = PriceTable(version=3, arms=ARMS)


def an_artifact(*, encoder_id: str = ENCODER_ID) -> PolicyArtifact:
    """Return the smallest artifact there is."""
    return PolicyArtifact(
        kind="price",
        arms=PRICES.names,
        encoder_id=encoder_id,
        context_dim=DIM,
        cost_ceiling_usd=0.01,
        exploration_total=0.05,
        price_version=PRICES.version,
        seed=0,
    )


class FakeAggregator:
    """Keeps what it is given; `away` makes it fail as a dead actor does."""

    def __init__(self) -> None:
        self.away = False
        self.refused: set[str] = set()
        self.batches: list[pa.RecordBatch] = []
        self.submitted: list[tuple[str, Outcome]] = []
        self.answers: dict[str, JoinStatus] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self.contexts: dict[str, NDArray[np.float32]] = {}
        self.table = PRICES
        self.tables = {PRICES.version: PRICES}

    def _here(self) -> None:
        if self.away:
            raise Unavailable("aggregator does not answer; try again", field="aggregator")

    async def ready(self) -> None:
        """Say that it is there."""
        self._here()

    async def record(self, batch: pa.RecordBatch) -> int:
        """Store decisions."""
        self._here()
        if self.refused & set(batch["decision_id"].to_pylist()):
            raise InvalidRequest("the ledger cannot hold it", field="decision_id")
        self.batches.append(batch)
        return len(batch)

    async def submit(self, tenant: str, outcomes: Sequence[Outcome]) -> list[JoinStatus]:
        """Store outcomes; answer as told by `answers`, else joined."""
        self._here()
        self.submitted += [(tenant, outcome) for outcome in outcomes]
        return [self.answers.get(o.decision_id, JoinStatus.JOINED) for o in outcomes]

    async def submit_batch(self, reports: pa.RecordBatch) -> bytes:
        """Store outcomes that come in columns, likewise."""
        self._here()
        rows = reports.to_pylist()
        self.submitted += [(row.pop("tenant"), Outcome(**row)) for row in rows]
        return pack_statuses(
            [self.answers.get(row["decision_id"], JoinStatus.JOINED) for row in rows]
        )

    async def decision(self, decision_id: str) -> dict[str, Any] | None:
        """Return what `records` holds."""
        self._here()
        return self.records.get(decision_id)

    async def context(self, decision_id: str) -> NDArray[np.float32] | None:
        """Return what `contexts` holds."""
        self._here()
        return self.contexts.get(decision_id)

    async def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return what there has been."""
        self._here()
        return {version: self.tables[version] for version in versions if version in self.tables}

    async def counts(self) -> LedgerCounts:
        """Count what came."""
        self._here()
        return LedgerCounts(
            decisions=sum(map(len, self.batches)),
            outcomes=len(self.submitted),
            joined=len(self.submitted),
            pending=0,
            orphaned=0,
            duplicates=0,
            expired=0,
            interactions=0,
            last_seq=0,
        )

    async def prices(self) -> PriceTable:
        """Return the table of now."""
        self._here()
        return self.table

    async def put_arm(self, arm: Arm) -> PriceTable:
        """Add or replace an arm."""
        self.table = self.table.with_arm(arm, version=self.table.version + 1)
        return self.table

    async def patch_arm(self, name: str, changes: dict[str, float | int]) -> PriceTable:
        """Change some prices."""
        return await self.put_arm(patched(self.table.arm(name), changes))

    async def delete_arm(self, name: str) -> PriceTable:
        """Take an arm out."""
        self.table = self.table.without(name, version=self.table.version + 1)
        return self.table


class FakeRegistry:
    """Three versions; remembers its moves."""

    def __init__(self) -> None:
        self.champion, self.previous = 2, 1
        self.moves: list[AliasMove] = []

    async def versions(self) -> list[VersionInfo]:
        """List them, newest first."""
        aliases = {self.champion: ("champion",), self.previous: ("previous",)}
        return [
            VersionInfo(
                version=number,
                kind="posterior",
                created_at="2026-11-01T00:00:00+00:00",
                aliases=aliases.get(number, ()),
                metrics={"uplift": 0.01 * number},
                tags={},
            )
            for number in (3, 2, 1)
        ]

    async def artifact(self, version: int) -> PolicyArtifact:
        """Return the smallest artifact there is."""
        if version not in (1, 2, 3):
            raise UnknownVersion(f"version {version} is not registered", field="version")
        return an_artifact()

    async def trials(self) -> list[AliasMove]:
        """No version was ever on trial."""
        return []

    async def history(self) -> list[AliasMove]:
        """List the moves, newest first."""
        return self.moves[::-1]

    async def promote(self, version: int, *, who: str, why: str) -> AliasMove:
        """Move `champion`; raises UnknownVersion."""
        if version not in (1, 2, 3):
            raise UnknownVersion(f"version {version} is not registered", field="version")
        self.previous, self.champion = self.champion, version
        at = datetime.fromtimestamp(NOW, UTC).isoformat()
        move = AliasMove(
            alias="champion", version=version, previous=self.previous, who=who, why=why, at=at
        )
        self.moves.append(move)
        return move

    async def rollback(self, *, to: int | None, who: str, why: str) -> AliasMove:
        """Move `champion` back."""
        return await self.promote(to if to is not None else self.previous, who=who, why=why)


class FakePublisher:
    """Hands out what is put into its queue; `away` makes it fail as a dead actor does."""

    def __init__(self) -> None:
        self.away = False
        self.queue: asyncio.Queue[Publication] = asyncio.Queue()
        self.acknowledged: list[int] = []

    async def next(
        self, replica_id: str, have: int, swapped_at: float | None
    ) -> list[Awaitable[Publication]]:
        """Wait for a publication."""
        self.acknowledged.append(have)
        if self.away:
            raise Unavailable("publisher does not answer; try again", field="publisher")
        reference: asyncio.Future[Publication] = asyncio.get_running_loop().create_future()
        reference.set_result(await self.queue.get())
        return [reference]

    async def status(self) -> dict[str, Any]:
        """Say little."""
        return {"replicas": {}}


class FakeTrainer:
    """Idle."""

    async def status(self) -> dict[str, Any]:
        """Say so."""
        return {"trainings": 0}

    async def rebuild(self, version: int) -> dict[str, Any]:
        """Say that it is the same."""
        return {"version": version, "identical": True}


class FakeMetrics:
    """Keeps the last samples of each source."""

    def __init__(self) -> None:
        self.samples: dict[str, list[Sample]] = {}
        self.taken: list[Event] = []

    async def push(self, source: str, samples: list[Sample]) -> int:
        """Replace what is known of a source."""
        self.samples[source] = samples
        return len(self.samples)

    async def take_event(self, event: Event) -> None:
        """Keep it."""
        self.taken.append(event)

    async def events(
        self, after_seq: int = 0, limit: int = 100, kinds: Sequence[EventKind] = ()
    ) -> dict[str, Any]:
        """List those kept."""
        numbered = enumerate(self.taken, start=1)
        found = [
            {"seq": seq, **event.to_json()}
            for seq, event in numbered
            if seq > after_seq and (not kinds or event.kind in kinds)
        ]
        return {"events": found[-limit:], "last_seq": len(self.taken)}

    async def text(self) -> str:
        """Print the samples' names."""
        return "".join(
            f"{name} {value}\n" for s in self.samples.values() for name, _, value, _ in s
        )
