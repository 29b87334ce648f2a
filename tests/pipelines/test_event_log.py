"""The event log on disk: numbered, rotated, whole after a crash, each event once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.event_log import EVENTS_FILE, EventLog
from policies.events import Event, EventKind


def event(why: str = "", kind: EventKind = EventKind.TRAINING) -> Event:
    """Make one."""
    return Event.now(kind, now=0.0, who="ann", why=why)


def words(log: EventLog, after_seq: int = 0) -> list[str]:
    """Read back what was said."""
    return [entry["why"] for entry in log.read(after_seq, limit=1000)]


def test_events_come_back_in_order_also_in_another_process(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for why in ("one", "two", "three"):
        log.append(event(why))

    again = EventLog(tmp_path)
    again.append(event("four"))

    assert words(again) == ["one", "two", "three", "four"]
    assert words(again, after_seq=2) == ["three", "four"]
    assert again.last_seq == 4
    lines = (tmp_path / EVENTS_FILE).read_text().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3, 4]


def test_an_event_that_comes_twice_is_stored_once(tmp_path: Path) -> None:
    sent = event("once")
    assert EventLog(tmp_path).append(sent)

    assert not EventLog(tmp_path).append(sent)
    assert words(EventLog(tmp_path)) == ["once"]


def test_files_rotate_by_size_and_numbers_go_on(tmp_path: Path) -> None:
    log = EventLog(tmp_path, max_file_bytes=1000, keep_files=3, keep_events=100)
    for number in range(30):
        log.append(event(str(number)))

    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["events.1.jsonl", "events.2.jsonl", EVENTS_FILE]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    again = EventLog(tmp_path, max_file_bytes=1000, keep_files=3)
    kept = words(again)
    assert kept == [str(number) for number in range(30 - len(kept), 30)]
    assert again.last_seq == 30


@pytest.mark.parametrize("torn", [b'{"seq": 3, "ev', b"\xff\xfe\n", b"[]\n"])
def test_a_line_cut_off_by_a_crash_costs_only_itself(tmp_path: Path, torn: bytes) -> None:
    log = EventLog(tmp_path)
    log.append(event("one"))
    with (tmp_path / EVENTS_FILE).open("ab") as file:
        file.write(torn)

    EventLog(tmp_path).append(event("two"))

    assert words(EventLog(tmp_path)) == ["one", "two"]


def test_reading_is_bounded_and_by_kind(tmp_path: Path) -> None:
    log = EventLog(tmp_path, keep_events=5)
    for number in range(8):
        kind = EventKind.VERDICT if number % 2 else EventKind.TRAINING
        log.append(event(str(number), kind))

    assert words(log) == ["3", "4", "5", "6", "7"]
    verdicts = log.read(limit=2, kinds=[EventKind.VERDICT])
    assert [entry["why"] for entry in verdicts] == ["5", "7"]
