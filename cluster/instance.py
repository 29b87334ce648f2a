"""One run of the service on this machine: its folder, its logs, and what a killed one left behind.

A process of a run is known by the run's folder, whose name is random, in its environment or on its
command line; so nothing is ever ended that is not ours.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

import psutil

from policies.artifact import write_atomically

INSTANCE_FILE: Final = "instance.json"
LOGS: Final = "logs"
SERVE_LOG: Final = "serve.log"
# In the environment of every process of a run.
MARK: Final = "BARP_INSTANCE"
PREFIX: Final = "barp-"
LOG_BYTES: Final = 5_000_000
LOG_BACKUPS: Final = 3
# Logs of so many earlier runs stay.
KEEP_RUNS: Final = 3
END_TIMEOUT_S: Final = 10.0

logger = logging.getLogger(__name__)


@contextmanager
def instance(state_dir: Path) -> Iterator[Path]:
    """Give a run its own folder with a short path; call with the state folder locked.

    First it ends what an earlier run has left. While the run lasts `logs/ray` in the state folder
    shows Ray's logs; afterwards they are kept there under the time of the run.

    Args:
        state_dir: The service's state folder.

    Yields:
        The folder: short, for a Unix socket's path may have 107 bytes; removed at the end.
    """
    end_leftovers(state_dir)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        content = {"pid": os.getpid(), "folder": str(folder)}
        write_atomically(state_dir / INSTANCE_FILE, json.dumps(content).encode())
        _link(state_dir / LOGS / "ray", folder / "session_latest" / "logs")
        os.environ[MARK] = str(folder)
        yield folder
    finally:
        os.environ.pop(MARK, None)
        _put_away(state_dir, folder)
        (state_dir / INSTANCE_FILE).unlink(missing_ok=True)


def end_leftovers(state_dir: Path) -> int:
    """End the processes that a killed run left, and put its logs away; return how many there were.

    Call with the state folder locked: whoever held it before has ended.
    """
    try:
        folder = Path(json.loads((state_dir / INSTANCE_FILE).read_bytes())["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        # None, or a file that never became whole: there is nothing to go by.
        return 0
    if folder.parent != Path(tempfile.gettempdir()) or not folder.name.startswith(PREFIX):
        return 0
    ended = end_processes(folder)
    if ended:
        logger.warning("%d processes of a run that was killed were ended", ended)
    _put_away(state_dir, folder)
    (state_dir / INSTANCE_FILE).unlink(missing_ok=True)
    return ended


def end_processes(folder: Path) -> int:
    """End every process of the run with this folder but this one; return how many."""
    left = [process for process in psutil.process_iter() if _belongs(process, str(folder))]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=END_TIMEOUT_S)
    return len(left)


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Write this process's log into `folder`, in files that are rotated, while the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(
        folder / SERVE_LOG, maxBytes=LOG_BYTES, backupCount=LOG_BACKUPS, encoding="utf-8"
    )
    line = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s")
    line.converter, line.datefmt = time.gmtime, "%Y-%m-%dT%H:%M:%S"
    handler.setFormatter(line)
    ours = logging.getLogger("cluster")
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.setLevel(before)
        ours.removeHandler(handler)
        handler.close()


def _belongs(process: psutil.Process, folder: str) -> bool:
    """Say whether a process is one of the run with this folder, and not this very one."""
    if process.pid == os.getpid():
        return False
    try:
        if any(folder in word for word in process.cmdline()):
            return True
        return process.environ().get(MARK) == folder
    except (psutil.Error, OSError):
        # Another user's, or gone.
        return False


def _link(link: Path, target: Path) -> None:
    """Point a symbolic link at a folder that need not exist yet."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target, target_is_directory=True)


def _put_away(state_dir: Path, folder: Path) -> None:
    """Keep a run's logs, those of the last runs only, and remove its folder.

    A disk that is full must not keep the service from starting or ending: then there are no logs.
    """
    logs = state_dir / LOGS
    with suppress(OSError):
        (logs / "ray").unlink(missing_ok=True)
    written = folder / "session_latest" / "logs"
    kept = logs / f"run-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    try:
        if written.is_dir():
            shutil.copytree(written, kept, ignore_dangling_symlinks=True)
    except (OSError, shutil.Error) as error:
        logger.warning("logs of the run are not kept: %s", str(error)[:200])
        shutil.rmtree(kept, ignore_errors=True)
    for old in sorted(logs.glob("run-*"))[:-KEEP_RUNS]:
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
