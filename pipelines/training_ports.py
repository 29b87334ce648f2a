"""What training stands on: where versions are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from policies.artifact import PolicyArtifact
from policies.versions import AliasMove, VersionInfo


class RegistryPort(Protocol):
    """Where versions are kept. Every method raises Unavailable."""

    def register(
        self, artifact: PolicyArtifact, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> int:
        """Store a version; return its number."""

    def challenge(self, version: int) -> None:
        """Point the alias `challenger` at a version."""

    def promote(self, version: int, *, who: str, why: str, instead_of: int | None) -> AliasMove:
        """Make a version the champion; raises Conflict where `instead_of` is not it any more."""

    def last_move(self) -> AliasMove | None:
        """Return the newest move of the champion."""

    def versions(self) -> list[VersionInfo]:
        """List versions, newest first."""

    def artifact(self, version: int) -> PolicyArtifact:
        """Read a version's policy; raises ArtifactError."""

    def champion(self) -> int | None:
        """Return the version that serves."""
