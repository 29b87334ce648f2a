"""Feedback over HTTP: what is acknowledged, what is refused, and by which status."""

from __future__ import annotations

from typing import Any

import pytest
from replica_fakes import Replica

from policies.interaction import JoinStatus


@pytest.fixture
def replica() -> Replica:
    """A replica with three models and a champion."""
    return Replica()


@pytest.mark.parametrize(
    ("status", "http", "code"),
    [
        (JoinStatus.JOINED, 202, None),
        (JoinStatus.PENDING, 202, None),
        (JoinStatus.DUPLICATE, 202, None),
        (JoinStatus.SUPERSEDED, 202, None),
        (JoinStatus.EXPIRED, 409, "expired"),
        (JoinStatus.INVALID, 409, "conflict"),
        (JoinStatus.UNKNOWN, 404, "unknown_decision"),
    ],
)
def test_one_outcome_is_answered_by_what_the_ledger_says(
    replica: Replica, status: JoinStatus, http: int, code: str | None
) -> None:
    decision_id = replica.ids.issue("default")
    replica.aggregator.answers[decision_id] = status
    report = {"decision_id": decision_id, "quality": 1, "event_id": "e-1"}
    answer = replica.call("POST", "/v1/feedback", json=report)
    assert answer.status_code == http
    if code is None:
        assert answer.json() == {"decision_id": decision_id, "status": status.value}
    else:
        assert answer.json()["error"]["code"] == code


def test_all_fields_reach_the_ledger(replica: Replica) -> None:
    decision_id = replica.ids.issue("acme")
    report = {
        "decision_id": decision_id,
        "event_id": "e-1",
        "quality": 0.5,
        "cost_usd": 0.25,
        "tokens_in": 3,
        "tokens_out": 4,
        "latency_ms": 120,
        "final": True,
    }
    assert replica.call("POST", "/v1/feedback", json=report | {"tenant": "acme"}).is_success
    [(tenant, outcome)] = replica.aggregator.submitted
    assert tenant == "acme"
    assert {name: getattr(outcome, name) for name in report} == report


def test_another_tenants_decision_is_unknown(replica: Replica) -> None:
    decision_id = replica.ids.issue("acme")
    answer = replica.call("POST", "/v1/feedback", json={"decision_id": decision_id, "quality": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_decision")
    assert replica.aggregator.submitted == []


def test_idempotency_key_stands_for_a_missing_event_id(replica: Replica) -> None:
    report: dict[str, Any] = {"decision_id": replica.ids.issue("default"), "quality": 1}
    headers = {"idempotency-key": "key-1"}
    replica.call("POST", "/v1/feedback", json=report, headers=headers)
    replica.call("POST", "/v1/feedback", json=report | {"event_id": "e-1"}, headers=headers)
    assert [outcome.event_id for _, outcome in replica.aggregator.submitted] == ["key-1", "e-1"]


BAD_OUTCOMES: list[tuple[dict[str, Any], str]] = [
    ({"quality": 1.7}, "quality"),
    ({"quality": -0.1}, "quality"),
    ({"quality": True}, "quality"),
    ({"quality": "1"}, "quality"),
    ({"quality": float("nan")}, "quality"),
    ({"cost_usd": -1}, "cost_usd"),
    ({"cost_usd": float("inf")}, "cost_usd"),
    ({"tokens_in": 1.5}, "tokens_in"),
    ({"tokens_out": -1}, "tokens_out"),
    ({"tokens_out": 10**20}, "tokens_out"),
    ({"latency_ms": -1}, "latency_ms"),
    ({"quality": 1, "event_id": ""}, "event_id"),
    ({"quality": 1, "event_id": "a\x00"}, "event_id"),
    ({"quality": 1, "score": 1}, "score"),
    ({}, "quality"),
    ({"quality": 1, "decision_id": None}, "decision_id"),
]


@pytest.mark.parametrize(("fields", "field"), BAD_OUTCOMES)
def test_an_impossible_outcome_is_refused_by_name(
    replica: Replica, fields: dict[str, Any], field: str
) -> None:
    import json

    report = {"decision_id": replica.ids.issue("default")} | fields
    answer = replica.call("POST", "/v1/feedback", content=json.dumps(report))
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert replica.aggregator.submitted == []


@pytest.mark.parametrize("body", [b"", b"{", b"null", b'"x"', b"7", b"\xff"])
def test_a_body_that_is_no_outcome_is_refused(replica: Replica, body: bytes) -> None:
    answer = replica.call("POST", "/v1/feedback", content=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "body")


def test_a_list_answers_each_item_by_itself_in_order(replica: Replica) -> None:
    mine, theirs, late = (replica.ids.issue(tenant) for tenant in ("default", "acme", "default"))
    replica.aggregator.answers[late] = JoinStatus.EXPIRED
    answer = replica.call(
        "POST",
        "/v1/feedback",
        json=[
            {"decision_id": "forged", "quality": 1},
            {"decision_id": mine, "quality": 1},
            {"decision_id": mine, "quality": 9},
            7,
            {"decision_id": theirs, "quality": 0, "tenant": "acme"},
            {"decision_id": late, "quality": 0},
            {"quality": 1},
        ],
    )
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert [(result["decision_id"], result["status"]) for result in results[:3]] == [
        ("forged", "unknown"),
        (mine, "joined"),
        (mine, "invalid"),
    ]
    assert [result["status"] for result in results[3:]] == [
        "invalid",
        "joined",
        "expired",
        "invalid",
    ]
    assert ["error" in result for result in results] == [True, False, True, True, False, True, True]
    assert [tenant for tenant, _ in replica.aggregator.submitted] == ["default", "acme", "default"]


def test_an_empty_list_is_fine_and_a_long_one_is_not(replica: Replica) -> None:
    assert replica.call("POST", "/v1/feedback", json=[]).json() == {"results": []}
    answer = replica.call("POST", "/v1/feedback", json=[{}] * 51)
    assert (answer.status_code, answer.json()["error"]["value"]) == (422, 51)


def test_nothing_is_acknowledged_while_the_ledger_is_away(replica: Replica) -> None:
    report = {"decision_id": replica.ids.issue("default"), "quality": 1}
    replica.aggregator.away = True
    for body in (report, [report]):
        answer = replica.call("POST", "/v1/feedback", json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "unavailable"
