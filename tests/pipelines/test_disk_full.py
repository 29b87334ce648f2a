"""A disk that fills up: nothing is acknowledged that is not stored, and all goes on afterwards."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from clock import Clock
from ledgers import batch, matured, open_ledger, priced, submit
from sqlalchemy import Engine, event

from pipelines.dataset import InteractionDataset, export
from policies.errors import Unavailable
from policies.interaction import JoinStatus, Outcome

ROOM_PAGES = 60


@pytest.fixture
def disk() -> Iterator[dict[str, int]]:
    """SQLite with so many pages at most, in connections that are opened from now on."""
    room = {"pages": 2**30}

    def limit(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {room['pages']}")

    event.listen(Engine, "connect", limit)
    yield room
    event.remove(Engine, "connect", limit)


def test_a_full_disk_loses_nothing_and_emptied_it_goes_on(
    tmp_path: Path, clock: Clock, disk: dict[str, int]
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = open_ledger(url, clock)
    ledger.change_prices(priced)
    ledger.record([batch(["first"])])
    ledger.close()

    disk["pages"] = ROOM_PAGES
    ledger = open_ledger(url, clock)
    stored = ["first"]
    with pytest.raises(Unavailable, match="full"):
        for number in range(1000):
            names = [f"{number}-{one}" for one in range(20)]
            ledger.record([batch(names)])
            stored += names
    assert ledger.counts().decisions == len(stored)
    ledger.close()

    disk["pages"] = 2**30
    ledger = open_ledger(url, clock)
    assert ledger.counts().decisions == len(stored)
    ledger.record([batch(["last"])])
    outcomes = [Outcome(decision_id=one, quality=1.0, final=True) for one in (*stored, "last")]
    assert set(submit(ledger, *outcomes)) == {JoinStatus.JOINED}
    assert [row[1] for row in matured(ledger)] == [*stored, "last"]
    ledger.close()


def test_an_export_that_finds_no_room_leaves_no_half_part(tmp_path: Path, clock: Clock) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", clock)
    ledger.change_prices(priced)
    names = [f"d{number}" for number in range(500)]
    ledger.record([batch(names)])
    submit(ledger, *(Outcome(decision_id=one, quality=1.0, final=True) for one in names))
    rows = ledger.interactions(0, 1000)
    ledger.close()
    # In a process of its own, for a limit on the size of files cannot be raised again.
    code = textwrap.dedent(
        """
        import pathlib, sys
        import pyarrow as pa
        from pipelines.dataset import InteractionDataset
        rows = pa.ipc.open_file(sys.argv[1]).read_all()
        InteractionDataset(pathlib.Path(sys.argv[2])).append(rows)
        """
    )
    with pa.ipc.new_file(tmp_path / "rows.arrow", rows.schema) as writer:
        writer.write_table(rows)

    def no_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    folder = tmp_path / "interactions"
    words = [sys.executable, "-c", code, str(tmp_path / "rows.arrow"), str(folder)]
    done = subprocess.run(words, preexec_fn=no_room, capture_output=True, text=True)
    assert done.returncode != 0
    assert "File too large" in done.stderr

    dataset = InteractionDataset(folder)
    assert dataset.last_seq() == 0
    assert export(lambda after, limit: rows.slice(after, limit), dataset) == 500
    assert InteractionDataset(folder).read().column("decision_id").to_pylist() == names
