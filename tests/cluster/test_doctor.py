"""The doctor says in one line what a machine lacks, before anything is installed."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import doctor
from cluster.doctor import GIB, Check, check_installation, check_machine, refusal

SCRIPT = Path(doctor.__file__)


def named(checks: list[Check], name: str) -> Check:
    """Find a check by its name."""
    return next(check for check in checks if check.name == name)


def test_this_machine_passes_before_installation(tmp_path: Path) -> None:
    """Interpreter, platform, disk and memory, each once."""
    checks = check_machine(tmp_path, disk_bytes=1)
    assert [check.name for check in checks] == ["Python", "platform", "disk", "memory"]
    # Memory is left out: what runs beside the tests decides how much is free.
    assert refusal(checks[:3]) is None


def test_a_full_disk_is_refused_in_one_line(tmp_path: Path) -> None:
    """With what there is and what is needed."""
    checks = check_machine(tmp_path / "not" / "made" / "yet", disk_bytes=2**60)
    line = refusal(checks)

    assert not named(checks, "disk").ok
    assert line is not None
    assert "\n" not in line
    assert f"needed is {2**60 // GIB} GiB free" in line


def test_the_script_needs_nothing_installed(tmp_path: Path) -> None:
    """Isolated, from elsewhere, without site-packages: it ends with a verdict, no traceback."""
    command = [sys.executable, "-I", "-S", str(SCRIPT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert (done.returncode == 0) == (done.stderr == "")
    assert done.returncode == 0 or done.stderr.startswith("barp doctor: this machine will not do")


@pytest.mark.parametrize(
    ("limit", "left_bytes"),
    [("max", None), (str(2 * GIB), GIB // 2 + GIB // 4)],
)
def test_a_containers_memory_limit_counts(
    tmp_path: Path, limit: str, left_bytes: int | None
) -> None:
    """The host's memory says nothing of a container's; cached files are given back."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{GIB + GIB // 2}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {GIB // 4}\nfile 9\n")
    assert doctor._container_memory(tmp_path) == left_bytes


def test_no_container_is_no_limit(tmp_path: Path) -> None:
    """On a host the files are not there."""
    assert doctor._container_memory(tmp_path) is None


def test_a_taken_port_is_said_but_no_reason_to_stop(tmp_path: Path) -> None:
    """Another port will do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        check = named(check_installation(state_dir=tmp_path, port=port), "port")

    assert (check.ok, check.mark) == (True, "look")
    assert f"{port}: Address already in use; choose another with --port" in check.found


def test_a_state_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """As under a file, where no user, not even root, can make a folder."""
    state_dir = tmp_path / "state"
    writable = named(check_installation(state_dir=state_dir), "state folder")
    hopeless = named(check_installation(state_dir=Path("/proc/barp")), "state folder")

    assert writable.ok
    assert not state_dir.exists()
    assert not hopeless.ok


def test_shared_memory_is_reported(tmp_path: Path) -> None:
    """Too little slows Ray down, and none is usual on macOS: neither stops the service."""
    assert "MiB free" in doctor._shared_memory(tmp_path).found
    assert "on this platform" in doctor._shared_memory(tmp_path / "none").found


def test_checks_are_plain_json() -> None:
    """For `barp doctor --json`."""
    check = Check("disk", "7 GiB free", "6 GiB free", True)
    assert check.to_json() == {
        "name": "disk",
        "found": "7 GiB free",
        "needed": "6 GiB free",
        "ok": True,
        "look": False,
    }
