"""OpenTelemetry spans of requests, feedback and trainings; not loaded unless they are asked for.

A decision has a trace of its own, known from its id alone: the UUID is the trace, its second half
the span. So what comes hours later, in another process, joins or links to it, and nobody has to
remember trace ids. Standard variables say where spans go; only OTLP over HTTP is spoken.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext, SpanKind

SERVICE_NAME: Final = "barp-router"
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# As many links as the SDK keeps of a span by default.
MAX_LINKS: Final = 128

Attribute = str | int | float | bool


def tracing_from_environment() -> Tracing | None:
    """Return what spans are told to, or None where no collector is configured."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return None
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Tracing(OTLPSpanExporter())


class Tracing:
    """Makes spans of what has already happened, and sends them from a thread of its own.

    Args:
        exporter: Where they go; spans wait for it in a bounded queue, and are dropped beyond.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class Ids(RandomIdGenerator):
            """Random ids, but for the span that is a decision."""

            wanted: SpanContext | None = None

            def generate_span_id(self) -> int:
                return self.wanted.span_id if self.wanted else super().generate_span_id()

            def generate_trace_id(self) -> int:
                return self.wanted.trace_id if self.wanted else super().generate_trace_id()

        self._ids = Ids()
        name = os.environ.get("OTEL_SERVICE_NAME", SERVICE_NAME)
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": name}), id_generator=self._ids
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("barp")

    def decision(self, decision_id: str) -> SpanContext | None:
        """Return the place of a decision among all traces; None for what is no decision's id."""
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.trace import SpanContext, TraceFlags

        try:
            trace_id = uuid.UUID(decision_id.partition(".")[0]).int
        except ValueError:
            return None
        # Whether it is kept is told from the id as well, so that all of its spans are, or none.
        kept = self._provider.sampler.should_sample(None, trace_id, "decision").decision
        sampled = TraceFlags.SAMPLED if kept is Decision.RECORD_AND_SAMPLE else TraceFlags.DEFAULT
        return SpanContext(
            trace_id=trace_id,
            span_id=trace_id & (1 << 64) - 1,
            is_remote=True,
            trace_flags=TraceFlags(sampled),
        )

    def span(
        self,
        name: str,
        *,
        kind: SpanKind,
        began_ns: int,
        ended_ns: int,
        attributes: Mapping[str, Attribute],
        parent: SpanContext | None = None,
        own: SpanContext | None = None,
        links: Sequence[SpanContext] = (),
        failed: bool = False,
    ) -> SpanContext:
        """Tell of something that has happened; return its place among all traces.

        Args:
            name: What it was.
            kind: Who asked whom.
            began_ns: When, nanoseconds since the epoch.
            ended_ns: Until when.
            attributes: What is known of it; never a prompt, a key or an embedding.
            parent: What it was a part of; None begins a trace.
            own: The place it is to have, where it is a decision; it then begins that trace.
            links: What else it has to do with; the first MAX_LINKS of them.
            failed: Whether the fault was ours.
        """
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, NonRecordingSpan, StatusCode, set_span_in_context

        within = Context()
        if parent is not None:
            within = set_span_in_context(NonRecordingSpan(parent), within)
        self._ids.wanted = own
        try:
            made = self._tracer.start_span(
                name,
                context=within,
                kind=kind,
                attributes=dict(attributes),
                links=[Link(one) for one in links[:MAX_LINKS]],
                start_time=began_ns,
            )
        finally:
            self._ids.wanted = None
        if failed:
            made.set_status(StatusCode.ERROR)
        made.end(end_time=ended_ns)
        return made.get_span_context()

    def stop(self) -> None:
        """Send what waits, for at most as long as the exporter's own timeout."""
        self._provider.shutdown()
