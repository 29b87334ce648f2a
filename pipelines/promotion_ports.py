"""What promotion stands on: where versions are kept, who brings them to the replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipelines.history import RecordStore
from policies.publication import Canary
from policies.versions import Rollout


class VersionStore(RecordStore, Protocol):
    """Where versions and aliases are kept. Every method raises Unavailable while it is away."""

    def files(self, version: int) -> dict[str, bytes]:
        """Read a version's files; raises UnknownVersion, or ArtifactError where one is gone."""

    def point(self, alias: str, version: int) -> None:
        """Point an alias at a version."""

    def unpoint(self, alias: str) -> None:
        """Remove an alias; do nothing where there is none."""

    def quarantined(self) -> frozenset[int]:
        """Return the versions that may not serve."""

    def pointed_at(self, alias: str) -> int | None:
        """Return the version an alias points at, None where there is no such alias."""


class PublisherPort(Protocol):
    """Whoever brings a version to the replicas. Every method raises Unavailable."""

    def publish(
        self, version: int, files: Mapping[str, bytes], canary: Canary | None = None
    ) -> int:
        """Announce a version, and one on trial beside it; return the revision."""

    def rollout(self, revision: int, timeout_s: float) -> Rollout:
        """Wait up to `timeout_s` seconds for the replicas."""

    def deciding(self) -> tuple[int | None, int | None]:
        """Return the version announced last, and the one on trial beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionStatus:
    """What serves, and what is refused.

    Attributes:
        champion: The version that serves, None before the first promotion.
        canary: The version on trial beside it, None where there is none.
        refused: Why an alias is not obeyed, None where both are.
    """

    champion: int | None
    canary: int | None
    refused: str | None
