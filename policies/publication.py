"""What the publisher pushes and every replica holds: champion, canary and prices, as one set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from policies.arms import PriceTable
from policies.artifact import FILES, PolicyArtifact, write_atomically
from policies.errors import ArtifactError, InvalidRequest

POINTER_FILE: Final = "champion.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A version on trial: it decides for a share of the requests.

    Attributes:
        version: Its number.
        files: Its artifact's files by name.
        share: Probability that it decides for a unit, a session or else a request, in (0, 1).
    """

    version: int
    files: Mapping[str, bytes]
    share: float

    def __post_init__(self) -> None:
        """Refuse a share that is no trial; raises InvalidRequest."""
        if not 0.0 < self.share < 1.0:
            raise InvalidRequest(
                f"share={self.share} must be between 0 and 1",
                field="share",
                value=self.share,
                allowed="more than 0, less than 1",
            )

    def artifact(self) -> PolicyArtifact:
        """Read the policy; raises ArtifactError."""
        return PolicyArtifact.from_files(self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """One state of the world for deciding.

    Attributes:
        revision: Grows with every publication, also after a rollback and over restarts.
        version: The policy version that decides from now on.
        files: The policy artifact's files by name.
        prices: The arms and what they charge.
        published_at: When, seconds since the epoch, UTC.
        canary: The version on trial beside it, None where there is none.
    """

    revision: int
    version: int
    files: Mapping[str, bytes]
    prices: PriceTable
    published_at: float
    canary: Canary | None = None

    def artifact(self) -> PolicyArtifact:
        """Read the policy; raises ArtifactError."""
        return PolicyArtifact.from_files(self.files)


def write_pointer(folder: Path, publication: Publication) -> None:
    """Leave a publication on disk: artifact folders first, then the pointer that names them."""
    canary = publication.canary
    _write_files(folder, publication.version, publication.files)
    if canary is not None:
        _write_files(folder, canary.version, canary.files)
    pointer: dict[str, Any] = {
        "revision": publication.revision,
        "version": publication.version,
        "canary": None if canary is None else {"version": canary.version, "share": canary.share},
        "prices": publication.prices.to_json(),
        "published_at": publication.published_at,
    }
    write_atomically(folder / POINTER_FILE, json.dumps(pointer, sort_keys=True).encode())


def read_pointer(folder: Path) -> Publication | None:
    """Read the publication last left on disk; None where there never was one.

    Raises:
        ArtifactError: The pointer or the artifact it names is damaged.
    """
    path = folder / POINTER_FILE
    if not path.is_file():
        return None
    try:
        pointer = json.loads(path.read_bytes())
        canary = pointer["canary"]
        return Publication(
            revision=pointer["revision"],
            version=pointer["version"],
            files=_read_files(folder, pointer["version"]),
            prices=PriceTable.from_json(pointer["prices"]),
            published_at=pointer["published_at"],
            canary=None
            if canary is None
            else Canary(files=_read_files(folder, canary["version"]), **canary),
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ArtifactError(f"{path.name} cannot be read: {error!r}", field=path.name) from error


def _write_files(folder: Path, version: int, files: Mapping[str, bytes]) -> None:
    """Leave a version's files in a folder of its own."""
    target = folder / f"v{version}"
    target.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(target / name, content)


def _read_files(folder: Path, version: int) -> dict[str, bytes]:
    """Read a version's files back."""
    return {name: (folder / f"v{version}" / name).read_bytes() for name in FILES}
