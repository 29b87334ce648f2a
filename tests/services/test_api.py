"""The HTTP contract, request by request, over the real request path."""

from __future__ import annotations

import json

import pytest
from replica_fakes import Replica


@pytest.fixture
def replica() -> Replica:
    """A replica with three models and a champion."""
    return Replica()


def test_route_answers_as_in_the_contract(replica: Replica) -> None:
    answer = replica.call(
        "POST", "/v1/route", json={"prompt": "hi", "preference": {"quality": 3, "cost": 1}}
    )
    body = answer.json()
    [decision] = replica.decisions
    assert answer.status_code == 200
    assert set(body) == {
        "decision_id",
        "model",
        "propensity",
        "policy_version",
        "preference",
        "expected",
    }
    assert body["preference"] == {"quality": 0.75, "cost": 0.25}
    assert (body["decision_id"], body["model"]) == (decision.decision_id, decision.arm)
    assert body["propensity"] == pytest.approx(decision.propensity)
    assert body["policy_version"] == 2
    assert answer.headers["x-barp-decision-id"] == body["decision_id"]
    assert answer.headers["x-barp-model"] == body["model"]
    assert answer.headers["x-barp-policy-version"] == "2"
    assert float(answer.headers["x-barp-overhead-ms"]) > 0


def test_default_preference_holds_where_none_is_given(replica: Replica) -> None:
    assert replica.route()["preference"] == pytest.approx({"quality": 0.7, "cost": 0.3})


def test_a_missing_weight_is_zero(replica: Replica) -> None:
    assert replica.route(preference={"cost": 2})["preference"] == {"quality": 0.0, "cost": 1.0}


def test_messages_are_routed_as_their_joined_text(replica: Replica) -> None:
    chat = [
        {"role": "system", "content": "Be brief.", "name": "ignored"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Name"}, {"type": "image_url"}],
        },
    ]
    for body in ({"messages": chat}, {"prompt": "Be brief.\n\nName"}):
        assert replica.call("POST", "/v1/route", json=body).status_code == 200
    first, second = replica.decisions
    assert first.prompt_hash == second.prompt_hash


def test_an_empty_session_is_none(replica: Replica) -> None:
    replica.route(session="")
    replica.route(session="talk-1")
    assert [decision.session for decision in replica.decisions] == [None, "talk-1"]


def test_allow_list_and_cost_limit_decide_what_is_offered(replica: Replica) -> None:
    assert replica.route(models=["dear"])["model"] == "dear"
    assert replica.route(max_cost_usd=0.0002)["model"] == "cheap"
    assert [d.arms_offered for d in replica.decisions] == [("dear",), ("cheap",)]


def test_a_batch_is_encoded_once_and_answers_in_order(replica: Replica) -> None:
    requests = [{"prompt": f"p{i}", "models": [m]} for i, m in enumerate(["dear", "cheap"])]
    for body in (requests, {"requests": requests}):
        answer = replica.call("POST", "/v1/route/batch", json=body)
        assert [one["model"] for one in answer.json()["results"]] == ["dear", "cheap"]
    assert replica.encoder.calls == [2, 2]


def test_an_odd_prompt_is_routed_like_any_other(replica: Replica) -> None:
    for prompt in ("a\x00b", "🏳️‍🌈", "\u202eback", "x" * 1000):
        replica.route(prompt=prompt)


def test_ready_says_what_the_replica_holds(replica: Replica) -> None:
    answer = replica.call("GET", "/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "ready": True,
        "id": "replica-1",
        "encoder_id": "hash-encoder",
        "policy_version": 2,
        "learner": "price",
        "revision": 2,
        "price_version": 3,
        "models": 3,
    }


def test_a_wrong_content_type_is_tolerated(replica: Replica) -> None:
    headers = {"content-type": "text/plain"}
    prices = b'{"usd_per_call": 0.5}'
    assert replica.call("PUT", "/v1/models/new", content=prices, headers=headers).status_code == 200
    body = b'{"prompt": "x"}'
    assert replica.call("POST", "/v1/route", content=body, headers=headers).status_code == 200


def test_every_path_is_described_and_the_page_needs_no_network(replica: Replica) -> None:
    described = replica.call("GET", "/openapi.json").json()
    assert {
        "/v1/route",
        "/v1/route/batch",
        "/v1/route/preview",
        "/v1/feedback",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/versions",
        "/v1/versions/{number}",
        "/v1/versions/{number}/promote",
        "/v1/versions/{number}/rebuild",
        "/v1/versions/rollback",
        "/v1/versions/history",
        "/v1/decisions/{decision_id}",
        "/v1/events",
        "/v1/status",
        "/healthz",
        "/readyz",
        "/metrics",
    } == set(described["paths"])
    text = json.dumps(described)
    schemas = set(described["components"]["schemas"])
    assert {ref.split('"')[0] for ref in text.split("#/components/schemas/")[1:]} <= schemas
    page = replica.call("GET", "/docs").text
    assert "https://" not in page
    for source in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert replica.call("GET", f"/static-offline-docs/{source}").status_code == 200


def test_requests_and_outcomes_are_counted(replica: Replica) -> None:
    answer = replica.route()
    report = {"decision_id": answer["decision_id"], "quality": 1}
    replica.call("POST", "/v1/feedback", json=report)
    replica.call("POST", "/v1/route", content=b"{")
    counted = {
        (name, *sorted(labels.values())): value
        for name, labels, value, _ in replica.metrics.samples()
    }
    assert counted["barp_requests_total", "/v1/route", "200"] == 1
    assert counted["barp_requests_total", "/v1/route", "422"] == 1
    assert counted["barp_decisions_total", "2", answer["model"]] == 1
    assert counted["barp_feedback_total", "joined"] == 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", "/v1/status", "/docs"])
def test_what_can_be_read_can_be_asked_for_by_head(replica: Replica, path: str) -> None:
    full, head = replica.call("GET", path), replica.call("HEAD", path)
    assert (head.status_code, head.content) == (full.status_code, b"")
    assert head.headers["content-type"] == full.headers["content-type"]
    assert head.headers["content-length"] == full.headers["content-length"]
