"""Models, versions, decisions, status over HTTP."""

from __future__ import annotations

import pytest
from actor_fakes import NOW
from replica_fakes import Replica

from policies.events import Event, EventKind


@pytest.fixture
def replica() -> Replica:
    """A replica with three models and a champion."""
    return Replica()


def test_models_are_listed_added_changed_and_removed(replica: Replica) -> None:
    listed = replica.call("GET", "/v1/models").json()
    assert listed["price_version"] == 3
    assert [model["name"] for model in listed["models"]] == ["cheap", "dear", "meta/middle"]

    added = replica.call("PUT", "/v1/models/org/new", json={"usd_per_call": 0.5})
    assert added.json()["price_version"] == 4
    assert replica.aggregator.table.arm("org/new").usd_per_call == 0.5

    changed = replica.call("PATCH", "/v1/models/dear", json={"input_usd_per_mtok": 4})
    assert changed.status_code == 200
    arm = replica.aggregator.table.arm("dear")
    assert (arm.input_usd_per_mtok, arm.output_usd_per_mtok) == (4, 25)

    removed = replica.call("DELETE", "/v1/models/meta/middle").json()
    assert [model["name"] for model in removed["models"]] == ["cheap", "dear", "org/new"]


@pytest.mark.parametrize(
    ("method", "name", "body", "status", "code"),
    [
        ("PUT", "x", b'{"usd_per_call": -1}', 422, "invalid_request"),
        ("PUT", "x", b'{"usd_per_call": NaN}', 422, "invalid_request"),
        ("PUT", "x", b'{"usd_per_call": "1"}', 422, "invalid_request"),
        ("PUT", "x", b'{"price": 1}', 422, "invalid_request"),
        ("PUT", "x", b"{", 422, "malformed_json"),
        ("PUT", "x", b"", 422, "invalid_request"),
        ("PUT", "x" * 201, b"{}", 422, "invalid_arm"),
        ("PUT", "a%00b", b"{}", 422, "invalid_arm"),
        ("PATCH", "nobody", b"{}", 404, "unknown_model"),
        ("DELETE", "nobody", b"", 404, "unknown_model"),
    ],
)
def test_a_bad_model_is_refused(
    replica: Replica, method: str, name: str, body: bytes, status: int, code: str
) -> None:
    answer = replica.call(method, f"/v1/models/{name}", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_versions_are_listed_with_their_aliases(replica: Replica) -> None:
    answer = replica.call("GET", "/v1/versions").json()
    assert (answer["champion"], answer["previous"], answer["challenger"]) == (2, 1, None)
    assert [version["version"] for version in answer["versions"]] == [3, 2, 1]
    assert replica.call("GET", "/v1/versions/3").json() == answer["versions"][0]


def test_promote_and_rollback_are_kept_with_who_and_why(replica: Replica) -> None:
    first = replica.call("POST", "/v1/versions/3/promote", json={"who": "ada", "why": "better"})
    second = replica.call("POST", "/v1/versions/rollback")
    third = replica.call("POST", "/v1/versions/rollback", json={"to": 1, "why": "older"})
    assert [move.json()["version"] for move in (first, second, third)] == [3, 2, 1]
    history = replica.call("GET", "/v1/versions/history").json()["history"]
    assert [(move["version"], move["who"], move["why"]) for move in history] == [
        (1, "http", "older"),
        (2, "http", ""),
        (3, "ada", "better"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/versions/9", b"", 404),
        ("POST", "/v1/versions/9/promote", b"", 404),
        ("GET", "/v1/versions/x", b"", 422),
        ("GET", "/v1/versions/99999999999", b"", 422),
        ("POST", "/v1/versions/0/promote", b"", 422),
        ("POST", "/v1/versions/rollback", b'{"to": 0}', 422),
        ("POST", "/v1/versions/rollback", b'{"two": 1}', 422),
        ("POST", "/v1/versions/rollback", b'{"to": 9}', 404),
    ],
)
def test_a_bad_version_is_refused(
    replica: Replica, method: str, path: str, body: bytes, status: int
) -> None:
    assert replica.call(method, path, content=body).status_code == status


def test_a_decision_is_shown_to_its_tenant_only(replica: Replica) -> None:
    decision_id = replica.ids.issue("acme")
    replica.aggregator.records[decision_id] = {"tenant": "acme", "arm": "dear"}
    path = f"/v1/decisions/{decision_id}"
    assert replica.call("GET", path).status_code == 404
    assert replica.call("GET", path, headers={"x-barp-tenant": "acme"}).json()["arm"] == "dear"
    assert replica.call("GET", path, params={"tenant": "acme"}).json()["arm"] == "dear"


def test_a_decision_not_recorded_yet_is_404(replica: Replica) -> None:
    answer = replica.call("GET", f"/v1/decisions/{replica.ids.issue('default')}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_decision")


def test_status_shows_the_parts_that_answer(replica: Replica) -> None:
    replica.route()
    replica.aggregator.away = True
    answer = replica.call("GET", "/v1/status").json()
    assert answer["replica"]["policy_version"] == 2
    assert answer["publisher"] == {"replicas": {}}
    assert answer["trainer"] == {"trainings": 0}
    assert "away" in answer["ledger"]


def test_a_part_that_is_away_is_503_where_it_is_needed(replica: Replica) -> None:
    replica.aggregator.away = True
    answer = replica.call("GET", "/v1/models")
    assert (answer.status_code, answer.json()["error"]["field"]) == (503, "aggregator")


def test_metrics_are_plain_text(replica: Replica) -> None:
    answer = replica.call("GET", "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_events_are_listed_from_a_number_on(replica: Replica) -> None:
    for version in (1, 2, 3):
        event = Event.now(EventKind.PROMOTION, now=NOW, who="ann", why="better", version=version)
        replica.metrics_actor.taken.append(event)

    answer = replica.call("GET", "/v1/events?after=1&limit=5&kind=promotion").json()

    assert [event["version"] for event in answer["events"]] == [2, 3]
    assert answer["last_seq"] == 3


@pytest.mark.parametrize(
    ("query", "field"), [("kind=party", "kind.0"), ("after=-1", "after"), ("limit=0", "limit")]
)
def test_a_bad_question_for_events_is_refused_by_name(
    replica: Replica, query: str, field: str
) -> None:
    answer = replica.call("GET", f"/v1/events?{query}")
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field


def test_history_has_what_trials_and_the_guardrail_did_beside_the_moves(replica: Replica) -> None:
    """Newest first, and nothing of what has no version in its history."""
    breached = EventKind.GUARDRAIL_BREACH
    told = [breached, EventKind.CANARY, EventKind.PRICE_CHANGE, EventKind.QUARANTINE]
    replica.metrics_actor.taken += [
        Event.now(kind, now=NOW, who="guardrail", why="worse", version=2) for kind in told
    ]
    answer = replica.call("GET", "/v1/versions/history").json()
    assert [event["kind"] for event in answer["events"]] == ["quarantine", breached]
    assert answer["events"][0]["who"] == "guardrail"
    assert answer["trials"] == []
