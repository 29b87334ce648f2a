"""Recorded outcomes as live traffic: prompts are routed over HTTP, their outcomes come back late.

What the service chooses decides which recorded outcome it gets to see, as in production. It knows
the service by its public HTTP API only.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final

import httpx
import numpy as np

from pipelines.outcomes import OutcomeTable
from pipelines.replay_client import ReplayClient, refusal
from pipelines.replay_outbox import Outbox
from pipelines.replay_plan import PlannedRequest, Stream, plan_requests
from pipelines.replay_report import (
    Progress,
    ReplayProgress,
    ReplayReport,
    ServedRequest,
    by_version,
    latency_percentile,
)
from policies.errors import InvalidRequest
from policies.interaction import JoinStatus
from policies.reward import scalar_reward

STORED_UNJOINED: Final = (JoinStatus.PENDING, JoinStatus.DUPLICATE)


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay of recorded outcomes against one service.

    Attributes:
        table: The recorded outcomes.
        url: Base URL of the service.
        requests: Prompts to send; 0 sends each once, more than there are starts over.
        rate_per_s: Requests a second; 0 is as fast as `concurrency` allows.
        concurrency: Most requests in flight, and as many feedback calls beside them.
        delay_s: Shortest and longest delay from a decision to its feedback, seconds.
        preferences: `uniform` draws w_q on [0, 1]; `typical` leaves 70 % at the default 0.7.
        cost_ceiling_usd: The service's tau, for the rewards reported, USD.
        seed: Of order, preferences and delays.
        tenant: Whose traffic it is; None leaves it to the service.
        api_key: Sent as a bearer token.
        feedback_batch: Most outcomes in one call; 1 sends each by itself.
        missing_share: Share of outcomes that never come back, in [0, 1].
        duplicate_share: Share of outcomes that come back twice, in [0, 1].
        route_retry_s: How long a failed request is tried again, seconds; 0 counts it as failed.
        feedback_retry_s: How long an outcome is tried again under its event id, seconds.
        settle_s: How long to wait for prices at the start and for late joins at the end, seconds.
        timeout_s: Longest wait for one reply, seconds.
        clock: Seconds from any fixed point on.
        transport: What carries the requests; None is the network.
    """

    table: OutcomeTable
    url: str
    _: KW_ONLY
    requests: int = 0
    rate_per_s: float = 50.0
    concurrency: int = 32
    delay_s: tuple[float, float] = (0.0, 2.0)
    preferences: Stream = "uniform"
    cost_ceiling_usd: float = 0.01
    seed: int = 0
    tenant: str | None = None
    api_key: str | None = field(default=None, repr=False)
    feedback_batch: int = 1
    missing_share: float = 0.0
    duplicate_share: float = 0.0
    route_retry_s: float = 0.0
    feedback_retry_s: float = 30.0
    settle_s: float = 10.0
    timeout_s: float = 30.0
    clock: Callable[[], float] = time.perf_counter
    transport: httpx.AsyncBaseTransport | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a replay that could not run; raises InvalidRequest."""
        least = {"requests": 0, "rate_per_s": 0, "concurrency": 1, "feedback_batch": 1}
        for name, lowest in least.items():
            if not getattr(self, name) >= lowest:
                raise _bad_setting(name, getattr(self, name), f">= {lowest}")
        if not 0 <= self.delay_s[0] <= self.delay_s[1]:
            raise _bad_setting("delay_s", self.delay_s, "0 <= shortest <= longest")
        if self.preferences not in ("uniform", "typical"):
            raise _bad_setting("preferences", self.preferences, "uniform, typical")

    def run(self, progress: Progress | None = None) -> ReplayReport:
        """Play it from a program that has no event loop; see `play`."""
        return asyncio.run(self.play(progress))

    async def play(self, progress: Progress | None = None) -> ReplayReport:
        """Register the models, route every prompt, send every outcome, wait for the ledger.

        Args:
            progress: Told after each request.

        Raises:
            Unavailable: The service cannot be reached at the start, or refuses the models.
        """
        plan = plan_requests(
            len(self.table),
            self.requests or len(self.table),
            preferences=self.preferences,
            delay_s=self.delay_s,
            missing_share=self.missing_share,
            duplicate_share=self.duplicate_share,
            seed=self.seed,
        )
        async with httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            timeout=self.timeout_s,
            limits=httpx.Limits(max_connections=2 * self.concurrency),
            transport=self.transport,
        ) as http:
            client = ReplayClient(http, clock=self.clock)
            allowed = await client.register_models(self.table, timeout_s=self.settle_s)
            return await _Session(self, client, allowed).play(plan, progress or _silent)


class _Session:
    """One run of a replay: what is under way, and what has been counted so far."""

    def __init__(self, replay: Replay, client: ReplayClient, allowed: list[str] | None) -> None:
        self._replay, self._client, self._allowed = replay, client, allowed
        self._outbox = Outbox(
            client,
            batch=replay.feedback_batch,
            retry_s=replay.feedback_retry_s,
            concurrency=replay.concurrency,
            clock=replay.clock,
        )
        self._began_s = replay.clock()
        self._failed = self._missing = 0
        self._served: list[ServedRequest] = []
        self._errors: Counter[str] = Counter()

    async def play(self, plan: Sequence[PlannedRequest], progress: Progress) -> ReplayReport:
        """Run the plan; returns when the last outcome is with the ledger."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._outbox.run())
            await self._route_all(plan, progress)
            self._outbox.close()
        late = await self._outbox.settle(timeout_s=self._replay.settle_s)
        return self._report(len(plan), late=late)

    async def _route_all(self, plan: Sequence[PlannedRequest], progress: Progress) -> None:
        """Route every prompt, so many at a time."""
        waiting = iter(plan)
        async with asyncio.TaskGroup() as callers:
            for _ in range(self._replay.concurrency):
                callers.create_task(self._route_each(waiting, len(plan), progress))

    async def _route_each(
        self, waiting: Iterator[PlannedRequest], total: int, progress: Progress
    ) -> None:
        """Route one request after the other, each not before its time."""
        for planned in waiting:
            if self._replay.rate_per_s:
                due_s = planned.number / self._replay.rate_per_s
                await asyncio.sleep(max(0.0, due_s - self._elapsed_s()))
            await self._route(planned)
            progress(self._progress(total))

    def _progress(self, total: int) -> ReplayProgress:
        """Say how far it is."""
        return ReplayProgress(
            done=len(self._served) + self._failed,
            total=total,
            failed=self._failed,
            policy_version=self._served[-1].policy_version if self._served else None,
        )

    async def _route(self, planned: PlannedRequest) -> None:
        """Route one prompt; its outcome goes to the outbox."""
        began_s = self._elapsed_s()
        try:
            answer = await self._client.call(
                "POST", "/v1/route", self._request(planned), retry_s=self._replay.route_retry_s
            )
        except httpx.TransportError as error:
            self._fail(f"route {type(error).__name__}")
            return
        if answer.is_error:
            self._fail(f"route {refusal(answer)}")
            return
        decided = answer.json()
        if decided["model"] not in self._replay.table.arms:
            # Somebody offered another model while the replay ran.
            self._fail("route chose a model without recorded outcomes")
            return
        arm = self._replay.table.arms.index(decided["model"])
        self._keep(planned, arm, decided["policy_version"], began_s)
        if planned.is_missing:
            self._missing += 1
            return
        body = self._outcome(planned, arm, decided["decision_id"])
        self._outbox.put(body, delay_s=planned.delay_s, is_repeated=planned.is_repeated)

    def _fail(self, reason: str) -> None:
        """Count a prompt that got no decision."""
        self._failed += 1
        self._errors[reason] += 1

    def _request(self, planned: PlannedRequest) -> dict[str, Any]:
        """Write the body of a route call."""
        body: dict[str, Any] = {
            "prompt": self._replay.table.prompts[planned.row],
            "preference": {"quality": planned.w_quality, "cost": 1.0 - planned.w_quality},
        }
        if self._allowed is not None:
            body["models"] = self._allowed
        return body | self._tenant()

    def _outcome(self, planned: PlannedRequest, arm: int, decision_id: str) -> dict[str, Any]:
        """Write the body of a feedback call from what is recorded of the model chosen."""
        table = self._replay.table
        return {
            "decision_id": decision_id,
            "event_id": f"replay-{planned.number}",
            "quality": float(table.scores[planned.row, arm]),
            "cost_usd": float(table.costs[planned.row, arm]),
        } | self._tenant()

    def _tenant(self) -> dict[str, str]:
        """Name the tenant where there is one."""
        return {"tenant": self._replay.tenant} if self._replay.tenant is not None else {}

    def _keep(self, planned: PlannedRequest, arm: int, version: int, began_s: float) -> None:
        """Remember a decision for the report."""
        table, at_s = self._replay.table, self._elapsed_s()
        reward = scalar_reward(
            table.scores[planned.row, arm],
            table.costs[planned.row, arm],
            np.asarray(planned.w_quality),
            cost_ceiling_usd=self._replay.cost_ceiling_usd,
        )
        self._served.append(
            ServedRequest(
                row=planned.row,
                arm=table.arms[arm],
                policy_version=version,
                w_quality=planned.w_quality,
                reward=float(reward),
                latency_ms=1000.0 * (at_s - began_s),
                at_s=at_s,
            )
        )

    def _report(self, total: int, *, late: int) -> ReplayReport:
        """Sum up; `late` outcomes were joined after they had been acknowledged."""
        outbox = self._outbox
        joined = outbox.statuses[JoinStatus.JOINED] + outbox.statuses[JoinStatus.SUPERSEDED]
        stored = joined + sum(outbox.statuses[status] for status in STORED_UNJOINED)
        return ReplayReport(
            requests=total,
            failed=self._failed,
            errors=dict(self._errors + outbox.errors),
            feedback_sent=outbox.sent,
            feedback_joined=joined + late,
            feedback_failed=outbox.sent - stored,
            feedback_missing=self._missing,
            feedback_repeated=outbox.repeated,
            feedback_by_status=dict(outbox.statuses),
            seconds=self._elapsed_s(),
            p50_ms=latency_percentile(self._served, 50),
            p99_ms=latency_percentile(self._served, 99),
            versions=by_version(self._served),
        )

    def _elapsed_s(self) -> float:
        """Seconds since the replay began."""
        return self._replay.clock() - self._began_s


def _bad_setting(name: str, value: object, allowed: str) -> InvalidRequest:
    """Say which setting of a replay cannot be."""
    return InvalidRequest(
        f"{name}={value} must be {allowed}", field=name, value=value, allowed=allowed
    )


def _silent(progress: ReplayProgress) -> None:
    """Show nothing."""
