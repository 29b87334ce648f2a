"""What the publisher pushes and every replica holds: a champion and the prices, as one pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from policies.arms import PriceTable
from policies.artifact import FILES, PolicyArtifact, write_atomically
from policies.errors import ArtifactError

POINTER_FILE: Final = "champion.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """One state of the world for deciding.

    Attributes:
        revision: Grows with every publication, also after a rollback and over restarts.
        version: The policy version that decides from now on.
        files: The policy artifact's files by name.
        prices: The arms and what they charge.
        published_at: When, seconds since the epoch, UTC.
    """

    revision: int
    version: int
    files: Mapping[str, bytes]
    prices: PriceTable
    published_at: float

    def artifact(self) -> PolicyArtifact:
        """Read the policy; raises ArtifactError."""
        return PolicyArtifact.from_files(self.files)


def write_pointer(folder: Path, publication: Publication) -> None:
    """Leave a publication on disk: artifact folder first, then the pointer that names it."""
    target = folder / f"v{publication.version}"
    target.mkdir(parents=True, exist_ok=True)
    for name, content in publication.files.items():
        write_atomically(target / name, content)
    pointer: dict[str, Any] = {
        "revision": publication.revision,
        "version": publication.version,
        "folder": target.name,
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
        target = folder / pointer["folder"]
        files = {name: (target / name).read_bytes() for name in FILES}
        return Publication(
            revision=pointer["revision"],
            version=pointer["version"],
            files=files,
            prices=PriceTable.from_json(pointer["prices"]),
            published_at=pointer["published_at"],
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ArtifactError(f"{path.name} cannot be read: {error!r}", field=path.name) from error
