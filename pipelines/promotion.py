"""Which versions decide: moves champion and canary, keeps their history, tells the replicas.

Knows nothing of MLflow; versions and aliases are a store that is handed in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pipelines.events import EventSink
from pipelines.history import (
    MS_PER_S,
    AliasHistory,
    Intent,
    champion_before,
    iso,
    unmoved,
    way_to_champion,
)
from pipelines.promotion_ports import PromotionStatus, PublisherPort, VersionStore
from pipelines.servable import DEFAULT_CANARY_SHARE, Servable
from policies.errors import ArtifactError, Conflict, Unavailable, UnknownVersion
from policies.events import EventKind
from policies.publication import Canary
from policies.versions import CANARY, CHAMPION, PREVIOUS, AliasMove, MoveKind

logger = logging.getLogger(__name__)

# A rollback goes no further back than this.
MOVES_LOOKED_AT: Final = 500
FOREIGN: Final = "mlflow"
# What a rollback promises: all replicas within a second.
ROLLOUT_WAIT_S: Final = 1.0


class Promotion:
    """Moves the champion. Not for several threads at once.

    Args:
        store: Where versions and aliases are kept.
        publisher: Brings a new champion to the replicas.
        clock: Seconds since the epoch, UTC.
        events: Told of every move, and of an alias that is not obeyed.
        encoder_id: What the replicas encode with: a version of another encoder cannot serve. None
            lets every version through.
        canary_share: Share of the requests that a version on trial decides, in (0, 1).

    Raises:
        Unavailable: The store is away; by every method alike.
    """

    def __init__(
        self,
        store: VersionStore,
        *,
        publisher: PublisherPort,
        clock: Callable[[], float],
        events: EventSink,
        encoder_id: str | None = None,
        canary_share: float = DEFAULT_CANARY_SHARE,
    ) -> None:
        """Settle what a crash left half done, then read back what serves."""
        self._store, self._publisher, self._clock = store, publisher, clock
        self._events = events
        self._servable = Servable(store, encoder_id=encoder_id, canary_share=canary_share)
        self._history = AliasHistory(store, clock=clock)
        self._refused: str | None = None
        last = self._history.moves(limit=1)
        self._champion = last[0].version if last else None
        self._canary = self._history.canary()
        self._unsettled = True
        self._settle_interrupted()

    def promote(
        self, version: int, *, who: str, why: str, instead_of: int | None = None
    ) -> AliasMove:
        """Make a version the champion and bring it to the replicas.

        `previous` then names where a rollback goes.

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
        return self._promote(version, who=who, why=why, instead_of=instead_of, kind="promotion")

    def _promote(
        self, version: int, *, who: str, why: str, instead_of: int | None, kind: MoveKind
    ) -> AliasMove:
        """Do what `promote` says, as a move of some kind."""
        self._follow_alias()
        if instead_of is not None and instead_of != self._champion:
            raise Conflict(
                f"version {version} was judged against {instead_of}, but {self._champion} serves",
                field="instead_of",
                value=instead_of,
                allowed=str(self._champion),
            )
        files = self._servable.files(version)
        if version != self._champion:
            return self._move(version, files, who=who, why=why, kind=kind)
        if self._store.pointed_at(CHAMPION) != version:
            self._store.point(CHAMPION, version)
        return unmoved(version, who=who, at=iso(int(self._clock() * MS_PER_S)), kind=kind)

    def rollback(self, *, to: int | None, who: str, why: str) -> AliasMove:
        """Make an older version the champion again.

        Asked again it goes further back, along the champions that led here, past those in
        quarantine; `previous` says where to. To go forward, promote.

        Args:
            to: The version's number; None takes the champion before the present one.
            who: Who decides, for the history.
            why: Their reason, for the history.

        Raises:
            UnknownVersion: There is no such version, or no previous one.
            ArtifactError: Its files are damaged; the champion stays.
        """
        self._follow_alias()
        target = self._before(self._way()) if to is None else to
        if target is None:
            raise UnknownVersion(
                "there is no previous champion to go back to",
                field="version",
                allowed="a version number",
            )
        return self._promote(target, who=who, why=why, instead_of=None, kind="rollback")

    def start_canary(self, version: int, *, instead_of: int, who: str, why: str) -> None:
        """Let a version decide for its share of the requests, until it ends or is promoted.

        Args:
            version: The version's number.
            instead_of: The champion that it is compared with.
            who: Who decides, for the history.
            why: Their reason, for the history.

        Raises:
            Conflict: Another version serves than that, or the version itself serves.
            UnknownVersion: There is no such version.
            ArtifactError: Its files are damaged, or of another encoder than the champion's.
        """
        self._follow_alias()
        if instead_of != self._champion or version == self._champion:
            raise Conflict(
                f"version {version} is to be tried beside {instead_of}; {self._champion} serves",
                field="instead_of",
                value=instead_of,
                allowed=str(self._champion),
            )
        files = self._servable.files(self._champion)
        canary = self._servable.canary(version, files)
        intent = self._intend_trial("canary_started", version, who=who, why=why)
        self._store.point(CANARY, version)
        self._canary = version
        logger.info("version %d on trial beside %d", version, self._champion)
        self._settle_trial(intent, *self._roll_out(self._champion, files, canary))

    def stop_canary(self, *, who: str, why: str) -> None:
        """Let the champion decide alone again."""
        self._follow_alias()
        intent = None
        if self._canary is not None:
            intent = self._intend_trial("canary_ended", self._canary, who=who, why=why)
        self._store.unpoint(CANARY)
        self._canary = None
        if self._champion is not None:
            files = self._store.files(self._champion)
            swapped, waiting = self._roll_out(self._champion, files)
            if intent is not None:
                self._settle_trial(intent, swapped, waiting)

    def champion(self) -> int | None:
        """Return the version that serves, None before the first promotion."""
        return self._champion

    def history(self, limit: int) -> list[AliasMove]:
        """List the moves of the champion, newest first, at most `limit`."""
        return self._history.moves(limit)

    def trials(self, limit: int) -> list[AliasMove]:
        """List beginnings and ends of canaries, newest first, at most `limit`.

        A move of the champion ends a trial, too; that is in its own history alone.
        """
        return self._history.moves(limit, alias=CANARY)

    def status(self) -> PromotionStatus:
        """Say what serves, and whether the alias is obeyed."""
        return PromotionStatus(champion=self._champion, canary=self._canary, refused=self._refused)

    def watch(self) -> None:
        """Obey an alias moved by others, and bring the publisher up to date; call it often."""
        self._follow_alias()
        self._follow_canary()
        champion = self._champion
        if champion is not None and self._publisher.deciding() != (champion, self._canary):
            files = self._store.files(champion)
            canary = None if self._canary is None else self._servable.canary(self._canary, files)
            self._publisher.publish(champion, files, canary)

    def _follow_canary(self) -> None:
        """Take up a canary that was named or ended with MLflow's own client, if it can serve."""
        version = self._store.pointed_at(CANARY)
        if version == self._canary or self._champion is None:
            return
        if version is not None:
            try:
                self._servable.canary(version, self._store.files(self._champion))
            except (UnknownVersion, ArtifactError) as error:
                self._refuse(f"{CANARY} points at {version}: {error}", version=version)
                version = None
        if version != self._canary:
            kind: MoveKind = "canary_ended" if version is None else "canary_started"
            named = self._canary if version is None else version
            assert named is not None
            why = f"alias {CANARY} moved with MLflow's own client or page"
            intent = self._intend_trial(kind, named, who=FOREIGN, why=why)
            self._canary = version
            self._settle_trial(intent, 0, 0)

    def _intend_trial(self, kind: MoveKind, version: int, *, who: str, why: str) -> Intent:
        """Write down that a trial is to begin or to end."""
        self._unsettled = True
        before = self._canary
        return self._history.intend(
            version, previous=before, who=who, why=why, kind=kind, alias=CANARY
        )

    def _settle_trial(self, intent: Intent, swapped: int, waiting: int) -> None:
        """Note that it did."""
        self._history.settle(intent, swapped=swapped, waiting=waiting)
        self._unsettled = False

    def _refuse(self, reason: str, *, version: int | None) -> None:
        """Say once why an alias is not obeyed."""
        if reason != self._refused:
            logger.error("alias not obeyed, version %s stays: %s", self._champion, reason)
            self._events.emit(EventKind.ALIAS_REFUSED, who=FOREIGN, why=reason, version=version)
        self._refused = reason

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
            files = self._servable.files(version)
        except (UnknownVersion, ArtifactError) as error:
            self._refuse(f"{CHAMPION} points at {version}: {error}", version=version)
        else:
            why = "alias moved with MLflow's own client or page"
            self._move(version, files, who=FOREIGN, why=why, kind="alias_followed")

    def _move(
        self, version: int, files: Mapping[str, bytes], *, who: str, why: str, kind: MoveKind
    ) -> AliasMove:
        """Write the intent, move the aliases, publish, settle, tell."""
        self._unsettled = True
        intent = self._history.intend(version, previous=self._champion, who=who, why=why, kind=kind)
        self._point(intent.move)
        swapped, waiting = self._roll_out(version, files)
        logger.info("champion %s to %d by %s", intent.move.previous, version, who)
        move = self._history.settle(intent, swapped=swapped, waiting=waiting)
        self._unsettled = False
        self._tell(move)
        return move

    def _tell(self, move: AliasMove) -> None:
        """Make a move an event."""
        self._events.emit(
            EventKind(move.kind),
            who=move.who,
            why=move.why,
            version=move.version,
            previous=move.previous,
            replicas_swapped=move.replicas_swapped,
            replicas_waiting=move.replicas_waiting,
        )

    def _point(self, move: AliasMove) -> None:
        """Point the aliases where a move says; doing it twice changes nothing.

        A trial ends with the champion it was a trial against.
        """
        self._store.unpoint(CANARY)
        self._store.point(CHAMPION, move.version)
        self._champion, self._canary, self._refused = move.version, None, None
        before = self._before(way_to_champion([*self._made(), move]))
        if before is None:
            self._store.unpoint(PREVIOUS)
        else:
            self._store.point(PREVIOUS, before)

    def _made(self) -> list[AliasMove]:
        """List the moves that a rollback looks at, oldest first."""
        return self._history.moves(limit=MOVES_LOOKED_AT)[::-1]

    def _way(self) -> list[int]:
        """List the champions that led to the present one."""
        return way_to_champion(self._made())

    def _before(self, way: Sequence[int]) -> int | None:
        """Return where a rollback goes."""
        return champion_before(way, quarantined=self._store.quarantined())

    def _roll_out(
        self, version: int, files: Mapping[str, bytes], canary: Canary | None = None
    ) -> tuple[int, int]:
        """Bring a version to the replicas; return how many have it and how many not yet."""
        try:
            revision = self._publisher.publish(version, files, canary)
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
            if intent.move.alias == CANARY:
                self._settle_interrupted_trial(intent)
            elif self._store.pointed_at(CHAMPION) == intent.move.version:
                self._point(intent.move)
                self._tell(self._history.settle(intent, swapped=0, waiting=0))
            else:
                self._history.abandon(intent)
        self._unsettled = False

    def _settle_interrupted_trial(self, intent: Intent) -> None:
        """Note that a trial began or ended, where the alias had moved; else that it did not."""
        named = None if intent.move.kind == "canary_ended" else intent.move.version
        if self._store.pointed_at(CANARY) == named:
            self._canary = named
            self._history.settle(intent, swapped=0, waiting=0)
        else:
            self._history.abandon(intent)
