"""What processes take: processor time, and memory that is theirs alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Add up the processor time that processes have taken, seconds."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def memory_mb(processes: Sequence[psutil.Process]) -> dict[str, float]:
    """Return unique memory by kind of process, MB: what its end would give back."""
    found: dict[str, float] = {}
    for process in processes:
        try:
            kind, used = _kind(process), process.memory_full_info().uss
        except (psutil.NoSuchProcess, IndexError):
            continue
        found[kind] = found.get(kind, 0.0) + used / 1e6
    return found


def unique_mb(processes: Sequence[psutil.Process]) -> dict[str, float]:
    """Return unique memory by kind and id of process, MB."""
    found = {}
    for process in processes:
        try:
            kind, used = _kind(process), process.memory_full_info().uss
        except (psutil.NoSuchProcess, IndexError):
            continue
        found[f"{kind} {process.pid}"] = used / 1e6
    return found


def _kind(process: psutil.Process) -> str:
    """Name what a process is, whichever method of an actor it is in."""
    name = process.cmdline()[0].split(".")[0][:60]
    return name if name.startswith("ray::") else Path(name).name
