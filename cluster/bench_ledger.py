"""`barp bench ledger`: durable feedback a second, one by one, in lists and as Arrow.

Measured at the real aggregator actor, from another process, as replicas call it: an outcome counts
when the call that brought it has returned, which is after its commit has been flushed to disk.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import ray

from cluster.launch import local_ray, working_directory
from pipelines.aggregator import AggregatorActor
from pipelines.tenants import Rulebook, TenantRules
from policies.errors import Unavailable
from policies.interaction import Decision, JoinStatus, Outcome, decisions_to_batch
from policies.preference import Preference
from policies.reports import pack_statuses, reports_to_batch
from services.decision_ids import DecisionIds

TENANT: Final = "bench"
CONTEXT_DIM: Final = 384  # MiniLM's
RECORDED_ROWS: Final = 256  # as a replica hands decisions over
LIST_ROWS: Final = 256
ARROW_ROWS: Final = 10_000
SINGLE_CALLS: Final = 32  # in flight
BULK_CALLS: Final = 3
SINGLES: Final = 3_000
# Outcomes come in the order of their decisions, but for a delay of as many decisions at most.
SCATTER: Final = 20_000
WAIT_WINDOW_S: Final = 86_400.0
JOIN_TIMEOUT_S: Final = 540.0
JOINED: Final = pack_statuses([JoinStatus.JOINED])

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPlan:
    """What to measure.

    Attributes:
        ledger_url: SQLAlchemy URL of an empty ledger; None takes a new SQLite file in `folder`.
        folder: Where file and dataset go; the disk whose flushes are measured.
        decisions: How many are recorded; half of them get their outcome as Arrow, and of the
            others some get theirs in lists or one by one.
        seed: Of contexts and delays.
    """

    ledger_url: str | None
    folder: Path
    decisions: int = 100_000
    seed: int = 0


def run_ledger_benchmark(plan: LedgerPlan, *, progress: Progress) -> dict[str, Any]:
    """Measure each way in turn; return rates, latency, and sizes under `detail`.

    Raises:
        Unavailable: Nothing was joined in time, or an outcome was not stored as it should be.
    """
    url = plan.ledger_url or f"sqlite:///{plan.folder / 'ledger.db'}"
    ids = _ids(plan.decisions)
    with working_directory(plan.folder), local_ray(), _aggregator(url, plan.folder) as actor:
        progress("recording decisions", 0, 4)
        recorded_s = _record(actor, ids, seed=plan.seed)
        arrow_ids = _scattered(ids[: plan.decisions // 2], seed=plan.seed)
        rest = ids[plan.decisions // 2 :]
        single_ids, list_ids = rest[:SINGLES], rest[SINGLES : SINGLES + plan.decisions // 5]
        progress("one by one", 1, 4)
        single_s, latencies_s = _single(actor, single_ids)
        progress("in lists", 2, 4)
        batched_s = _bulk(actor, list_ids, rows=LIST_ROWS)
        before = _interactions(actor)
        _wait_exported(actor, plan.folder, before)
        progress("as Arrow", 3, 4)
        began = time.perf_counter()
        arrow_s = _bulk(actor, arrow_ids, rows=ARROW_ROWS)
        _wait_exported(actor, plan.folder, before + len(arrow_ids))
        joined_s = time.perf_counter() - began
        progress("done", 4, 4)
        memory = psutil.Process(ray.get(actor.pid.remote())).memory_info().rss
    return {
        "single_per_s": round(len(single_ids) / single_s),
        "batched_per_s": round(len(list_ids) / batched_s),
        "arrow_per_s": round(len(arrow_ids) / arrow_s),
        "p99_ms": round(1000 * float(np.quantile(latencies_s, 0.99)), 2),
        "joined_per_s": round(len(arrow_ids) / joined_s),
        "fsync": True,
        "backend": "postgresql" if url.startswith("postgresql") else "sqlite",
        "detail": {
            "decisions": len(ids),
            "recorded_per_s": round(len(ids) / recorded_s),
            "aggregator_mb": round(memory / 1e6),
            "ledger_mb": round(sum(f.stat().st_size for f in plan.folder.glob("ledger.db*")) / 1e6),
            "dataset_mb": round(
                sum(f.stat().st_size for f in (plan.folder / "interactions").glob("*")) / 1e6
            ),
        },
    }


class _MeasuredAggregator(AggregatorActor):
    """The real one, which also says which process it is."""

    async def pid(self) -> int:
        """Return the process's number."""
        return psutil.Process().pid


@contextmanager
def _aggregator(url: str, folder: Path) -> Iterator[Any]:
    """Run the aggregator actor; it refuses a database that does not flush its commits."""
    actor: Any = (
        ray.remote(_MeasuredAggregator)
        .options(num_cpus=0)
        .remote(
            url,
            str(folder / "interactions"),
            rules=Rulebook(default=TenantRules(wait_window_s=WAIT_WINDOW_S)),
            orphan_after_s=60.0,
            export_every_s=1.0,
        )
    )
    ray.get(actor.ready.remote())
    try:
        yield actor
    finally:
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


def _record(actor: Any, ids: Sequence[str], *, seed: int) -> float:
    """Record the decisions; return the seconds it took."""
    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    in_flight = _InFlight(BULK_CALLS)
    for start in range(0, len(ids), RECORDED_ROWS):
        chunk = ids[start : start + RECORDED_ROWS]
        contexts = rng.normal(size=(len(chunk), CONTEXT_DIM)).astype(np.float32)
        batch = decisions_to_batch(
            [_decision(name, context) for name, context in zip(chunk, contexts, strict=True)]
        )
        in_flight.add(actor.record.remote(batch))
    in_flight.drain()
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


def _single(actor: Any, ids: Sequence[str]) -> tuple[float, list[float]]:
    """Report outcomes one a call, so many calls in flight; return seconds in all and of each."""
    latencies_s: list[float] = []
    sent: dict[Any, float] = {}
    began = time.perf_counter()
    left = deque(ids)
    while left or sent:
        while left and len(sent) < SINGLE_CALLS:
            call = actor.submit.remote(TENANT, [_outcome(left.popleft())])
            sent[call] = time.perf_counter()
        [done], _ = ray.wait(list(sent), num_returns=1)
        [status] = ray.get(done)
        latencies_s.append(time.perf_counter() - sent.pop(done))
        _expect(status is JoinStatus.JOINED)
    return time.perf_counter() - began, latencies_s


def _bulk(actor: Any, ids: Sequence[str], *, rows: int) -> float:
    """Report outcomes in columns, `rows` a call; return seconds."""
    chunks = [ids[start : start + rows] for start in range(0, len(ids), rows)]
    batches = [reports_to_batch([(TENANT, _outcome(name)) for name in chunk]) for chunk in chunks]
    in_flight = _InFlight(BULK_CALLS, check=lambda packed: set(packed) == set(JOINED))
    began = time.perf_counter()
    for batch in batches:
        in_flight.add(actor.submit_batch.remote(batch))
    in_flight.drain()
    return time.perf_counter() - began


class _InFlight:
    """Keeps some calls under way, and checks each answer."""

    def __init__(self, most: int, *, check: Callable[[Any], bool] = lambda _: True) -> None:
        self._most, self._check = most, check
        self._calls: deque[Any] = deque()

    def add(self, call: Any) -> None:
        """Add a call; waits for the oldest where there are too many."""
        self._calls.append(call)
        if len(self._calls) >= self._most:
            _expect(self._check(ray.get(self._calls.popleft())))

    def drain(self) -> None:
        """Wait for all."""
        while self._calls:
            _expect(self._check(ray.get(self._calls.popleft())))


def _interactions(actor: Any) -> int:
    return int(ray.get(actor.counts.remote()).last_seq)


def _wait_exported(actor: Any, folder: Path, last_seq: int) -> None:
    """Wait until the dataset holds all interactions up to a sequence number."""
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while time.monotonic() < deadline:
        names = sorted(path.name for path in (folder / "interactions").glob("part-*"))
        if names and int(names[-1].removesuffix(".parquet").split("-")[2]) >= last_seq:
            return
        time.sleep(0.02)
    raise Unavailable(f"interaction {last_seq} did not reach the dataset in {JOIN_TIMEOUT_S:.0f} s")


def _expect(stored: bool) -> None:
    if not stored:
        raise Unavailable("an outcome was not joined: is the ledger empty at the start?")
