"""A replay routes every prompt once, sends each outcome late, and counts what came of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import numpy as np
import pytest
from replay_service import FakeService, LossyTransport
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipelines.outcomes import OutcomeTable
from pipelines.replay import Replay
from pipelines.replay_report import ReplayProgress, ReplayReport
from policies.errors import InvalidRequest, Unavailable
from policies.reward import scalar_reward

ARMS = ("acme/small", "big")


def outcome_table(num_rows: int = 20) -> OutcomeTable:
    """Make outcomes that differ in every cell."""
    cells = np.arange(2 * num_rows, dtype=np.float64).reshape(num_rows, 2)
    return OutcomeTable(
        sample_ids=tuple(f"row-{row}" for row in range(num_rows)),
        datasets=("made",) * num_rows,
        prompts=tuple(f"prompt {row}" for row in range(num_rows)),
        arms=ARMS,
        scores=cells / cells.size,
        costs=cells / 1000,
    )


def play(
    service: FakeService,
    *,
    table: OutcomeTable | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    **options: Any,
) -> ReplayReport:
    """Replay against the fake, at full speed unless said otherwise."""
    quick: dict[str, Any] = {"rate_per_s": 0, "delay_s": (0.0, 0.01), "concurrency": 4}
    return Replay(
        outcome_table() if table is None else table,
        "http://service",
        transport=transport or httpx.ASGITransport(service.app),
        **(quick | options),
    ).run()


def test_every_prompt_is_routed_once_and_every_outcome_joined() -> None:
    """The counts a demo relies on."""
    service, table = FakeService(), outcome_table()
    report = play(service, table=table)

    assert Counter(body["prompt"] for body in service.decisions.values()) == Counter(table.prompts)
    assert (report.requests, report.failed, report.errors) == (20, 0, {})
    assert report.feedback_sent == report.feedback_joined == len(service.outcomes) == 20
    assert report.p50_ms is not None
    assert report.p99_ms is not None
    assert 0 < report.p50_ms <= report.p99_ms


def test_feedback_is_what_was_recorded_for_the_model_chosen() -> None:
    """Only the chosen arm is revealed."""
    service, table = FakeService(), outcome_table()
    report = play(service, table=table)

    for (decision_id, _), outcome in service.outcomes.items():
        row = table.prompts.index(service.decisions[decision_id]["prompt"])
        cell = (outcome["quality"], outcome["cost_usd"])
        assert cell in [(table.scores[row, arm], table.costs[row, arm]) for arm in range(2)]
    assert sum(report.versions[0].arm_counts.values()) == 20


def test_models_are_offered_at_their_mean_cost_before_traffic() -> None:
    """A name with a slash stays one name."""
    service, table = FakeService(), outcome_table()
    play(service, table=table)
    assert service.models == dict(zip(ARMS, table.costs.mean(axis=0), strict=True))


def test_models_already_at_that_price_are_left_alone() -> None:
    """A second replay makes no new price table."""
    service = FakeService()
    play(service)
    version = service.price_version
    play(service)
    assert service.price_version == version


def test_models_without_recorded_outcomes_are_not_asked_for() -> None:
    """A service that offers more than was recorded is given an allow-list."""
    service = FakeService(models={"unrecorded": 0.5})
    report = play(service)

    assert report.failed == 0
    assert all(body["models"] == list(ARMS) for body in service.decisions.values())


def test_outcomes_may_go_in_batches() -> None:
    """A list is answered item by item."""
    service = FakeService()
    report = play(service, feedback_batch=8)
    assert report.feedback_joined == len(service.outcomes) == 20


def test_pending_outcomes_count_as_joined_once_the_ledger_says_so() -> None:
    """Feedback may overtake the record of its decision."""
    service = FakeService()
    service.status_of_first_report = "pending"
    report = play(service)

    assert report.feedback_by_status == {"pending": 20}
    assert report.feedback_joined == 20


def test_pending_outcomes_that_stay_pending_are_not_joined() -> None:
    """The wait for the ledger is bounded."""
    service = FakeService()
    service.status_of_first_report = "pending"

    async def never(request: Request) -> Response:
        return JSONResponse({"ledger": {"pending": 20}})

    service.app.router.routes.insert(0, Route("/v1/status", never))
    report = play(service, settle_s=0.3)
    assert report.feedback_joined == 0
    assert report.feedback_failed == 0


def test_a_lost_reply_is_tried_again_under_the_same_event() -> None:
    """At least once from here, exactly once in the ledger."""
    service = FakeService()
    report = play(service, transport=LossyTransport(service.app), concurrency=20)

    assert report.feedback_by_status == {"duplicate": 20}
    assert report.feedback_sent == report.feedback_joined == len(service.outcomes) == 20
    assert report.errors == {}


def test_outcomes_that_cannot_be_delivered_are_counted() -> None:
    """With the reason, and without a word of what was sent."""
    service = FakeService()
    transport = LossyTransport(service.app)
    report = play(service, transport=transport, feedback_retry_s=0.0)

    assert report.feedback_failed == 20
    assert report.errors == {"feedback ReadError": 20}


def test_a_refused_prompt_is_counted_and_not_tried_again() -> None:
    """Neither is there feedback for it."""
    service = FakeService()
    service.refuse_route = lambda body: body["prompt"] == "prompt 3"
    report = play(service)

    assert report.failed == 1
    assert report.errors == {"route 422 no_eligible_arm": 1}
    assert report.feedback_sent == 19


def test_outcomes_are_repeated_and_kept_back_as_asked() -> None:
    """A duplicate is no second outcome, a missing one none at all."""
    repeated = play(service := FakeService(), duplicate_share=1.0)
    missing = play(FakeService(), missing_share=1.0)

    assert repeated.feedback_sent == repeated.feedback_joined == len(service.outcomes) == 20
    assert repeated.feedback_repeated == 20
    assert (missing.feedback_sent, missing.feedback_missing) == (0, 20)


def test_traffic_is_reported_by_version() -> None:
    """In the order the versions appeared; requests and rewards add up."""
    service, table = FakeService(), outcome_table()
    service.refuse_route = lambda body: _next_version(service, after=10)
    report = play(service, table=table, concurrency=1, cost_ceiling_usd=0.02)

    first, second = report.versions
    assert (first.version, first.requests) == (1, 10)
    assert (second.version, second.requests) == (2, 10)
    assert first.last_seen_s <= second.first_seen_s
    total = first.mean_reward * 10 + second.mean_reward * 10
    assert total == pytest.approx(_rewards(service, table, cost_ceiling_usd=0.02).sum())


def _next_version(service: FakeService, *, after: int) -> bool:
    """Let the second version decide from some request on; refuse nothing."""
    service.version = 1 + (len(service.decisions) >= after)
    return False


def _rewards(
    service: FakeService, table: OutcomeTable, *, cost_ceiling_usd: float
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Work out every reward again from what the service was sent."""
    sent = [
        (
            outcome["quality"],
            outcome["cost_usd"],
            service.decisions[key[0]]["preference"]["quality"],
        )
        for key, outcome in service.outcomes.items()
    ]
    quality, cost_usd, w_quality = np.array(sent).T
    return scalar_reward(quality, cost_usd, w_quality, cost_ceiling_usd=cost_ceiling_usd)


def test_progress_is_told_after_each_request() -> None:
    """So that a bar can move, and a new version be shown at once."""
    service = FakeService()
    seen: list[ReplayProgress] = []
    Replay(
        outcome_table(5),
        "http://service",
        rate_per_s=0,
        delay_s=(0.0, 0.0),
        transport=httpx.ASGITransport(service.app),
    ).run(seen.append)

    assert [step.done for step in seen] == [1, 2, 3, 4, 5]
    assert {(step.total, step.failed, step.policy_version) for step in seen} == {(5, 0, 1)}


def test_tenant_and_key_travel_with_every_call() -> None:
    """The key in the header only, and never in the replay's own representation."""
    service = FakeService()
    keys: list[str | None] = []

    class Listening(httpx.ASGITransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            keys.append(request.headers.get("authorization"))
            return await super().handle_async_request(request)

    replay = Replay(
        outcome_table(3),
        "http://service",
        rate_per_s=0,
        delay_s=(0.0, 0.0),
        tenant="acme",
        api_key="key-of-a-test",
        transport=Listening(service.app),
    )
    replay.run()

    assert set(keys) == {"Bearer key-of-a-test"}
    assert {body["tenant"] for body in service.decisions.values()} == {"acme"}
    assert {outcome["tenant"] for outcome in service.outcomes.values()} == {"acme"}
    assert "key-of-a-test" not in repr(replay)


def test_a_service_that_is_away_is_said_at_once() -> None:
    """Before any traffic is counted as failed."""
    replay = Replay(outcome_table(), "http://127.0.0.1:9", timeout_s=5.0)
    with pytest.raises(Unavailable, match="GET /v1/models"):
        asyncio.run(replay.play())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"requests": -1}, "requests"),
        ({"rate_per_s": float("nan")}, "rate_per_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"feedback_batch": 0}, "feedback_batch"),
        ({"delay_s": (2.0, 1.0)}, "delay_s"),
        ({"preferences": "skewed"}, "preferences"),
    ],
)
def test_a_replay_that_could_not_run_is_refused(options: dict[str, Any], field: str) -> None:
    """By the name of the setting."""
    with pytest.raises(InvalidRequest) as caught:
        Replay(outcome_table(), "http://service", **options)
    assert caught.value.field == field
