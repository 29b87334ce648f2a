"""Can this machine run the service? Asked before the installation and after it.

Before it, make calls this file with whatever `python3` there is: so it needs the standard library
only, keeps to what Python 3.8 can run, so that an old one is told so, and says no in one line.
After it, `barp doctor` asks for more: what is installed, where state goes, what Ray will find.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DISTRIBUTION = "barp-router"
MIN_PYTHON = (3, 11)
PLATFORMS = ("Linux", "Darwin")
GIB = 2**30
MIB = 2**20
# The environment takes 3.5 GB, pip's downloads and unpacking the rest.
DISK_BEFORE_BYTES = 6 * GIB
# Room for the ledger, versions and Ray's logs.
DISK_AFTER_BYTES = 1 * GIB
# Ray and Serve take 1.5 GB, replica, trainer and registry one more.
MEMORY_BYTES = 3 * GIB
# Below this Ray keeps its objects in /tmp and warns; ours are small, so that is no reason to stop.
SHARED_MEMORY_BYTES = 128 * MIB


# Not a dataclass with slots, as elsewhere: Python 3.9 must get far enough to be told it is too old.
class Check(NamedTuple):
    """One thing looked at.

    Attributes:
        name: What was looked at.
        found: What is there, in words.
        needed: What the service needs, in words.
        ok: Whether it can run with what is there.
        look: Whether it can run only once somebody has chosen differently.
    """

    name: str
    found: str
    needed: str
    ok: bool
    look: bool = False

    @property
    def mark(self) -> str:
        """Return a word for the table."""
        return "no" if not self.ok else "look" if self.look else "ok"

    def to_json(self) -> dict[str, str | bool]:
        """Return plain JSON values."""
        return dict(self._asdict())


def check_machine(folder: Path, *, disk_bytes: int) -> list[Check]:
    """Look at interpreter, platform, disk and memory; needs the standard library only.

    Args:
        folder: Where files will go; its file system must have room. It need not exist yet.
        disk_bytes: How much room, bytes.
    """
    return [_python(), _platform(), _disk(folder, disk_bytes), _memory()]


def check_installation(*, state_dir: Path = Path(".barp"), port: int = 8000) -> list[Check]:
    """Look at everything the installed service needs.

    Args:
        state_dir: The service's folder; it need not exist yet.
        port: The TCP port it would listen on, on loopback.
    """
    return [
        *check_machine(state_dir, disk_bytes=DISK_AFTER_BYTES),
        _packages(),
        _writable(state_dir),
        _port(port),
        _shared_memory(),
    ]


def refusal(checks: Sequence[Check]) -> str | None:
    """Say in one line what is missing; None where nothing is.

    >>> refusal([Check("disk", "2.0 GiB free", "6 GiB free", False)])
    'disk: 2.0 GiB free, needed is 6 GiB free'
    """
    missing = [f"{c.name}: {c.found}, needed is {c.needed}" for c in checks if not c.ok]
    return "; ".join(missing) or None


def _python() -> Check:
    """Version and word size of the interpreter that runs this."""
    bits = 64 if sys.maxsize > 2**32 else 32
    found = f"{platform.python_version()}, {bits} bit"
    needed = f"{MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer, 64 bit (make PYTHON=... names another)"
    return Check("Python", found, needed, sys.version_info[:2] >= MIN_PYTHON and bits == 64)


def _platform() -> Check:
    """Operating system and processor; Ray has wheels for these."""
    system, machine = platform.system(), platform.machine()
    return Check("platform", f"{system} on {machine}", "Linux or macOS", system in PLATFORMS)


def _disk(folder: Path, needed_bytes: int) -> Check:
    """Free space where `folder` is or would be."""
    free_bytes = shutil.disk_usage(_existing(folder)).free
    needed = f"{needed_bytes // GIB} GiB free"
    return Check("disk", f"{free_bytes / GIB:.1f} GiB free", needed, free_bytes >= needed_bytes)


def _memory() -> Check:
    """Memory that can still be had: by the machine, and by the container's own limit."""
    needed = f"{MEMORY_BYTES // GIB} GiB available"
    known = [size for size in (_machine_memory(), _container_memory()) if size is not None]
    if not known:
        return Check("memory", "unknown", needed, True)
    available = min(known)
    return Check(
        "memory", f"{available / GIB:.1f} GiB available", needed, available >= MEMORY_BYTES
    )


def _machine_memory() -> int | None:
    """Available bytes; on macOS, which does not say, all there are."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _container_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left under this container's limit (cgroup v2); None without a limit."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        statistics = (cgroup / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    # Cached files count as used, but go as soon as memory is asked for.
    cached = [int(line.split()[1]) for line in statistics if line.startswith("inactive_file ")]
    return int(limit) - used + sum(cached)


def _packages() -> Check:
    """Every requirement of the distribution, against what is installed."""
    from importlib import metadata

    from packaging.requirements import Requirement

    needed = "what pyproject.toml requires"
    try:
        required = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        return Check("packages", f"{DISTRIBUTION} is not installed", needed, False)
    wanted = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    misfits = []
    for requirement in wanted:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            misfits.append(
                f"{requirement.name} {version or 'missing'} (not {requirement.specifier})"
            )
    found = ", ".join(misfits) or f"{len(wanted)} requirements met"
    return Check("packages", found, needed, not misfits)


def _writable(state_dir: Path) -> Check:
    """Whether the state folder, or the folder it would be made in, takes a file."""
    folder = _existing(state_dir)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Check("state folder", f"{state_dir} can be written", "writable", True)
    except OSError as error:
        return Check("state folder", f"{folder}: {error.strerror}", "writable", False)


def _port(port: int) -> Check:
    """Whether loopback can be listened on; a taken port is only said, another one will do."""
    needed = "any port that can be listened on"
    taken = _bind_error(port)
    if taken is None:
        return Check("port", f"127.0.0.1:{port} is free", needed, True)
    other = _bind_error(0)
    if other is None:
        found = f"127.0.0.1:{port}: {taken}; choose another with --port"
        return Check("port", found, needed, True, look=True)
    return Check("port", f"127.0.0.1: {other}", needed, False)


def _bind_error(port: int) -> str | None:
    """Try to listen on a loopback port; say why that cannot be done."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror
    return None


def _shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Size of the memory file system that Ray keeps objects in, where the platform has one."""
    needed = f"{SHARED_MEMORY_BYTES // MIB} MiB, else Ray uses /tmp (slower)"
    if not folder.is_dir():
        return Check("shared memory", f"no {folder} on this platform", needed, True)
    free_bytes = shutil.disk_usage(folder).free
    return Check("shared memory", f"{free_bytes // MIB} MiB free", needed, True)


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = folder.expanduser().resolve()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the machine alone; 0 or, after one line on stderr, 1."""
    parser = argparse.ArgumentParser(description="Can this machine run BaRP Router?")
    parser.add_argument(
        "--before-install",
        action="store_true",
        help=f"ask for the {DISK_BEFORE_BYTES // GIB} GiB of disk that the installation takes, "
        f"not the {DISK_AFTER_BYTES // GIB} GiB that running takes",
    )
    before_install = parser.parse_args(arguments).before_install
    disk_bytes = DISK_BEFORE_BYTES if before_install else DISK_AFTER_BYTES
    problem = refusal(check_machine(Path(__file__).parent, disk_bytes=disk_bytes))
    if problem is None:
        return 0
    sys.stderr.write(f"barp doctor: this machine will not do. {problem}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
