"""Feedback in bulk: NDJSON and Arrow streams, and whatever pretends to be one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replica_fakes import Replica

from policies.errors import InvalidRequest
from policies.interaction import JoinStatus
from services.bulk import ARROW_STREAM, MAX_ROWS, read_reports

ARROW = {"content-type": ARROW_STREAM}


@pytest.fixture
def replica() -> Replica:
    """A replica with three models and a champion."""
    return Replica()


def stream(columns: dict[str, Any], *, compression: str | None = None) -> bytes:
    """Write columns as an Arrow IPC stream."""
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def test_lines_are_answered_as_a_list_is(replica: Replica) -> None:
    mine = replica.ids.issue("default")
    lines = [json.dumps({"decision_id": mine, "quality": 1}), "{", "", "7"]
    answer = replica.call(
        "POST",
        "/v1/feedback",
        content="\n".join(lines) + "\n",
        headers={"content-type": "application/x-ndjson; charset=utf-8"},
    )
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert [result["status"] for result in results] == ["joined", "invalid", "invalid"]
    assert results[1]["error"]["code"] == "malformed_json"
    assert len(replica.aggregator.submitted) == 1


def test_a_stream_is_stored_row_by_row_and_a_bad_row_spoils_no_other(replica: Replica) -> None:
    mine, late, theirs = (replica.ids.issue(t) for t in ("default", "default", "acme"))
    replica.aggregator.answers[late] = JoinStatus.EXPIRED
    rows: dict[str, list[Any]] = {
        "decision_id": [mine, mine, "forged", late, theirs, mine, None, mine],
        "quality": [0.5, 1.5, 0.5, 0.5, 0.5, float("nan"), 0.5, None],
        "tenant": [None, None, None, None, "acme", None, None, None],
        "tokens_in": [3, None, None, None, None, None, None, None],
    }
    answer = replica.call("POST", "/v1/feedback", content=stream(rows), headers=ARROW)
    found = answer.json()
    assert (answer.status_code, found["rows"], found["refused_rows"]) == (200, 8, 6)
    assert found["counts"] == {"joined": 2, "expired": 1, "unknown": 1, "invalid": 4}
    told = {one["row"]: (one["status"], one["error"]["field"]) for one in found["refused"]}
    assert told == {
        1: ("invalid", "quality"),
        2: ("unknown", "decision_id"),
        3: ("expired", "decision_id"),
        5: ("invalid", "quality"),
        6: ("invalid", "decision_id"),
        7: ("invalid", "quality"),
    }
    kept = [(tenant, one.decision_id) for tenant, one in replica.aggregator.submitted]
    assert kept == [("default", mine), ("default", late), ("acme", theirs)]
    assert replica.aggregator.submitted[0][1].tokens_in == 3


def test_an_arrow_answer_has_a_row_for_each(replica: Replica) -> None:
    ids = [replica.ids.issue("default"), "forged"]
    answer = replica.call(
        "POST",
        "/v1/feedback",
        content=stream({"decision_id": ids, "final": [True, True]}),
        headers=ARROW | {"accept": ARROW_STREAM},
    )
    assert answer.headers["content-type"] == ARROW_STREAM
    rows = pa.ipc.open_stream(answer.content).read_all()
    assert rows["decision_id"].to_pylist() == ids
    assert rows["status"].to_pylist() == ["joined", "unknown"]
    assert rows["error"].is_null().to_pylist() == [True, False]


def test_an_empty_stream_is_fine(replica: Replica) -> None:
    body = stream({"decision_id": pa.array([], pa.string())})
    answer = replica.call("POST", "/v1/feedback", content=body, headers=ARROW)
    assert answer.json() == {"rows": 0, "counts": {}, "refused_rows": 0, "refused": []}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"decision_id": ["a"], "score": [1.0]}, "score"),
    ({"quality": [1.0]}, "decision_id"),
    ({"decision_id": [1]}, "decision_id"),
    ({"decision_id": ["a"], "quality": ["1"]}, "quality"),
    ({"decision_id": ["a"], "tokens_in": [1.5]}, "tokens_in"),
    ({"decision_id": ["a"], "final": [1]}, "final"),
    ({"decision_id": pa.array(["a"]).dictionary_encode()}, "decision_id"),
    ({"decision_id": ["a"], "tokens_in": pa.array([2**63], pa.uint64())}, "tokens_in"),
    ({"decision_id": ["a"] * (MAX_ROWS + 1)}, "body"),
]


@pytest.mark.parametrize(("columns", "field"), BAD)
def test_a_stream_of_other_columns_is_refused_whole(
    replica: Replica, columns: dict[str, Any], field: str
) -> None:
    answer = replica.call("POST", "/v1/feedback", content=stream(columns), headers=ARROW)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (422, "malformed_arrow", field)
    assert replica.aggregator.submitted == []


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_stream_is_refused_before_it_is_unpacked(
    replica: Replica, compression: str
) -> None:
    columns = {"decision_id": ["x" * 1000] * 1000}
    body = stream(columns, compression=compression)
    answer = replica.call("POST", "/v1/feedback", content=body, headers=ARROW)
    assert answer.status_code == 422
    assert "compressed" in answer.json()["error"]["message"]


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_stream_is_refused_or_read_whole(data: st.DataObject) -> None:
    """Cut off anywhere, or with bytes changed: never a crash, never another error."""
    whole = stream({"decision_id": ["a", "bb"], "quality": [0.5, None], "final": [True, True]})
    cut = data.draw(st.integers(0, len(whole)))
    body = bytearray(whole[:cut] if data.draw(st.booleans()) else whole)
    for _ in range(data.draw(st.integers(0, 3))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = read_reports(bytes(body), acts_for=lambda tenant: tenant or "default")
    except InvalidRequest:
        return
    assert set(read.errors) <= set(range(len(read.table)))
    rows, batch = read.good()
    assert len(rows) == len(batch) == len(read.table) - len(read.errors)
    assert not np.isnan(batch["quality"].drop_null().to_numpy()).any()


def test_nothing_is_acknowledged_while_the_ledger_is_away(replica: Replica) -> None:
    replica.aggregator.away = True
    body = stream({"decision_id": [replica.ids.issue("default")], "quality": [1.0]})
    answer = replica.call("POST", "/v1/feedback", content=body, headers=ARROW)
    assert answer.status_code == 503
