"""What a trace tells of a request: who asked, which decision came of it, how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json
from starlette.types import Scope

from policies.interaction import JoinStatus
from policies.tracing import MAX_LINKS, Attribute, Tracing
from services.replies import JSON, Reply

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

ROUTE: Final = "/v1/route"
BATCH: Final = "/v1/route/batch"
FEEDBACK: Final = "/v1/feedback"
SERVER_ERROR: Final = 500
_REFUSED: Final = (JoinStatus.INVALID, JoinStatus.UNKNOWN)


class RequestTracing:
    """Makes spans of answered requests that route or report.

    A caller's `traceparent` is honoured: the request is then a span of the caller's trace, and the
    decision's own trace links to it. Without one, the decision's trace is the request's. Feedback
    without one joins the decision's trace.

    Args:
        tracing: Where spans go.
    """

    def __init__(self, tracing: Tracing) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracing, self._propagator = tracing, TraceContextTextMapPropagator()

    def answered(
        self, path: str, scope: Scope, reply: Reply, *, began_ns: int, now_ns: int
    ) -> None:
        """Tell of an answered request; of other paths than the three nothing is told.

        Args:
            path: Which of our paths it was.
            scope: ASGI's, for the headers.
            reply: What was answered.
            began_ns: When it came, nanoseconds since the epoch.
            now_ns: When it was answered.
        """
        from opentelemetry.trace import SpanKind

        if path not in (ROUTE, BATCH, FEEDBACK):
            return
        ids = _decision_ids(path, reply)
        found = (self._tracing.decision(one) for one in ids[:MAX_LINKS])
        decisions = [one for one in found if one is not None]
        asked, times = self._asked(scope), {"began_ns": began_ns, "ended_ns": now_ns}
        attributes: dict[str, Attribute] = {
            "http.request.method": "POST",
            "http.route": path,
            "http.response.status_code": reply.status,
            "barp.decisions": len(ids),
        }
        if len(ids) == 1:
            attributes["barp.decision_id"] = ids[0]
        alone = decisions[0] if len(ids) == len(decisions) == 1 and asked is None else None
        request = self._tracing.span(
            f"POST {path}",
            kind=SpanKind.SERVER,
            attributes=attributes | (_chosen(reply) if path == ROUTE else {}),
            parent=asked if path != FEEDBACK or alone is None else alone,
            own=alone if path != FEEDBACK else None,
            links=() if alone is not None or path != FEEDBACK else decisions,
            failed=reply.status >= SERVER_ERROR,
            **times,
        )
        if path != FEEDBACK and alone is None and request.trace_flags.sampled:
            self._decided(ids, decisions, request, **times)

    def _decided(
        self,
        ids: Sequence[str],
        decisions: Sequence[SpanContext],
        request: SpanContext,
        *,
        began_ns: int,
        ended_ns: int,
    ) -> None:
        """Begin each decision's own trace, with a link to the request that it was made in."""
        from opentelemetry.trace import SpanKind

        for decision_id, place in zip(ids, decisions, strict=False):
            self._tracing.span(
                "decision",
                kind=SpanKind.INTERNAL,
                began_ns=began_ns,
                ended_ns=ended_ns,
                attributes={"barp.decision_id": decision_id},
                own=place,
                links=[request],
            )

    def _asked(self, scope: Scope) -> SpanContext | None:
        """Read the caller's place in its own trace; None where there is none, or a broken one."""
        from opentelemetry.trace import get_current_span

        names = (b"traceparent", b"tracestate")
        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in names
        }
        if "traceparent" not in carrier:
            return None
        found = get_current_span(self._propagator.extract(carrier)).get_span_context()
        return found if found.is_valid else None

    def stop(self) -> None:
        """Send what waits."""
        self._tracing.stop()


def _decision_ids(path: str, reply: Reply) -> list[str]:
    """Read from an answer which decisions it was about."""
    if path == ROUTE:
        return [value.decode() for name, value in reply.headers if name == b"x-barp-decision-id"]
    if reply.status >= 300 or reply.content_type != JSON:
        return []
    answer: Any = from_json(reply.body)
    items = answer.get("results", [answer])
    # In bulk, only counts come back. An id that is forged must not name a trace.
    known = (one for one in items if one.get("status") not in _REFUSED)
    return [str(one["decision_id"]) for one in known if one.get("decision_id")]


def _chosen(reply: Reply) -> dict[str, Attribute]:
    """Read from an answer which model was chosen, and by which version."""
    headers = dict(reply.headers)
    if b"x-barp-model" not in headers:
        return {}
    return {
        "barp.model": headers[b"x-barp-model"].decode(),
        "barp.policy_version": int(headers[b"x-barp-policy-version"]),
    }
