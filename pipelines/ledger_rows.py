"""Between Arrow columns and the ledger's rows, both ways and by column."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Row

from pipelines.joining import MICROSECONDS, Report
from pipelines.tenants import Rulebook
from policies.errors import InvalidRequest, RouterError
from policies.interaction import DECISION_SCHEMA, INTERACTION_SCHEMA
from policies.reports import REPORT_SCHEMA

TIMES: Final = frozenset({"decided_at", "closes_at", "received_at", "matured_at"})
# Bytes in a database outlive the machine that wrote them.
VECTORS: Final[dict[str, np.dtype[Any]]] = {"context": np.dtype("<f4"), "pmf": np.dtype("<f8")}


DECISION_COLUMNS: Final = (*DECISION_SCHEMA.names, "closes_at")


def decision_rows(batch: pa.RecordBatch, *, rules: Rulebook) -> list[tuple[Any, ...]]:
    """Lay decisions out as rows of the table `decisions`, columns as DECISION_COLUMNS, in order.

    Args:
        batch: Schema DECISION_SCHEMA.
        rules: Say how long each tenant's outcomes may take from the moment of the decision.

    Raises:
        InvalidRequest: Another schema.
    """
    if not batch.schema.equals(DECISION_SCHEMA):
        raise InvalidRequest("decisions of another schema than DECISION_SCHEMA", field="batch")
    columns = {name: _to_sql(name, batch.column(name)) for name in DECISION_SCHEMA.names}
    windows = {
        tenant: round(rules.of(tenant).wait_window_s * MICROSECONDS)
        for tenant in set(columns["tenant"])
    }
    closes_at = [
        decided_at + windows[tenant]
        for decided_at, tenant in zip(columns["decided_at"], columns["tenant"], strict=True)
    ]
    return list(zip(*columns.values(), closes_at, strict=True))


def report_rows(batch: pa.RecordBatch) -> tuple[list[str], list[Report]]:
    """Take reports out of their columns: tenants, and the reports themselves, in order.

    Args:
        batch: Schema REPORT_SCHEMA.

    Raises:
        InvalidRequest: Another schema.
    """
    if not batch.schema.equals(REPORT_SCHEMA):
        raise InvalidRequest("reports of another schema than REPORT_SCHEMA", field="batch")
    tenants, *columns = (_plain(column).to_pylist() for column in batch.columns)
    return tenants, list(map(Report._make, zip(*columns, strict=True)))


def _plain(column: pa.Array) -> pa.Array:
    """Make -0.0 of a column 0.0: the two are one value, and must be one event."""
    return pc.add(column, 0.0) if pa.types.is_floating(column.type) else column


class DamagedLedger(RouterError):
    """A row of the ledger is not what was written."""

    code = "damaged_ledger"


@contextmanager
def _as_written() -> Iterator[None]:
    """Say DamagedLedger where what was read cannot be what somebody wrote."""
    try:
        yield
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise DamagedLedger(
            f"a row of the ledger cannot be read ({type(error).__name__}): restore the ledger",
            field="ledger",
        ) from error


def interaction_table(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Lay interactions out in columns, schema INTERACTION_SCHEMA, in order.

    Args:
        rows: With the columns of INTERACTION_SCHEMA, in its order.

    Raises:
        DamagedLedger: One of them cannot be what was written.
    """
    if not rows:
        return INTERACTION_SCHEMA.empty_table()
    with _as_written():
        arrays = [
            _to_arrow(field, values)
            for field, values in zip(INTERACTION_SCHEMA, zip(*rows, strict=True), strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=INTERACTION_SCHEMA)


def decision_json(
    decision: Row[Any], reports: Sequence[Row[Any]], latest: Row[Any] | None
) -> dict[str, Any]:
    """Return a decision without its context, and what came of it, as plain JSON values.

    Args:
        decision: A row of the table `decisions`.
        reports: Its outcomes, in the order they came.
        latest: Its latest interaction, None where there is none.

    Raises:
        DamagedLedger: Something of it cannot be what was written.
    """
    with _as_written():
        return {
            **_json_values(decision),
            "outcomes": [_json_values(report) for report in reports],
            "interaction": None if latest is None else _json_values(latest),
        }


def archived_json(rows: pa.Table) -> dict[str, Any]:
    """Return a decision that has left the ledger in the shape of `decision_json`.

    Args:
        rows: Its latest interaction, one row, schema INTERACTION_SCHEMA. What it does not tell
            (outcomes one by one, the window's end, whether it was deferred) is None.
    """
    times = [name for name in INTERACTION_SCHEMA.names if name in TIMES]
    plain = rows.drop_columns(["context"])
    for name in times:
        index = plain.schema.get_field_index(name)
        plain = plain.set_column(index, name, plain[name].cast(pa.int64()))
    [row] = plain.to_pylist()
    row |= {name: iso_time(row[name]) for name in times}
    decided = [name for name in DECISION_SCHEMA.names if name in row]
    own = [name for name in row if name not in decided]
    return {
        **{name: row[name] for name in decided},
        "closes_at": None,
        "deferred": None,
        "outcomes": None,
        "interaction": {name: row[name] for name in own},
    }


def iso_time(microseconds: int) -> str:
    """Write microseconds since the epoch as ISO 8601, UTC.

    >>> iso_time(1_500_000)
    '1970-01-01T00:00:01.500000+00:00'
    """
    seconds, rest = divmod(microseconds, MICROSECONDS)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
    return moment.isoformat(timespec="microseconds")


def _json_values(row: Row[Any]) -> dict[str, Any]:
    """Return a row as plain JSON values: times as text, vectors as lists, no context."""
    values = {name: value for name, value in row._mapping.items() if name != "context"}
    for name in TIMES & values.keys():
        values[name] = iso_time(values[name])
    if "pmf" in values:
        values["pmf"] = np.frombuffer(values["pmf"], dtype=VECTORS["pmf"]).tolist()
        values["arms_offered"] = json.loads(values["arms_offered"])
    return values


def _to_sql(name: str, column: pa.Array) -> list[Any]:
    """Return one column as values that a database driver takes."""
    if name in VECTORS:
        return _vector_bytes(column, VECTORS[name])
    if name == "decided_at":
        return list(column.cast(pa.int64()).to_pylist())
    if name == "arms_offered":
        return _names_json(column)
    return list(column.to_pylist())


def _vector_bytes(column: pa.ListArray, dtype: np.dtype[Any]) -> list[bytes]:
    """Cut a list column into one byte string a row; through Python floats it takes 50 times."""
    values = np.ascontiguousarray(np.asarray(column.values), dtype=dtype)
    ends = (np.asarray(column.offsets) * dtype.itemsize).tolist()
    content = values.tobytes()
    return [content[start:end] for start, end in pairwise(ends)]


def _names_json(column: pa.ListArray) -> list[str]:
    """Write each row's list of names as JSON; few lists are distinct, each is written once."""
    encoded = column.values.dictionary_encode()
    names, codes = encoded.dictionary.to_pylist(), np.asarray(encoded.indices)
    written: dict[bytes, str] = {}
    found = []
    for start, end in pairwise(np.asarray(column.offsets).tolist()):
        key = codes[start:end].tobytes()
        if key not in written:
            written[key] = json.dumps([names[code] for code in codes[start:end]])
        found.append(written[key])
    return found


def _to_arrow(field: pa.Field, values: Sequence[Any]) -> pa.Array:
    """Return one column of SQL values as Arrow."""
    if field.name in VECTORS:
        return _vectors(values, VECTORS[field.name])
    if field.name == "arms_offered":
        return pa.array([_names(text) for text in values], type=field.type)
    if pa.types.is_timestamp(field.type):
        return pa.array(values, type=pa.int64()).cast(field.type)
    return pa.array(values, type=field.type)


@lru_cache(maxsize=256)
def _names(text: str) -> tuple[str, ...]:
    """Read a list of arms; most decisions are offered the same ones."""
    return tuple(json.loads(text))


def _vectors(values: Sequence[bytes], dtype: np.dtype[Any]) -> pa.ListArray:
    """Join byte strings into one list column."""
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) // dtype.itemsize for value in values], out=offsets[1:])
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(np.frombuffer(b"".join(values), dtype=dtype))
    )
