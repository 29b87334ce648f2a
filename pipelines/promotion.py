"""Which version serves: moves the champion's alias, keeps its history, brings it to the replicas.

Knows nothing of MLflow; versions and aliases are a store that is handed in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from pipelines.history import MS_PER_S, AliasHistory, RecordStore, iso
from policies.artifact import PolicyArtifact
from policies.errors import ArtifactError, Conflict, Unavailable, UnknownVersion
from policies.versions import CHAMPION, PREVIOUS, AliasMove, Rollout

logger = logging.getLogger(__name__)

FOREIGN: Final = "mlflow"
# What a rollback promises: all replicas within a second.
ROLLOUT_WAIT_S: Final = 1.0


class VersionStore(RecordStore, Protocol):
    """Where versions and aliases are kept. Every method raises Unavailable while it is away."""

    def files(self, version: int) -> dict[str, bytes]:
        """Read a version's files; raises UnknownVersion, or ArtifactError where one is gone."""

    def point(self, alias: str, version: int) -> None:
        """Point an alias at a version."""

    def pointed_at(self, alias: str) -> int | None:
        """Return the version an alias points at, None where there is no such alias."""


class PublisherPort(Protocol):
    """Whoever brings a version to the replicas. Every method raises Unavailable."""

    def publish(self, version: int, files: Mapping[str, bytes]) -> int:
        """Announce a version; return the revision."""

    def rollout(self, revision: int, timeout_s: float) -> Rollout:
        """Wait up to `timeout_s` seconds for the replicas."""

    def version(self) -> int | None:
        """Return the version announced last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionStatus:
    """What serves, and what is refused.

    Attributes:
        champion: The version that serves, None before the first promotion.
        refused: Why the alias `champion` is not obeyed, None where it is.
    """

    champion: int | None
    refused: str | None


class Promotion:
    """Moves the champion. Not for several threads at once.

    Args:
        store: Where versions and aliases are kept.
        publisher: Brings a new champion to the replicas.
        clock: Seconds since the epoch, UTC.

    Raises:
        Unavailable: The store is away; by every method alike.
    """

    def __init__(
        self, store: VersionStore, *, publisher: PublisherPort, clock: Callable[[], float]
    ) -> None:
        """Settle what a crash left half done, then read back what serves."""
        self._store, self._publisher, self._clock = store, publisher, clock
        self._history = AliasHistory(store, clock=clock)
        self._refused: str | None = None
        last = self._history.moves(limit=1)
        self._champion = last[0].version if last else None
        self._unsettled = True
        self._settle_interrupted()

    def promote(
        self, version: int, *, who: str, why: str, instead_of: int | None = None
    ) -> AliasMove:
        """Make a version the champion, the old one `previous`, and bring it to the replicas.

        Promoting the champion does nothing and says so: `moved` is False.

        Args:
            version: The version's number.
            who: Who decides, for the history.
            why: Their reason, for the history.
            instead_of: The champion that the version was judged against; None compares nothing.

        Raises:
            Conflict: Another version serves than the one it was judged against.
            UnknownVersion: There is no such version.
            ArtifactError: Its files are damaged; the champion stays.
        """
        self._follow_alias()
        if instead_of is not None and instead_of != self._champion:
            raise Conflict(
                f"version {version} was judged against {instead_of}, but {self._champion} serves",
                field="instead_of",
                value=instead_of,
                allowed=str(self._champion),
            )
        files = self._checked(version)
        if version != self._champion:
            return self._move(version, files, who=who, why=why)
        if self._store.pointed_at(CHAMPION) != version:
            self._store.point(CHAMPION, version)
        return AliasMove(
            alias=CHAMPION,
            version=version,
            previous=version,
            who=who,
            why="nothing to do: it is the champion already",
            at=iso(int(self._clock() * MS_PER_S)),
            moved=False,
        )

    def rollback(self, *, to: int | None, who: str, why: str) -> AliasMove:
        """Make an older version the champion again; the one left becomes `previous`.

        Args:
            to: The version's number; None takes where `previous` points.
            who: Who decides, for the history.
            why: Their reason, for the history.

        Raises:
            UnknownVersion: There is no such version, or no previous one.
            ArtifactError: Its files are damaged; the champion stays.
        """
        self._follow_alias()
        target = self._store.pointed_at(PREVIOUS) if to is None else to
        if target is None:
            raise UnknownVersion(
                "there is no previous champion to go back to",
                field="version",
                allowed="a version number",
            )
        return self.promote(target, who=who, why=why)

    def champion(self) -> int | None:
        """Return the version that serves, None before the first promotion."""
        return self._champion

    def history(self, limit: int) -> list[AliasMove]:
        """List the moves of the champion, newest first, at most `limit`."""
        return self._history.moves(limit)

    def status(self) -> PromotionStatus:
        """Say what serves, and whether the alias is obeyed."""
        return PromotionStatus(champion=self._champion, refused=self._refused)

    def watch(self) -> None:
        """Obey an alias moved by others, and bring the publisher up to date; call it often."""
        self._follow_alias()
        if self._champion is not None and self._publisher.version() != self._champion:
            self._publisher.publish(self._champion, self._store.files(self._champion))

    def _follow_alias(self) -> None:
        """Take up a move that was made with MLflow's own client, if the version can serve."""
        self._settle_interrupted()
        version = self._store.pointed_at(CHAMPION)
        if version == self._champion:
            self._refused = None
            return
        try:
            if version is None:
                raise UnknownVersion("the alias is gone", field="version")
            files = self._checked(version)
        except (UnknownVersion, ArtifactError) as error:
            reason = f"{CHAMPION} points at {version}: {error}"
            if reason != self._refused:
                logger.error("alias not obeyed, version %s stays: %s", self._champion, reason)
            self._refused = reason
        else:
            why = "alias moved with MLflow's own client or page"
            self._move(version, files, who=FOREIGN, why=why)

    def _checked(self, version: int) -> dict[str, bytes]:
        """Read the files of a version that can serve; raises UnknownVersion or ArtifactError."""
        files = self._store.files(version)
        PolicyArtifact.from_files(files)
        return files

    def _move(self, version: int, files: Mapping[str, bytes], *, who: str, why: str) -> AliasMove:
        """Write the intent, move the aliases, publish, settle."""
        self._unsettled = True
        intent = self._history.intend(version, previous=self._champion, who=who, why=why)
        self._point(intent.move)
        swapped, waiting = self._roll_out(version, files)
        logger.info("champion %s to %d by %s", intent.move.previous, version, who)
        move = self._history.settle(intent, swapped=swapped, waiting=waiting)
        self._unsettled = False
        return move

    def _point(self, move: AliasMove) -> None:
        """Point the aliases where a move says; doing it twice changes nothing."""
        self._store.point(CHAMPION, move.version)
        self._champion, self._refused = move.version, None
        if move.previous is not None:
            self._store.point(PREVIOUS, move.previous)

    def _roll_out(self, version: int, files: Mapping[str, bytes]) -> tuple[int, int]:
        """Bring a version to the replicas; return how many have it and how many not yet."""
        try:
            revision = self._publisher.publish(version, files)
            rollout = self._publisher.rollout(revision, ROLLOUT_WAIT_S)
        except Unavailable as error:
            logger.warning("version %d not published yet, `watch` will: %s", version, error)
            return 0, 0
        return len(rollout.swapped), len(rollout.waiting)

    def _settle_interrupted(self) -> None:
        """Finish moves that were cut off after the alias had moved; drop those before it."""
        if not self._unsettled:
            return
        for intent in self._history.interrupted():
            if self._store.pointed_at(CHAMPION) == intent.move.version:
                self._point(intent.move)
                self._history.settle(intent, swapped=0, waiting=0)
            else:
                self._history.abandon(intent)
        self._unsettled = False
