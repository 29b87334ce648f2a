"""Spans as a real collector receives them: from request to feedback, and nothing unasked for."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest
from collectors import Collector, running_collector
from replica_fakes import Replica, some_args

from policies.tracing import MAX_LINKS, tracing_from_environment
from services.tracing import RequestTracing

SERVER = 2
PROMPT = "a secret that no collector is told"
CALLERS = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
TRACEPARENT = f"00-{CALLERS[0]}-{CALLERS[1]}-01"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the standard variable names."""
    with running_collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        yield running


@pytest.fixture
def replica(collector: Collector) -> Replica:
    """A replica that tells it."""
    spans = tracing_from_environment()
    assert spans is not None
    return Replica(tracing=RequestTracing(spans))


def sent(replica: Replica) -> None:
    """Have everything sent."""
    assert replica.tracing is not None
    replica.tracing.stop()


def place(decision_id: str) -> tuple[str, str]:
    """Return where a decision is among all traces."""
    name = uuid.UUID(decision_id.partition(".")[0]).hex
    return name, name[16:]


def test_a_request_and_its_feedback_are_one_trace(replica: Replica, collector: Collector) -> None:
    routed = replica.call("POST", "/v1/route", json={"prompt": PROMPT}).json()
    report = {"decision_id": routed["decision_id"], "quality": 0.9}
    assert replica.call("POST", "/v1/feedback", json=report).status_code == 202
    sent(replica)

    [request], [feedback] = collector.named("POST /v1/route"), collector.named("POST /v1/feedback")
    trace_id, span_id = place(routed["decision_id"])
    assert (request.trace_id, request.span_id, request.parent_id) == (trace_id, span_id, "")
    assert (feedback.trace_id, feedback.parent_id) == (trace_id, span_id)
    assert request.kind == feedback.kind == SERVER
    assert request.service == "barp-router"
    assert 0.0 < request.took_s < 60.0
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/route",
        "http.response.status_code": 200,
        "barp.decisions": 1,
        "barp.decision_id": routed["decision_id"],
        "barp.model": routed["model"],
        "barp.policy_version": routed["policy_version"],
    }
    assert len(collector.spans) == 2


def test_a_callers_trace_is_honoured_and_the_decisions_own_links_to_it(
    replica: Replica, collector: Collector
) -> None:
    headers = {"traceparent": TRACEPARENT}
    body = {"prompt": PROMPT}
    routed = replica.call("POST", "/v1/route", json=body, headers=headers).json()
    report = {"decision_id": routed["decision_id"], "quality": 0.9}
    replica.call("POST", "/v1/feedback", json=report, headers=headers)
    sent(replica)

    [request], [feedback] = collector.named("POST /v1/route"), collector.named("POST /v1/feedback")
    [decision] = collector.named("decision")
    for span in (request, feedback):
        assert (span.trace_id, span.parent_id) == CALLERS
    assert (decision.trace_id, decision.span_id) == place(routed["decision_id"])
    assert decision.links == [(request.trace_id, request.span_id)]
    assert feedback.links == [place(routed["decision_id"])]


def test_a_caller_who_does_not_sample_is_not_traced(replica: Replica, collector: Collector) -> None:
    headers = {"traceparent": TRACEPARENT[:-2] + "00"}
    replica.call("POST", "/v1/route", json={"prompt": PROMPT}, headers=headers)
    sent(replica)
    assert collector.spans == []


@pytest.mark.parametrize("sampler", ["always_off", "parentbased_always_off"])
def test_the_standard_sampler_is_obeyed(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    spans = tracing_from_environment()
    assert spans is not None
    replica = Replica(tracing=RequestTracing(spans))
    routed = replica.route()
    replica.call("POST", "/v1/feedback", json={"decision_id": routed["decision_id"], "quality": 1})
    sent(replica)
    assert collector.spans == []


def test_a_batch_has_a_decision_each_and_a_list_links_to_all(
    replica: Replica, collector: Collector
) -> None:
    asked = [{"prompt": f"{PROMPT} {number}"} for number in range(3)]
    routed = replica.call("POST", "/v1/route/batch", json=asked).json()["results"]
    ids = [one["decision_id"] for one in routed]
    reports = [{"decision_id": one, "quality": 0.5} for one in ids]
    forged = {"decision_id": f"{uuid.uuid4()}.forged", "quality": 0.5}
    replica.call("POST", "/v1/feedback", json=[*reports, forged])
    sent(replica)

    [request] = collector.named("POST /v1/route/batch")
    decisions = collector.named("decision")
    assert [(one.trace_id, one.span_id) for one in decisions] == [place(one) for one in ids]
    assert all(one.links == [(request.trace_id, request.span_id)] for one in decisions)
    [feedback] = collector.named("POST /v1/feedback")
    assert feedback.links == [place(one) for one in ids]
    assert request.attributes["barp.decisions"] == feedback.attributes["barp.decisions"] == 3


def test_neither_prompts_nor_keys_nor_tenants_are_told(
    replica: Replica, collector: Collector
) -> None:
    headers = {"authorization": "Bearer a-key-of-theirs", "x-barp-tenant": "acme"}
    replica.call("POST", "/v1/route", json={"prompt": PROMPT}, headers=headers)
    replica.call("POST", "/v1/route", json={"prompt": "", "preference": PROMPT}, headers=headers)
    replica.call("POST", "/v1/feedback", json={"decision_id": PROMPT}, headers=headers)
    sent(replica)
    assert len(collector.spans) == 3
    for secret in (PROMPT, "a-key-of-theirs"):
        assert secret.encode() not in collector.raw


@pytest.mark.parametrize("traceparent", ["", "00-zz-zz-01", "x" * 5_000, f"00-{'0' * 32}-1-01"])
def test_a_broken_traceparent_is_as_none(
    replica: Replica, collector: Collector, traceparent: str
) -> None:
    headers = {"traceparent": traceparent}
    routed = replica.call("POST", "/v1/route", json={"prompt": PROMPT}, headers=headers).json()
    sent(replica)
    [request] = collector.spans
    assert (request.trace_id, request.span_id) == place(routed["decision_id"])


def test_a_collector_that_is_away_harms_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    spans = tracing_from_environment()
    assert spans is not None
    replica = Replica(tracing=RequestTracing(spans))
    assert replica.route()["decision_id"]
    sent(replica)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_a_collector_there_is_no_tracing(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracing_from_environment() is None


def test_without_a_collector_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from policies.tracing import tracing_from_environment as t; "
        "import services.api, services.tracing, pipelines.training_trace; assert t() is None; "
        "print([m for m in sys.modules if m.startswith('opentelemetry.exporter.otlp')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_more_links_than_the_sdk_keeps(collector: Collector) -> None:
    spans = tracing_from_environment()
    assert spans is not None
    args = replace(some_args(), max_feedback=500)
    replica = Replica(args=args, tracing=RequestTracing(spans))
    ids = [replica.ids.issue("default") for _ in range(MAX_LINKS + 5)]
    replica.call("POST", "/v1/feedback", json=[{"decision_id": i, "quality": 0.5} for i in ids])
    sent(replica)
    [feedback] = collector.spans
    assert feedback.links == [place(one) for one in ids[:MAX_LINKS]]
    assert feedback.attributes["barp.decisions"] == MAX_LINKS + 5
