"""`barp bench ledger`: durable feedback a second, one by one, in lists and as Arrow.

Measured at the real actors, from another process, as replicas call them: an outcome counts when
the call that brought it has returned, which is after its commit has been flushed to disk.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import psutil
import ray
from sqlalchemy import func, select

from cluster.actors import NAMESPACE
from cluster.launch import local_ray, working_directory
from pipelines.aggregator import AggregatorActor
from pipelines.keeper import KeeperActor
from pipelines.schema import decisions, open_engine
from pipelines.tenants import Rulebook, TenantRules
from policies.errors import Unavailable
from policies.interaction import Decision, JoinStatus, Outcome, decisions_to_batch
from policies.preference import Preference
from policies.reports import pack_statuses, reports_to_batch
from services.actors import AggregatorPort
from services.decision_ids import DecisionIds
from services.shards import KEEPER, aggregator_names, named_ports

TENANT: Final = "bench"
CONTEXT_DIM: Final = 384  # MiniLM's
RECORDED_ROWS: Final = 256  # as a replica hands decisions over
LIST_ROWS: Final = 256
ARROW_ROWS: Final = 10_000
SINGLE_CALLS: Final = 32  # in flight
BULK_CALLS: Final = 3  # in flight, for each aggregator
SINGLES: Final = 3_000
# Outcomes come in the order of their decisions, but for a delay of as many decisions at most.
SCATTER: Final = 20_000
WAIT_WINDOW_S: Final = 86_400.0
# How much later it is for the ledger when it is compacted: every window is over by then.
LATER_S: Final = 2 * WAIT_WINDOW_S
JOIN_TIMEOUT_S: Final = 540.0
JOINED: Final = pack_statuses([JoinStatus.JOINED])

Progress = Callable[[str, int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPlan:
    """What to measure.

    Attributes:
        ledger_url: SQLAlchemy URL of an empty ledger; None takes a new SQLite file in `folder`.
        folder: Where file and dataset go; the disk whose flushes are measured.
        decisions: How many are recorded; half of them get their outcome as Arrow, and of the
            others some get theirs in lists or one by one.
        shards: Aggregators side by side.
        compact: Whether to see, at the end, what is left of the ledger once all has left it.
        seed: Of contexts and delays.
    """

    ledger_url: str | None
    folder: Path
    decisions: int = 100_000
    shards: int = 1
    compact: bool = False
    seed: int = 0


def run_ledger_benchmark(plan: LedgerPlan, *, progress: Progress) -> dict[str, Any]:
    """Measure each way in turn; return rates, latency, and sizes under `detail`.

    Raises:
        Unavailable: Nothing was joined in time, or an outcome was not stored as it should be.
    """
    url = plan.ledger_url or f"sqlite:///{plan.folder / 'ledger.db'}"
    with working_directory(plan.folder), local_ray():
        with _actors(url, plan) as memory_mb:
            found = asyncio.run(_measured(plan, progress))
            detail = found["detail"] | memory_mb() | _sizes(plan.folder)
        if plan.compact:
            progress("compacting, two days later", 4, 5)
            with _actors(url, plan, ahead_s=LATER_S):
                detail |= _compacted(plan, url)
    progress("done", 5, 5)
    backend = "postgresql" if url.startswith("postgresql") else "sqlite"
    return found | {"fsync": True, "backend": backend, "shards": plan.shards, "detail": detail}


async def _measured(plan: LedgerPlan, progress: Progress) -> dict[str, Any]:
    """Record decisions, and report outcomes each way; return rates and latency."""
    ids, ledger = _ids(plan.decisions), named_ports(plan.shards).aggregator
    calls = BULK_CALLS * plan.shards
    progress("recording decisions", 0, 5)
    recorded_s = await _record(ledger, ids, calls=calls, seed=plan.seed)
    arrow_ids = _scattered(ids[: plan.decisions // 2], seed=plan.seed)
    rest = ids[plan.decisions // 2 :]
    single_ids, list_ids = rest[:SINGLES], rest[SINGLES : SINGLES + plan.decisions // 5]
    progress("one by one", 1, 5)
    single_s, latencies_s = await _single(ledger, single_ids)
    progress("in lists", 2, 5)
    batched_s = await _bulk(ledger, list_ids, rows=LIST_ROWS, calls=calls)
    before = (await ledger.counts()).last_seq
    await _wait_exported(plan.folder, before)
    progress("as Arrow", 3, 5)
    began = time.perf_counter()
    arrow_s = await _bulk(ledger, arrow_ids, rows=ARROW_ROWS, calls=calls)
    await _wait_exported(plan.folder, before + len(arrow_ids))
    joined_s = time.perf_counter() - began
    return {
        "single_per_s": round(len(single_ids) / single_s),
        "batched_per_s": round(len(list_ids) / batched_s),
        "arrow_per_s": round(len(arrow_ids) / arrow_s),
        "p99_ms": round(1000 * float(np.quantile(latencies_s, 0.99)), 2),
        "joined_per_s": round(len(arrow_ids) / joined_s),
        "detail": {"decisions": len(ids), "recorded_per_s": round(len(ids) / recorded_s)},
    }


def _sizes(folder: Path) -> dict[str, int]:
    """Measure ledger and dataset on the disk, MB; 0 for a ledger that is elsewhere."""
    places = {"ledger_mb": (folder, "ledger.db*"), "dataset_mb": (folder / "interactions", "*")}
    return {
        name: round(sum(file.stat().st_size for file in place.glob(pattern)) / 1e6)
        for name, (place, pattern) in places.items()
    }


def _compacted(plan: LedgerPlan, url: str) -> dict[str, int]:
    """Let everything leave the ledger; return how long it took, and what is left."""
    began = time.perf_counter()
    first, keeper = (ray.get_actor(name, namespace=NAMESPACE) for name in ("aggregator-0", KEEPER))
    ray.get(first.close_windows.remote())
    # The keeper compacts by itself, too, so what this call let go is not all.
    ray.get(keeper.compact.remote())
    compact_s = time.perf_counter() - began
    engine = open_engine(url)
    with engine.connect() as connection:
        kept = connection.scalar(select(func.count()).select_from(decisions))
    engine.dispose()
    return {
        "kept": int(kept or 0),
        "compact_s": round(compact_s),
        "compacted_mb": _sizes(plan.folder)["ledger_mb"],
    }


def _clock(ahead_s: float) -> float:
    """Return the time, or a later one."""
    return time.time() + ahead_s


class _MeasuredAggregator(AggregatorActor):
    """The real one, which also says which process it is."""

    async def pid(self) -> int:
        """Return the process's number."""
        return psutil.Process().pid

    async def close_windows(self) -> int:
        """See `Aggregator.close_windows`."""
        return await self._aggregator.close_windows()


class _MeasuredKeeper(KeeperActor):
    """The real one, which also says which process it is."""

    async def pid(self) -> int:
        """Return the process's number."""
        return psutil.Process().pid

    async def compact(self) -> int:
        """See `Keeper.compact`."""
        return await self._keeper.compact()


@contextmanager
def _actors(
    url: str, plan: LedgerPlan, *, ahead_s: float = 0.0
) -> Iterator[Callable[[], dict[str, int]]]:
    """Run aggregators and keeper; they refuse a database that does not flush its commits.

    Yields what says how much memory they take, MB: the largest aggregator, and the keeper.
    """
    ledger = {
        "ledger_url": url,
        "rules": Rulebook(default=TenantRules(wait_window_s=WAIT_WINDOW_S)),
        "orphan_after_s": 60.0,
        "clock": partial(_clock, ahead_s),
    }
    options: Any = {"num_cpus": 0, "namespace": NAMESPACE}
    aggregators: list[Any] = [
        ray.remote(_MeasuredAggregator).options(name=name, **options).remote(**ledger, shard=shard)
        for shard, name in enumerate(aggregator_names(plan.shards))
    ]
    keeper: Any = (
        ray.remote(_MeasuredKeeper)
        .options(name=KEEPER, **options)
        .remote(
            **ledger,
            dataset_dir=str(plan.folder / "interactions"),
            export_every_s=1.0,
            retention_s=0.0,
        )
    )
    actors = [*aggregators, keeper]
    ray.get([actor.ready.remote() for actor in actors])

    def memory_mb() -> dict[str, int]:
        pids = ray.get([actor.pid.remote() for actor in actors])
        *each, last = (round(psutil.Process(pid).memory_info().rss / 1e6) for pid in pids)
        return {"aggregator_mb": max(each), "keeper_mb": last}

    try:
        yield memory_mb
    finally:
        for actor in actors:
            ray.get(actor.stop.remote())
            ray.kill(actor)


def _ids(number: int) -> list[str]:
    """Issue decision ids as a replica does."""
    issuer = DecisionIds(bytes(32))
    return [issuer.issue(TENANT) for _ in range(number)]


def _scattered(ids: Sequence[str], *, seed: int) -> list[str]:
    """Put ids in the order in which their outcomes come."""
    delays = np.random.default_rng(seed).random(len(ids)) * min(SCATTER, len(ids))
    return [ids[index] for index in np.argsort(np.arange(len(ids)) + delays)]


async def _record(ledger: AggregatorPort, ids: Sequence[str], *, calls: int, seed: int) -> float:
    """Record the decisions; return the seconds it took."""
    rng = np.random.default_rng(seed)

    async def record(start: int) -> None:
        chunk = ids[start : start + RECORDED_ROWS]
        contexts = rng.normal(size=(len(chunk), CONTEXT_DIM)).astype(np.float32)
        made = [_decision(name, context) for name, context in zip(chunk, contexts, strict=True)]
        _expect(await ledger.record(decisions_to_batch(made)) == len(chunk))

    began = time.perf_counter()
    await _side_by_side(record, range(0, len(ids), RECORDED_ROWS), calls=calls)
    return time.perf_counter() - began


def _decision(decision_id: str, context: Any) -> Decision:
    return Decision(
        decision_id=decision_id,
        decided_at=datetime.now(UTC),
        tenant=TENANT,
        session=None,
        prompt_hash=decision_id[:32],
        prompt_characters=120,
        preference=Preference(quality=0.7, cost=0.3),
        context=context,
        encoder_id="bench",
        arms_offered=("cheap", "dear"),
        pmf=np.array([0.25, 0.75]),
        arm="dear",
        propensity=0.75,
        policy_version=1,
        price_version=1,
    )


def _outcome(decision_id: str) -> Outcome:
    return Outcome(decision_id=decision_id, quality=0.5, cost_usd=0.01, latency_ms=900.0)


async def _single(ledger: AggregatorPort, ids: Sequence[str]) -> tuple[float, list[float]]:
    """Report outcomes one a call, so many calls in flight; return seconds in all and of each."""
    latencies_s: list[float] = []

    async def report(decision_id: str) -> None:
        sent = time.perf_counter()
        [status] = await ledger.submit(TENANT, [_outcome(decision_id)])
        latencies_s.append(time.perf_counter() - sent)
        _expect(status is JoinStatus.JOINED)

    began = time.perf_counter()
    await _side_by_side(report, ids, calls=SINGLE_CALLS)
    return time.perf_counter() - began, latencies_s


async def _bulk(ledger: AggregatorPort, ids: Sequence[str], *, rows: int, calls: int) -> float:
    """Report outcomes in columns, `rows` a call; return seconds."""
    chunks = [ids[start : start + rows] for start in range(0, len(ids), rows)]
    batches = [reports_to_batch([(TENANT, _outcome(name)) for name in chunk]) for chunk in chunks]

    async def report(number: int) -> None:
        packed = await ledger.submit_batch(batches[number])
        _expect(set(packed) == set(JOINED))

    began = time.perf_counter()
    await _side_by_side(report, range(len(batches)), calls=calls)
    return time.perf_counter() - began


async def _side_by_side(
    work: Callable[[T], Awaitable[None]], items: Sequence[T], *, calls: int
) -> None:
    """Do the same with each, some at a time, in order; end with the first that fails."""
    left = deque(items)

    async def worker() -> None:
        while left:
            await work(left.popleft())

    async with asyncio.TaskGroup() as group:
        for _ in range(calls):
            group.create_task(worker())


async def _wait_exported(folder: Path, last_seq: int) -> None:
    """Wait until the dataset holds all interactions up to a sequence number."""
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while time.monotonic() < deadline:
        names = sorted(path.name for path in (folder / "interactions").glob("part-*"))
        if names and int(names[-1].removesuffix(".parquet").split("-")[2]) >= last_seq:
            return
        await asyncio.sleep(0.02)
    raise Unavailable(f"interaction {last_seq} did not reach the dataset in {JOIN_TIMEOUT_S:.0f} s")


def _expect(stored: bool) -> None:
    if not stored:
        raise Unavailable("an outcome was not joined: is the ledger empty at the start?")
