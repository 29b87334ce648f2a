"""What is refused, and how: by name, in the one form, without a caller's words; never a crash."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replica_fakes import HeldChampion, PricePolicy, Replica, a_champion, some_args

from policies.arms import PriceTable
from policies.policy import Assessment

SECRET_TEXT = "a secret nobody may read"


@pytest.fixture
def replica() -> Replica:
    """A replica with three models and a champion."""
    return Replica()


def test_without_models_the_error_says_how_to_add_one() -> None:
    empty = PriceTable(version=0, arms=())
    replica = Replica(champion=HeldChampion(a_champion(prices=empty)))
    answer = replica.call("POST", "/v1/route", json={"prompt": "hi"})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "no_eligible_arm"
    assert "PUT /v1/models" in answer.json()["error"]["allowed"]


def test_a_batch_with_a_bad_request_routes_none_and_names_it(replica: Replica) -> None:
    for bad, field in (
        ({"prompt": ""}, "1.prompt"),
        ({"prompt": "x", "models": ["nobody"]}, "1.models"),
        ({"prompt": "x", "preference": {"quality": 0}}, "1.preference"),
    ):
        answer = replica.call("POST", "/v1/route/batch", json=[{"prompt": "fine"}, bad])
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert replica.decisions == []


BAD_ROUTES: list[tuple[bytes, str, str | None]] = [
    (b'{"prompt": "x", "preference": {"speed": 1}}', "invalid_preference", "preference.speed"),
    (b'{"prompt": "x", "preference": {"quality": -1}}', "invalid_preference", "preference.quality"),
    (
        b'{"prompt": "x", "preference": {"quality": NaN}}',
        "invalid_preference",
        "preference.quality",
    ),
    (
        b'{"prompt": "x", "preference": {"cost": Infinity}}',
        "invalid_preference",
        "preference.cost",
    ),
    (b'{"prompt": "x", "preference": {"quality": 1e999}}', "invalid_preference", None),
    (b'{"prompt": "x", "preference": {}}', "invalid_preference", "preference"),
    (b'{"prompt": "x", "preference": "best"}', "invalid_preference", "preference"),
    (b'{"prompt": ""}', "invalid_prompt", "prompt"),
    (b'{"prompt": " \\n"}', "invalid_prompt", "prompt"),
    (b'{"prompt": 7}', "invalid_prompt", "prompt"),
    (b"{}", "invalid_prompt", "prompt"),
    (b'{"prompt": "x", "messages": []}', "invalid_prompt", "prompt"),
    (b'{"messages": [{"content": "x"}]}', "invalid_prompt", "messages.0.role"),
    (b'{"prompt": "' + b"x" * 1001 + b'"}', "invalid_prompt", "prompt"),
    (b'{"prompt": "x", "temperature": 1}', "invalid_request", "temperature"),
    (b'{"prompt": "x", "models": ["nobody"]}', "invalid_request", "models"),
    (b'{"prompt": "x", "models": []}', "no_eligible_arm", "models"),
    (b'{"prompt": "x", "max_cost_usd": 0}', "no_eligible_arm", "max_cost_usd"),
    (b'{"prompt": "x", "max_cost_usd": -1}', "invalid_request", "max_cost_usd"),
    (b'{"prompt": "x", "max_cost_usd": "1"}', "invalid_request", "max_cost_usd"),
    (b'{"prompt": "x", "tenant": ""}', "invalid_request", "tenant"),
    (b'{"prompt": "x", "tenant": "' + b"t" * 201 + b'"}', "invalid_request", "tenant"),
    (b'{"prompt": "x", "session": "a\\u0000b"}', "invalid_request", "session"),
    (b'{"prompt": ', "malformed_json", "body"),
    (b"", "malformed_json", "body"),
    (b"\xff\xfe", "malformed_json", "body"),
    (b'{"prompt": "\\ud800"}', "malformed_json", "body"),
    (b"[" * 100_000, "malformed_json", "body"),
    (b'["x"]', "invalid_request", "body"),
    (b"null", "invalid_request", "body"),
]


@pytest.mark.parametrize(("body", "code", "field"), BAD_ROUTES)
def test_bad_route_is_refused_by_name(
    replica: Replica, body: bytes, code: str, field: str | None
) -> None:
    answer = replica.call("POST", "/v1/route", content=body)
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert set(error) == {"code", "field", "value", "allowed", "message"}
    assert error["code"] == code
    if field is not None:
        assert error["field"] == field
    assert error["allowed"]
    assert len(str(error["value"])) <= 100
    assert replica.decisions == []


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": SECRET_TEXT * 100},
        {"promt": SECRET_TEXT},
        {"prompt": [SECRET_TEXT]},
        {"prompt": SECRET_TEXT, "messages": [{"role": "user", "content": SECRET_TEXT}]},
        {"messages": [{"role": 1, "content": SECRET_TEXT}]},
        {"messages": [{"role": "user", "content": {"text": SECRET_TEXT}}]},
        {"messages": SECRET_TEXT},
        {"requests": SECRET_TEXT},
        {"requests": [SECRET_TEXT]},
        {"prompt": 1, "preference": SECRET_TEXT},
        [SECRET_TEXT],
        SECRET_TEXT,
    ],
)
def test_errors_never_repeat_a_prompt(replica: Replica, body: Any) -> None:
    for path in ("/v1/route", "/v1/route/batch"):
        answer = replica.call("POST", path, json=body)
        assert answer.status_code == 422
        assert SECRET_TEXT not in answer.text
    broken = json.dumps(body).encode()[:-1]
    assert SECRET_TEXT not in replica.call("POST", "/v1/route", content=broken).text


def test_a_body_beyond_the_limit_is_413(replica: Replica) -> None:
    for method, path in (("POST", "/v1/route"), ("PUT", "/v1/models/x")):
        answer = replica.call(method, path, content=b" " * 1_000_001)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_before_the_first_champion_route_is_503_and_not_ready() -> None:
    replica = Replica(champion=HeldChampion(None))
    answer = replica.call("POST", "/v1/route", json={"prompt": "hi"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert replica.call("GET", "/readyz").status_code == 503
    assert replica.call("GET", "/healthz").text == "ok\n"


def test_unknown_paths_and_methods_have_the_error_body(replica: Replica) -> None:
    for method, path, status, code in (
        ("GET", "/v2/route", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/route", 405, "method_not_allowed"),
        ("DELETE", "/v1/versions", 405, "method_not_allowed"),
        ("POST", "/v1/models/cheap", 405, "method_not_allowed"),
        ("OPTIONS", "/healthz", 405, "method_not_allowed"),
        ("HEAD", "/v1/route", 405, "method_not_allowed"),
    ):
        answer = replica.call(method, path)
        if method == "HEAD":
            assert (answer.status_code, answer.content) == (status, b"")
            continue
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_version_no_database_can_hold_is_refused_by_name(replica: Replica) -> None:
    answer = replica.call("POST", "/v1/versions/rollback", json={"to": 2**63})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "to"


def test_a_key_guards_every_path_but_healthz() -> None:
    key = "schlüssel"
    digest = hashlib.sha256(key.encode()).hexdigest()
    replica = Replica(args=some_args(api_key_sha256=digest))
    right = {"authorization": f"Bearer {key}".encode()}
    for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/readyz", "/nowhere"):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": key.encode()}):
            answer = replica.call("GET", path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorised")
    assert replica.call("GET", "/healthz").status_code == 200
    assert replica.call("GET", "/v1/models", headers=right).status_code == 200
    assert replica.call("POST", "/v1/route", json={"prompt": "x"}).status_code == 401


NAMES = (
    "prompt messages preference quality cost role content text models max_cost_usd tenant session",
    "decision_id event_id tokens_in cost_usd latency_ms final requests to who usd_per_call",
)


KEYS = [name for names in NAMES for name in names.split()]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.integers(min_value=10**300, max_value=10**310),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=8,
)


PATHS = [
    ("POST", "/v1/route"),
    ("POST", "/v1/route/batch"),
    ("POST", "/v1/route/preview"),
    ("POST", "/v1/feedback"),
    ("PUT", "/v1/models/x"),
    ("PATCH", "/v1/models/cheap"),
    ("POST", "/v1/versions/rollback"),
    ("POST", "/v1/versions/1/promote"),
]


@pytest.fixture(scope="module")
def shared() -> Replica:
    """One replica for all examples."""
    return Replica()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    path=st.sampled_from(PATHS),
    body=json_values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30),
)
def test_no_body_is_answered_with_a_server_error(
    shared: Replica, path: tuple[str, str], body: bytes
) -> None:
    answer = shared.call(*path, content=body)
    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert answer.json()["error"]["code"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    query=st.text(max_size=10),
    header=st.binary(max_size=10).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"")),
    name=st.text(max_size=10),
)
def test_no_path_or_header_is_answered_with_a_server_error(
    shared: Replica, query: str, header: bytes, name: str
) -> None:
    headers = {"x-barp-tenant": header, "idempotency-key": header, "authorization": header}
    encoded = quote(name, safe="/", errors="replace")
    report = {"decision_id": "x", "quality": 1}
    for method, path in (
        ("GET", f"/v1/decisions/{encoded}"),
        ("PUT", f"/v1/models/{encoded}"),
        ("GET", f"/v1/versions/{encoded}"),
        ("POST", "/v1/feedback"),
    ):
        answer = shared.call(method, path, params={"tenant": query}, headers=headers, json=report)
        assert answer.status_code < 500


@pytest.mark.parametrize("name", ["%2F", "%2e%2e", "a/%2e%2e/b", "a/%2e/b", "a//b", "a/"])
def test_a_model_name_that_paths_cannot_carry_is_refused(replica: Replica, name: str) -> None:
    answer = replica.call("PUT", f"/v1/models/{name}", json={"usd_per_call": 1})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "name"
    assert replica.aggregator.table.names == ("cheap", "dear", "meta/middle")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/route", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("POST", "/v1/models/meta/llama", "DELETE, PATCH, PUT"),
        ("DELETE", "/healthz", "GET, HEAD"),
        ("PATCH", "/v1/status", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    replica: Replica, method: str, path: str, allowed: str
) -> None:
    answer = replica.call(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    assert answer.json()["error"]["allowed"] == allowed


def asgi(replica: Replica, receive: Any, *, path: str = "/v1/route") -> tuple[int, dict[str, Any]]:
    """Call the application itself; return status and JSON."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    asyncio.run(replica.api(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_body_that_trickles_in_is_ended() -> None:
    replica = Replica(args=some_args(body_timeout_s=0.1))

    async def trickle() -> Any:
        await asyncio.sleep(0.03)
        return {"type": "http.request", "body": b" ", "more_body": True}

    status, body = asgi(replica, trickle)
    assert (status, body["error"]["code"]) == (408, "request_timeout")


class BrokenPolicy(PricePolicy):
    """One with a bug."""

    def assess(self, *_: object) -> Assessment:
        """Fail, with words that nobody may read."""
        raise RuntimeError(SECRET_TEXT)


def test_a_bug_is_a_500_in_our_own_form_and_its_words_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    champion = replace(a_champion(), policy=BrokenPolicy())
    replica = Replica(champion=HeldChampion(champion))
    answer = replica.call("POST", "/v1/route", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "RuntimeError" in caplog.text and "in assess" in caplog.text
    assert SECRET_TEXT not in answer.text + caplog.text


def test_more_requests_than_a_replica_takes_are_refused_at_once() -> None:
    replica = Replica(args=some_args(max_in_flight=2))

    async def run() -> list[httpx.Response]:
        rest_may_come = asyncio.Event()

        async def slow_body() -> AsyncIterator[bytes]:
            yield b'{"prompt":'
            await rest_may_come.wait()
            yield b'"hi"}'

        transport = httpx.ASGITransport(replica.api)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            in_hand = [
                asyncio.create_task(http.post("/v1/route", content=slow_body())) for _ in range(2)
            ]
            await asyncio.sleep(0.05)
            refused = await http.post("/v1/route", json={"prompt": "hi"})
            healthy = await http.get("/healthz")
            rest_may_come.set()
            served = await asyncio.gather(*in_hand)
            return [refused, healthy, *served, await http.post("/v1/route", json={"prompt": "hi"})]

    refused, *others = asyncio.run(run())
    assert [one.status_code for one in others] == [200] * 4
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    error = refused.json()["error"]
    assert (error["code"], error["field"], error["value"]) == ("overloaded", "max_in_flight", 2)
