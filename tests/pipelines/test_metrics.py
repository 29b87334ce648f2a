"""The metrics hub: sums that never run backwards, whoever dies."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from pipelines.metrics import FORGET_S, LIVE_S, MetricsHub, Sample
from policies.errors import InvalidRequest


class Clock:
    """A time that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time, seconds."""
        return self.now


def counter(value: float, **labels: str) -> Sample:
    """A sample of the counter `barp_requests_total`."""
    return "barp_requests_total", labels, value, "counter"


def gauge(value: float, **labels: str) -> Sample:
    """A sample of the gauge `barp_buffered`."""
    return "barp_buffered", labels, value, "gauge"


def page(hub: MetricsHub) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Read the page back as Prometheus does: value by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(hub.text())
        for sample in family.samples
    }


REQUESTS = ("barp_requests_total", ())
BUFFERED = ("barp_buffered", ())


def test_sources_are_summed_by_label() -> None:
    """Equal labels add up, others stay apart."""
    hub = MetricsHub(clock=Clock())
    hub.push("a", [counter(2, route="x"), counter(1, route="y")])
    hub.push("b", [counter(5, route="x")])
    assert page(hub) == {
        ("barp_requests_total", (("route", "x"),)): 7,
        ("barp_requests_total", (("route", "y"),)): 1,
    }


def test_a_repeated_push_counts_once() -> None:
    """Totals are cumulative: the same total again is no growth."""
    hub = MetricsHub(clock=Clock())
    hub.push("a", [counter(3)])
    hub.push("a", [counter(3)])
    hub.push("a", [counter(4)])
    assert page(hub)[REQUESTS] == 4


def test_a_source_that_starts_anew_adds_to_what_it_had() -> None:
    """A restart under the same name resets the source, not the sum."""
    hub = MetricsHub(clock=Clock())
    hub.push("a", [counter(10)])
    hub.push("a", [counter(2)])
    assert page(hub)[REQUESTS] == 12


def test_counters_of_the_dead_stay_and_their_gauges_go() -> None:
    """What was counted was counted; what was held is held no more."""
    clock = Clock()
    hub = MetricsHub(clock=clock)
    hub.push("a", [counter(3), gauge(7)])
    clock.now = LIVE_S + 1
    hub.push("b", [counter(1), gauge(2)])
    assert page(hub) == {REQUESTS: 4, BUFFERED: 2}


def test_a_source_back_from_the_dead_is_not_counted_again() -> None:
    """Long forgotten, it goes on from where it stands."""
    clock = Clock()
    hub = MetricsHub(clock=clock)
    hub.push("a", [counter(3)])
    clock.now = FORGET_S + 1
    hub.push("b", [counter(1)])
    hub.push("a", [counter(5)])
    hub.push("a", [counter(6)])
    assert page(hub)[REQUESTS] == 5


def test_a_histogram_arrives_whole_and_in_order() -> None:
    """Buckets, sum and count of a real prometheus_client histogram, from two sources."""
    registry = CollectorRegistry()
    histogram = Histogram("barp_overhead_seconds", "", buckets=(0.5, 2.0, 10.0), registry=registry)
    requests = Counter("barp_requests", "", registry=registry)
    histogram.observe(1.0)
    requests.inc()
    samples: list[Sample] = [
        (sample.name, sample.labels, sample.value, family.type)
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    hub = MetricsHub(clock=Clock())
    hub.push("a", samples)
    hub.push("b", samples)

    lines = [line for line in hub.text().splitlines() if line.startswith("barp_overhead")]
    assert lines == [
        'barp_overhead_seconds_bucket{le="0.5"} 0.0',
        'barp_overhead_seconds_bucket{le="2.0"} 2.0',
        'barp_overhead_seconds_bucket{le="10.0"} 2.0',
        'barp_overhead_seconds_bucket{le="+Inf"} 2.0',
        "barp_overhead_seconds_count 2.0",
        "barp_overhead_seconds_sum 2.0",
    ]
    assert "# TYPE barp_overhead_seconds histogram" in hub.text()
    assert "# TYPE barp_requests_total counter" in hub.text()


@pytest.mark.parametrize(
    "sample",
    [("barp_requests", {}, 1.0, "counter"), ("x", {}, 1.0, "summary"), ("x", {}, 1.0, "histogram")],
)
def test_a_sample_that_does_not_fit_is_refused_whole(sample: Sample) -> None:
    """Nothing of such a push counts."""
    hub = MetricsHub(clock=Clock())
    with pytest.raises(InvalidRequest):
        hub.push("a", [counter(1), sample])
    assert hub.text() == ""


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.sampled_from([0.0, 10.0, 4000.0])),
        max_size=30,
    )
)
def test_no_counter_runs_backwards(pushes: list[tuple[str, int, float]]) -> None:
    """Whatever sources tell, restart, fall silent, and come back."""
    clock = Clock()
    hub = MetricsHub(clock=clock)
    last = 0.0
    for source, value, later in pushes:
        clock.now += later
        hub.push(source, [counter(float(value))])
        total = page(hub)[REQUESTS]
        assert total >= last
        last = total


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 9), st.booleans()), max_size=20
    )
)
def test_a_hub_that_is_restored_shows_what_one_that_never_stopped_does(
    steps: list[tuple[str, int, bool]],
) -> None:
    clock = Clock()
    always, hub = MetricsHub(clock=clock), MetricsHub(clock=clock)
    counted = {"a": 0, "b": 0}
    for source, growth, is_restart in steps:
        if is_restart:
            state = json.loads(json.dumps(hub.state()))
            hub = MetricsHub(clock=clock)
            hub.restore(state)
        counted[source] += growth
        for one in (always, hub):
            one.push(source, [counter(counted[source], route="x"), gauge(growth)])
        assert page(hub) == page(always)


def test_what_was_counted_since_the_state_was_written_is_told_by_the_source_itself() -> None:
    first = MetricsHub(clock=Clock())
    first.push("a", [counter(5)])
    first.push("gone", [counter(100)])
    state = first.state()
    first.push("a", [counter(8)])
    second = MetricsHub(clock=Clock())
    second.restore(state)
    second.push("a", [counter(9)])
    assert page(second)["barp_requests_total", ()] == 109


@pytest.mark.parametrize("state", [{}, {"totals": [], "sources": [], "forgotten": []}])
def test_a_state_that_is_none_changes_nothing(state: dict[str, object]) -> None:
    hub = MetricsHub(clock=Clock())
    hub.push("a", [counter(5)])
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        hub.restore(state)
    assert page(hub)["barp_requests_total", ()] == 5
