"""Folders of whole files: on a disk, or in an object store that every node of a cluster reaches.

A file appears whole or not at all, by rename on a disk and by one put in an object store. That is
all a pointer file needs, so nothing here appends, locks or lists what it does not have to.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Final, Protocol

import pyarrow.fs as pafs

from policies.artifact import write_atomically

REMOTE: Final = "s3://"
LOCAL: Final = "file://"


class Folder(Protocol):
    """What both kinds of folder do.

    Every method raises OSError while the disk or the store does not answer, FileNotFoundError
    for a file that is not there.
    """

    @property
    def local(self) -> Path | None:
        """The folder as a path; None in an object store."""

    def read(self, name: str) -> bytes:
        """Read a file; `name` may lead through folders, `v3/policy.json`."""

    def write(self, name: str, content: bytes) -> None:
        """Leave a file, whole or not at all."""

    def ages(self) -> dict[str, float]:
        """When each folder in this one was last written, seconds since the epoch, by name."""

    def remove(self, name: str) -> None:
        """Drop a folder and all that is in it."""


class DiskFolder:
    """A folder that the operating system mounts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def local(self) -> Path | None:
        """See `Folder`."""
        return self._path

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        return (self._path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """See `Folder`."""
        target = self._path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)

    def ages(self) -> dict[str, float]:
        """See `Folder`."""
        return {path.name: path.stat().st_mtime for path in self._path.glob("*/")}

    def remove(self, name: str) -> None:
        """See `Folder`."""
        shutil.rmtree(self._path / name)


class ObjectFolder:
    """A prefix in an object store; opened by the first call, for the store may be away before."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    @property
    def local(self) -> Path | None:
        """See `Folder`."""
        return None

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        store, prefix = self._opened
        with store.open_input_stream(f"{prefix}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def write(self, name: str, content: bytes) -> None:
        """See `Folder`."""
        store, prefix = self._opened
        with store.open_output_stream(f"{prefix}/{name}") as stream:
            stream.write(content)

    def ages(self) -> dict[str, float]:
        """See `Folder`."""
        store, prefix = self._opened
        everything = pafs.FileSelector(prefix, allow_not_found=True, recursive=True)
        newest: dict[str, float] = {}
        for found in store.get_file_info(everything):
            folder, _, name = found.path.removeprefix(f"{prefix}/").partition("/")
            if name and found.is_file:
                newest[folder] = max(found.mtime.timestamp(), newest.get(folder, 0.0))
        return newest

    def remove(self, name: str) -> None:
        """See `Folder`."""
        store, prefix = self._opened
        store.delete_dir(f"{prefix}/{name}")

    @functools.cached_property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        # One request a small file instead of three: the put itself says whether there is a bucket.
        store, prefix = pafs.FileSystem.from_uri(f"{self._url}?allow_delayed_open=true")
        return store, prefix


@functools.lru_cache(maxsize=32)
def open_folder(place: str | Path) -> Folder:
    """Return the folder at a path, a file:// or an s3:// URL.

    Credentials, region and endpoint of an object store are the usual ones of the AWS SDKs:
    AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL and so on, or what the node's role gives.

    >>> open_folder("file:///srv/barp").local
    PosixPath('/srv/barp')
    """
    if is_remote(place):
        return ObjectFolder(str(place))
    return DiskFolder(Path(str(place).removeprefix(LOCAL)))


def is_remote(place: str | Path) -> bool:
    """Tell whether a place is in an object store."""
    return str(place).startswith(REMOTE)
