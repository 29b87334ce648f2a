"""What a killed run leaves behind is ended, and nothing else; its logs are kept, not for ever."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.instance import (
    INSTANCE_FILE,
    KEEP_RUNS,
    LOGS,
    MARK,
    SERVE_LOG,
    end_leftovers,
    instance,
    logging_to,
)

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def killed_run(tmp_path: Path) -> Iterator[tuple[Path, list[psutil.Process]]]:
    """A folder, as a run that was killed leaves it; two processes of it, and a stranger."""
    folder = Path(tempfile.mkdtemp(prefix="barp-"))
    written = folder / "session_1" / "logs"
    written.mkdir(parents=True)
    (written / "raylet.out").write_text("last words\n")
    (folder / "session_latest").symlink_to(folder / "session_1")
    (tmp_path / INSTANCE_FILE).write_text(json.dumps({"pid": 1, "folder": str(folder)}))
    commands = [
        ([sys.executable, "-c", SLEEP, f"--temp-dir={folder}"], {}),
        ([sys.executable, "-c", SLEEP], {MARK: str(folder)}),
        ([sys.executable, "-c", SLEEP], {MARK: "/tmp/barp-another"}),
    ]
    started = [subprocess.Popen(c, env={**os.environ, **extra}) for c, extra in commands]
    yield folder, [psutil.Process(process.pid) for process in started]
    for process in started:
        process.kill()
        process.wait()


def test_what_a_killed_run_left_is_ended_and_nothing_else(
    tmp_path: Path, killed_run: tuple[Path, list[psutil.Process]]
) -> None:
    folder, (by_word, by_mark, stranger) = killed_run
    assert end_leftovers(tmp_path) == 2
    gone, _ = psutil.wait_procs([by_word, by_mark], timeout=5)
    assert all(not p.is_running() or p.status() == "zombie" for p in (by_word, by_mark)) or gone
    assert stranger.is_running() and stranger.status() != "zombie"
    assert not folder.exists()
    assert not (tmp_path / INSTANCE_FILE).exists()
    [kept] = (tmp_path / LOGS).glob("run-*/raylet.out")
    assert kept.read_text() == "last words\n"
    assert end_leftovers(tmp_path) == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"folder": 1}', b'{"folder": "/"}', b'{"folder": "/etc"}'],
)
def test_a_damaged_note_ends_and_removes_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INSTANCE_FILE).write_bytes(content)
    assert end_leftovers(tmp_path) == 0


def test_a_run_has_its_folder_and_leaves_its_logs(tmp_path: Path) -> None:
    for turn in range(KEEP_RUNS + 2):
        with instance(tmp_path) as folder:
            (folder / "session_1" / "logs").mkdir(parents=True)
            (folder / "session_latest").symlink_to(folder / "session_1")
            (folder / "session_1" / "logs" / "worker.err").write_text(f"turn {turn}")
            assert (tmp_path / LOGS / "ray" / "worker.err").read_text() == f"turn {turn}"
            assert os.environ[MARK] == str(folder)
        assert not folder.exists()
    assert MARK not in os.environ
    kept = sorted((tmp_path / LOGS).glob("run-*/worker.err"))
    assert [file.read_text() for file in kept] == [f"turn {turn}" for turn in (2, 3, 4)]
    assert not (tmp_path / LOGS / "ray").is_symlink()


def test_our_own_words_are_logged_while_it_lasts(tmp_path: Path) -> None:
    ours = logging.getLogger("cluster.launch")
    with logging_to(tmp_path):
        ours.info("first")
    ours.info("second")
    text = (tmp_path / SERVE_LOG).read_text()
    assert "INFO cluster.launch first" in text
    assert "second" not in text
