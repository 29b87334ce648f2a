"""Outcomes by the thousand: the columns in which they travel, and what is answered for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from policies.interaction import JoinStatus, Outcome

# Tenant first, then the fields of an `Outcome`.
REPORT_SCHEMA: Final = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("decision_id", pa.string(), nullable=False),
        pa.field("event_id", pa.string()),
        pa.field("quality", pa.float64()),
        pa.field("cost_usd", pa.float64()),
        pa.field("tokens_in", pa.int64()),
        pa.field("tokens_out", pa.int64()),
        pa.field("latency_ms", pa.float64()),
        pa.field("final", pa.bool_(), nullable=False),
        pa.field("correction", pa.bool_(), nullable=False),
        pa.field("activate", pa.bool_(), nullable=False),
    ]
)

# One byte a report travels: its status's place in this list.
STATUSES: Final = tuple(JoinStatus)


def reports_to_batch(reports: Sequence[tuple[str, Outcome]]) -> pa.RecordBatch:
    """Lay reports, each a tenant and an outcome, out in columns, schema REPORT_SCHEMA."""
    columns: dict[str, list[object]] = {"tenant": [tenant for tenant, _ in reports]}
    for name in REPORT_SCHEMA.names[1:]:
        columns[name] = [getattr(outcome, name) for _, outcome in reports]
    return pa.RecordBatch.from_pydict(columns, schema=REPORT_SCHEMA)


def pack_statuses(statuses: Sequence[JoinStatus]) -> bytes:
    """Write one byte a status, in order.

    >>> unpack_statuses(pack_statuses([JoinStatus.PENDING, JoinStatus.JOINED]))
    [<JoinStatus.PENDING: 'pending'>, <JoinStatus.JOINED: 'joined'>]
    """
    return bytes(map(_CODES.__getitem__, statuses))


def unpack_statuses(packed: bytes) -> list[JoinStatus]:
    """Read what `pack_statuses` wrote."""
    return [STATUSES[code] for code in packed]


_CODES: Final = {status: code for code, status in enumerate(STATUSES)}
