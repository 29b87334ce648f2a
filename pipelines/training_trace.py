"""The span of a training: which version came of it, from which decisions."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from pipelines.training import TrainingResult
from policies.tracing import MAX_LINKS, Tracing

NS_PER_S: Final = 1_000_000_000


def trace_training(
    tracing: Tracing, result: TrainingResult, rows: pa.Table, *, began_s: float, ended_s: float
) -> None:
    """Tell of a training, with links to the newest decisions that it learned from.

    Args:
        tracing: Where spans go.
        result: What came of it.
        rows: What it learned from, schema INTERACTION_SCHEMA, in sequence order.
        began_s: When it began, seconds since the epoch.
        ended_s: When its version was registered.
    """
    from opentelemetry.trace import SpanKind

    newest = rows["decision_id"].slice(max(0, len(rows) - MAX_LINKS)).to_pylist()
    places = (tracing.decision(name) for name in newest)
    tracing.span(
        "train",
        kind=SpanKind.INTERNAL,
        began_ns=int(began_s * NS_PER_S),
        ended_ns=int(ended_s * NS_PER_S),
        attributes={
            "barp.learner": result.kind,
            "barp.version": result.version,
            "barp.rows": result.rows,
            "barp.first_seq": rows["seq"][0].as_py(),
            "barp.last_seq": rows["seq"][-1].as_py(),
        },
        links=[place for place in places if place is not None],
    )
