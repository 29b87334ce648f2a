"""The description is true: whatever is sent, nothing but what it names comes back."""

from __future__ import annotations

import gc
import random
import sys
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from replica_fakes import Replica
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

schema = schemathesis.openapi.from_asgi("/openapi.json", Replica().api)


@schema.parametrize()
@settings(max_examples=8, suppress_health_check=QUIET)
def test_nothing_but_what_is_described_comes_back(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(checks=CHECKS)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=400, suppress_health_check=QUIET)
def test_nothing_but_what_is_described_comes_back_at_length(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(checks=CHECKS)


WORDS = [
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\\u0000", b"\\ud800", b"\x00", b"\xff",
    b"null", b"true", b"-1e999", b"1" * 400, b'"prompt"', b'"messages"', b'"preference"',
    b'"quality"', b'"decision_id"', b'"tenant"', b'"event_id"', b'"models"', b"x" * 1000,
]  # fmt: skip
BODIES = (b'{"prompt": "x"}', b'[{"decision_id": "x", "quality": 1}]', b'{"usd_per_call": 1}')
CALLS = (
    ("POST", "/v1/route"),
    ("POST", "/v1/route/batch"),
    ("POST", "/v1/route/preview"),
    ("POST", "/v1/feedback"),
    ("PUT", "/v1/models/x"),
    ("POST", "/v1/versions/rollback"),
)


def a_body(rng: random.Random) -> bytes:
    """A valid body with pieces cut out and put in, or mere pieces."""
    body = bytearray(rng.choice((*BODIES, b"")))
    for _ in range(rng.randrange(1, 12)):
        at = rng.randrange(len(body) + 1)
        body[at : at + rng.randrange(3)] = rng.choice(WORDS)
    return bytes(body)


def fuzz(replica: Replica, bodies: int, *, seed: int) -> None:
    """Send bodies that somebody broke; no answer may be an error of ours."""
    rng = random.Random(seed)
    for _ in range(bodies):
        method, path = rng.choice(CALLS)
        body = a_body(rng)
        answer = replica.call(method, path, content=body)
        assert answer.status_code < 500, (method, path, body)
    replica.decisions.clear()
    replica.aggregator.submitted.clear()
    replica.registry.moves.clear()


def test_broken_bodies_are_no_error_of_ours() -> None:
    fuzz(Replica(), 500, seed=0)


@pytest.mark.slow
def test_ten_thousand_broken_bodies_leave_no_memory_behind() -> None:
    replica = Replica()
    fuzz(replica, 2_000, seed=1)
    # A refusal and its traceback hold each other until the collector comes by.
    gc.collect()
    before = sys.getallocatedblocks()
    fuzz(replica, 10_000, seed=3)
    gc.collect()
    # Blocks, not bytes: the interpreter's table of interned strings may double by itself meanwhile,
    # 4 MB in one block. Caches grow a little; one object left behind by each body would be 10,000.
    assert sys.getallocatedblocks() - before < 5_000
