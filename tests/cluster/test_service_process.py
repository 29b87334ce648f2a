"""A service that benchmarks start leaves nothing behind, even where it does not end by itself."""

from __future__ import annotations

import subprocess
import sys

import psutil

from cluster.service_process import stopped

DEAF = """
import signal, subprocess
child = subprocess.Popen(["sleep", "600"])
print(child.pid, flush=True)
signal.signal(signal.SIGINT, signal.SIG_IGN)
child.wait()
"""


def test_a_service_that_does_not_stop_is_killed_with_all_it_began() -> None:
    popen = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE)
    assert popen.stdout is not None
    child = psutil.Process(int(popen.stdout.readline()))
    assert stopped(popen, timeout_s=0.2) == -9
    _, alive = psutil.wait_procs([child], timeout=10)
    assert alive == []
