"""Every move of champion and canary, in order: written down before it is made, settled after.

A crash in between leaves an intent, which says what to finish; so the history has no gap.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Protocol, cast

from policies.versions import CANARY, CHAMPION, AliasMove, MoveKind

MAX_WORDS: Final = 500
MAX_INTERRUPTED: Final = 100
MS_PER_S: Final = 1000


class RecordState(StrEnum):
    """How far a record has come, in MLflow's words for a run."""

    INTENDED = "RUNNING"
    DONE = "FINISHED"
    ABANDONED = "KILLED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One entry of the history as it is stored.

    Attributes:
        record_id: Its name in the store.
        at_ms: When it was written, milliseconds since the epoch, UTC; orders the entries.
        words: What it says, by name.
    """

    record_id: str
    at_ms: int
    words: Mapping[str, str]


class RecordStore(Protocol):
    """Where entries are kept. Every method raises Unavailable while it is away."""

    def add_record(self, words: Mapping[str, str], *, title: str, at_ms: int) -> Record:
        """Write an entry, its state INTENDED."""

    def close_record(
        self, record_id: str, words: Mapping[str, str], *, state: RecordState, at_ms: int
    ) -> None:
        """Add words to an entry, then set its state."""

    def records(
        self, state: RecordState | None, *, limit: int, titled: str = ""
    ) -> Sequence[Record]:
        """List the entries in a state, or all, newest first, at most `limit`.

        Args:
            state: Which state; None takes all.
            limit: Most entries.
            titled: Only those whose title begins so.
        """


def way_to_champion(moves: Iterable[AliasMove]) -> list[int]:
    """List the champions that led to the present one, which is the last.

    A promotion goes on from where it stands; a rollback to a version on the way takes back all that
    came after it. So going back again and again never goes forward.

    Args:
        moves: The champion's moves, oldest first.
    """
    way: list[int] = []
    for move in moves:
        if move.kind == "rollback" and move.version in way:
            while way[-1] != move.version:
                way.pop()
        else:
            way.append(move.version)
    return way


def champion_before(way: Sequence[int], *, quarantined: Collection[int]) -> int | None:
    """Return the last champion before the present one that may serve, None where there is none.

    >>> champion_before([1, 2, 3], quarantined={2})
    1
    """
    fit = (v for v in reversed(way[:-1]) if v != way[-1] and v not in quarantined)
    return next(fit, None)


def unmoved(version: int, *, who: str, at: str, kind: MoveKind) -> AliasMove:
    """Say that a version was to be made champion that is it already."""
    return AliasMove(
        alias=CHAMPION,
        version=version,
        previous=version,
        who=who,
        why="nothing to do: it is the champion already",
        at=at,
        kind=kind,
        moved=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A move that is written down, but not known to be done.

    Attributes:
        record_id: The entry that holds it.
        move: What is to happen.
    """

    record_id: str
    move: AliasMove


class AliasHistory:
    """The ordered list of moves.

    Args:
        store: Where the entries are kept.
        clock: Seconds since the epoch, UTC.
    """

    def __init__(self, store: RecordStore, *, clock: Callable[[], float]) -> None:
        self._store, self._clock = store, clock
        newest = store.records(None, limit=1)
        self._last_ms = newest[0].at_ms if newest else 0

    def intend(
        self,
        version: int,
        *,
        previous: int | None,
        who: str,
        why: str,
        kind: MoveKind,
        alias: str = CHAMPION,
    ) -> Intent:
        """Write down a move of an alias before it is made."""
        words = {"version": str(version), "who": who[:MAX_WORDS], "why": why[:MAX_WORDS]}
        words |= {"kind": kind, "alias": alias}
        if previous is not None:
            words["previous"] = str(previous)
        title = f"{alias}: {previous} to {None if kind == 'canary_ended' else version}"
        return _as_intent(self._store.add_record(words, title=title, at_ms=self._next_ms()))

    def settle(self, intent: Intent, *, swapped: int, waiting: int) -> AliasMove:
        """Note that a move was made, and how many replicas followed; return it."""
        words = {"replicas_swapped": str(swapped), "replicas_waiting": str(waiting)}
        self._close(intent, words, state=RecordState.DONE)
        return replace(intent.move, replicas_swapped=swapped, replicas_waiting=waiting)

    def abandon(self, intent: Intent) -> None:
        """Note that a move was never made."""
        self._close(intent, {}, state=RecordState.ABANDONED)

    def interrupted(self) -> list[Intent]:
        """List the moves that a crash left between intent and settlement, oldest first."""
        found = self._store.records(RecordState.INTENDED, limit=MAX_INTERRUPTED)
        return [_as_intent(record) for record in reversed(found)]

    def moves(self, limit: int, *, alias: str = CHAMPION) -> list[AliasMove]:
        """List the moves of an alias that were made, newest first, at most `limit`."""
        found = self._store.records(RecordState.DONE, limit=limit, titled=f"{alias}:")
        return [_as_intent(record).move for record in found]

    def canary(self) -> int | None:
        """Return the version on trial, as the entries tell: a move of the champion ends a trial."""
        trials = self.moves(1, alias=CANARY)
        if not trials or trials[0].kind == "canary_ended":
            return None
        moved = self.moves(1)
        # Entries are never of the same moment.
        return None if moved and moved[0].at > trials[0].at else trials[0].version

    def _close(self, intent: Intent, words: Mapping[str, str], *, state: RecordState) -> None:
        self._store.close_record(intent.record_id, words, state=state, at_ms=self._now_ms())

    def _now_ms(self) -> int:
        return int(self._clock() * MS_PER_S)

    def _next_ms(self) -> int:
        """Return the time of now, but after every entry so far: a clock set back keeps order."""
        self._last_ms = max(self._now_ms(), self._last_ms + 1)
        return self._last_ms


def iso(at_ms: int) -> str:
    """Write milliseconds since the epoch as ISO 8601, UTC.

    >>> iso(0)
    '1970-01-01T00:00:00.000+00:00'
    """
    return datetime.fromtimestamp(at_ms / MS_PER_S, tz=UTC).isoformat(timespec="milliseconds")


def _as_intent(record: Record) -> Intent:
    """Read an entry back."""
    words = record.words
    move = AliasMove(
        # Entries of before there were trials in the history are the champion's.
        alias=words.get("alias", CHAMPION),
        version=int(words["version"]),
        previous=int(words["previous"]) if "previous" in words else None,
        who=words["who"],
        why=words["why"],
        at=iso(record.at_ms),
        # Entries of before there were kinds are promotions.
        kind=cast(MoveKind, words.get("kind", "promotion")),
        replicas_swapped=int(words.get("replicas_swapped", 0)),
        replicas_waiting=int(words.get("replicas_waiting", 0)),
    )
    return Intent(record_id=record.record_id, move=move)
