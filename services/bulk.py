"""Outcomes as an Arrow IPC stream: read with care, checked by column, answered by row.

Nobody has to trust the sender: a stream that is compressed, or of types that take more room once
they are decoded than they took on the way, is refused before it is decoded.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policies.errors import InvalidOutcome, InvalidRequest, RouterError
from policies.interaction import MAX_COST_USD, MAX_LATENCY_MS, MAX_TOKENS, JoinStatus
from policies.reports import REPORT_SCHEMA

ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"
MAX_ROWS: Final = 100_000
SHOWN: Final = 100  # refused rows that a JSON answer lists
MAX_LABEL: Final = 200
_BOUNDS: Final[Mapping[str, float]] = {
    "quality": 1.0,
    "cost_usd": MAX_COST_USD,
    "tokens_in": MAX_TOKENS,
    "tokens_out": MAX_TOKENS,
    "latency_ms": MAX_LATENCY_MS,
}
_FLAGS: Final = ("final", "correction", "activate")
_LABEL: Final = rf"^[^\x00-\x1f\x7f]{{1,{MAX_LABEL}}}$"
_ALLOWED: Final = ", ".join(REPORT_SCHEMA.names)
# Arrow's format, Message.fbs: which header a message carries, and where it says "compressed".
_DICTIONARY_BATCH: Final = 2
_RECORD_BATCH: Final = 3
_COMPRESSION_FIELD: Final = 3


class MalformedArrow(InvalidRequest):
    """A body that is no Arrow IPC stream, a damaged one, or one of other columns."""

    code = "malformed_arrow"


@dataclass(frozen=True, slots=True)
class BulkReports:
    """What came, one row a report, and what is wrong with some of it.

    Attributes:
        table: Schema REPORT_SCHEMA.
        errors: By row, those that are refused.
    """

    table: pa.Table
    errors: dict[int, RouterError]

    def good(self) -> tuple[np.ndarray[Any, np.dtype[np.int64]], pa.RecordBatch]:
        """Return the rows that may be stored: their numbers, and they themselves."""
        rows = np.setdiff1d(np.arange(len(self.table)), list(self.errors))
        taken = self.table.take(pa.array(rows)).combine_chunks()
        batches = taken.to_batches() or [pa.RecordBatch.from_pylist([], schema=REPORT_SCHEMA)]
        return rows, batches[0]


def read_reports(body: bytes, *, acts_for: Callable[[str | None], str]) -> BulkReports:
    """Read and check a stream.

    Args:
        body: An Arrow IPC stream with `decision_id` and any other columns of REPORT_SCHEMA.
        acts_for: Returns the tenant of a row that names this one, or none; raises RouterError.

    Raises:
        MalformedArrow: Nothing of it can be taken.
    """
    came = _read(body)
    columns = {field.name: _column(came, field) for field in REPORT_SCHEMA}
    errors: dict[int, RouterError] = {}
    tenants: dict[str | None, str | RouterError] = {}
    named = columns["tenant"].to_pylist()
    for tenant in set(named):
        try:
            tenants[tenant] = acts_for(tenant)
        except RouterError as error:
            tenants[tenant] = error
    acted = [tenants[tenant] for tenant in named]
    errors |= {row: one for row, one in enumerate(acted) if isinstance(one, RouterError)}
    columns["tenant"] = pa.array(["" if isinstance(one, RouterError) else one for one in acted])
    _check(columns, errors)
    table = pa.Table.from_arrays(
        [columns[name] for name in REPORT_SCHEMA.names], REPORT_SCHEMA.names
    )
    return BulkReports(table.cast(REPORT_SCHEMA), errors)


def bulk_answer(
    ids: Sequence[str], statuses: Sequence[JoinStatus], errors: Mapping[int, dict[str, Any]]
) -> dict[str, Any]:
    """Say what became of all rows: how many of each status, and which were refused.

    Args:
        ids: Decision ids by row.
        statuses: By row.
        errors: What was wrong, by row, as in every error body.
    """
    refused = [
        {"row": row, "decision_id": ids[row], "status": statuses[row], "error": errors[row]}
        for row in sorted(errors)[:SHOWN]
    ]
    counts = Counter(status.value for status in statuses)
    return {"rows": len(ids), "counts": counts, "refused_rows": len(errors), "refused": refused}


def arrow_answer(
    ids: Sequence[str], statuses: Sequence[JoinStatus], errors: Mapping[int, dict[str, Any]]
) -> bytes:
    """Say the same as an Arrow IPC stream, row by row: decision_id, status, error."""
    table = pa.table(
        {
            "decision_id": pa.array(ids, pa.string()),
            "status": pa.array([status.value for status in statuses], pa.string()),
            "error": pa.array(
                [errors[r]["message"] if r in errors else None for r in range(len(ids))],
                pa.string(),
            ),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _read(body: bytes) -> pa.Table:
    """Decode a stream; raises MalformedArrow."""
    try:
        _refuse_compressed(body)
        with pa.ipc.open_stream(body) as reader:
            _refuse_types(reader.schema)
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                if rows > MAX_ROWS:
                    raise MalformedArrow(
                        "too many rows in one stream", field="body", allowed=f"at most {MAX_ROWS}"
                    )
                batch.validate(full=True)
                batches.append(batch)
            return pa.Table.from_batches(batches, reader.schema)
    except (pa.ArrowException, struct.error, OSError, ValueError, IndexError) as error:
        if isinstance(error, RouterError):
            raise
        raise MalformedArrow(
            "the body is no whole Arrow IPC stream", field="body", allowed="Arrow IPC stream format"
        ) from error


def _refuse_types(schema: pa.Schema) -> None:
    """Raise MalformedArrow for columns that are unknown, missing, twice there or of other types."""
    names = schema.names
    for name in names:
        if name not in REPORT_SCHEMA.names or names.count(name) > 1:
            raise MalformedArrow(
                f"column {name[:100]!r} is not known, or there twice",
                field=name[:100],
                allowed=f"each once: {_ALLOWED}",
            )
    if "decision_id" not in names:
        raise MalformedArrow("no column decision_id", field="decision_id", allowed="string")
    for field in schema:
        wanted = REPORT_SCHEMA.field(field.name).type
        if not _fits(field.type, wanted):
            raise MalformedArrow(
                f"column {field.name} is {field.type}"[:200],
                field=field.name,
                value=str(field.type)[:100],
                allowed=f"{wanted}, or what becomes one without loss; no dictionaries",
            )


def _fits(came: pa.DataType, wanted: pa.DataType) -> bool:
    """Tell whether a type is taken for another one."""
    types = pa.types
    if types.is_string(wanted):
        return bool(types.is_string(came) or types.is_large_string(came) or types.is_null(came))
    if types.is_boolean(wanted):
        return bool(types.is_boolean(came) or types.is_null(came))
    number = types.is_integer(came) or types.is_null(came)
    return bool(number or (types.is_floating(wanted) and types.is_floating(came)))


def _column(came: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    """Return one column as its schema has it; raises MalformedArrow where values do not fit."""
    if field.name not in came.column_names:
        column = pa.chunked_array([pa.nulls(len(came), field.type)])
    else:
        try:
            column = came.column(field.name).cast(field.type)
        except pa.ArrowInvalid as error:
            raise MalformedArrow(
                f"column {field.name} has values that are no {field.type}",
                field=field.name,
                allowed=str(field.type),
            ) from error
    return pc.fill_null(column, False) if pa.types.is_boolean(field.type) else column


def _check(columns: dict[str, pa.ChunkedArray], errors: dict[int, RouterError]) -> None:
    """Note what cannot be true, by row; decision ids are checked by whoever knows the secret."""
    for name, most in _BOUNDS.items():
        column = columns[name]
        within = pc.and_(pc.greater_equal(column, 0), pc.less_equal(column, most))
        for row in _rows(pc.invert(pc.fill_null(within, True))):
            value, allowed = column[row].as_py(), f"0 to {most:g}"
            message = f"{name}={value} must be in [0, {most:g}]"
            errors.setdefault(
                row, InvalidOutcome(message, field=name, value=value, allowed=allowed)
            )
    events = pc.match_substring_regex(columns["event_id"], _LABEL)
    for row in _rows(pc.invert(pc.fill_null(events, True))):
        allowed = f"1 to {MAX_LABEL} characters, no control characters"
        message = "event_id cannot be stored"
        errors.setdefault(row, InvalidOutcome(message, field="event_id", allowed=allowed))
    says = [pc.is_valid(columns[name]) for name in _BOUNDS]
    for said in (*says[1:], columns["final"], columns["activate"]):
        says[0] = pc.or_(says[0], said)
    for row in _rows(pc.invert(says[0])):
        message = "an outcome must report something"
        errors.setdefault(row, InvalidOutcome(message, field="quality", allowed=_ALLOWED))
    for row in _rows(pc.is_null(columns["decision_id"])):
        message = "a report must name its decision"
        errors[row] = InvalidOutcome(message, field="decision_id", allowed="a decision id")
    columns["decision_id"] = pc.fill_null(columns["decision_id"], "")


def _rows(mask: pa.ChunkedArray) -> list[int]:
    """Number the rows that a mask marks."""
    rows: list[int] = np.flatnonzero(mask.to_numpy()).tolist()
    return rows


def _refuse_compressed(body: bytes) -> None:
    """Raise MalformedArrow for compressed buffers: some bytes may stand for gigabytes."""
    for message in pa.ipc.MessageReader.open_stream(body):
        if _is_compressed(bytes(message.metadata)):
            raise MalformedArrow(
                "the stream's buffers are compressed", field="body", allowed="uncompressed"
            )


def _is_compressed(metadata: bytes) -> bool:
    """Read from a message's flatbuffer whether its batch names a compression."""
    (root,) = struct.unpack_from("<I", metadata, 0)
    kind, header = _field(metadata, root, 1), _field(metadata, root, 2)
    if kind is None or header is None or metadata[kind] not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return False
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    if metadata[kind] == _DICTIONARY_BATCH:
        data = _field(metadata, batch, 1)
        if data is None:
            return False
        batch = data + struct.unpack_from("<I", metadata, data)[0]
    return _field(metadata, batch, _COMPRESSION_FIELD) is not None


def _field(metadata: bytes, table: int, index: int) -> int | None:
    """Find a field of a flatbuffer's table; None where it is left out."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    (size,) = struct.unpack_from("<H", metadata, vtable)
    slot = 4 + 2 * index
    if slot + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", metadata, vtable + slot)
    return table + offset if offset else None
