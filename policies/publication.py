"""What the publisher pushes and every replica holds: champion, canary and prices, as one set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from policies.arms import PriceTable
from policies.artifact import FILES, PolicyArtifact
from policies.errors import ArtifactError, InvalidRequest
from policies.storage import Folder, open_folder

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


def write_pointer(place: str | Path, publication: Publication) -> None:
    """Leave a publication in a folder or object store: artifacts first, then the pointer to them.

    Raises:
        OSError: It cannot be written; the pointer names what it named before.
    """
    folder, canary = open_folder(place), publication.canary
    contents = _named(publication.version, publication.files)
    if canary is not None:
        contents |= _named(canary.version, canary.files)
    # At once: in an object store each file is a round trip, and replicas wait for the pointer.
    with ThreadPoolExecutor(max_workers=len(contents)) as pool:
        list(pool.map(folder.write, contents.keys(), contents.values()))
    pointer: dict[str, Any] = {
        "revision": publication.revision,
        "version": publication.version,
        "folder": f"v{publication.version}",  # read by releases before there were canaries
        "canary": None if canary is None else {"version": canary.version, "share": canary.share},
        "prices": publication.prices.to_json(),
        "published_at": publication.published_at,
    }
    folder.write(POINTER_FILE, json.dumps(pointer, sort_keys=True).encode())


def read_pointer(place: str | Path) -> Publication | None:
    """Read the publication last left in a folder or object store; None where there never was one.

    Raises:
        ArtifactError: The pointer or what it names is damaged, or the store is away.
    """
    folder = open_folder(place)
    try:
        content = folder.read(POINTER_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(error) from error
    try:
        pointer = json.loads(content)
        # Left out by releases before there were canaries.
        canary = pointer.get("canary")
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
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise _unreadable(error) from error


def forget_versions(place: str | Path, *, keep: int) -> None:
    """Drop the folders published longest ago, all but the newest `keep`; raises OSError."""
    folder = open_folder(place)
    ages = {name: age for name, age in folder.ages().items() if name.startswith("v")}
    for name in sorted(ages, key=lambda name: ages[name], reverse=True)[keep:]:
        folder.remove(name)


def _named(version: int, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Put a version's files in a folder of its own."""
    return {f"v{version}/{name}": content for name, content in files.items()}


def _read_files(folder: Folder, version: int) -> dict[str, bytes]:
    """Read a version's files back."""
    return {name: folder.read(f"v{version}/{name}") for name in FILES}


def _unreadable(error: Exception) -> ArtifactError:
    """Say that the pointer, or what it names, is of no use."""
    return ArtifactError(f"{POINTER_FILE} cannot be read: {error!r}", field=POINTER_FILE)
