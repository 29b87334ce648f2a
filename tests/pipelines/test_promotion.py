"""Moves of the champion on a real registry: order, history, damage, and crashes in between."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from event_lists import EventList
from registries import RegistrySetup, small_artifact

from pipelines.history import AliasHistory
from pipelines.promotion import Promotion
from pipelines.registry import MODEL_NAME, Registry
from policies.errors import ArtifactError, Conflict, EncoderMismatch, Unavailable, UnknownVersion
from policies.events import EventKind
from policies.versions import CHAMPION, PREVIOUS, QUARANTINED

PICKLE_OPCODES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@pytest.fixture
def setup(registry_dir: Path) -> RegistrySetup:
    """Three versions, nothing promoted."""
    return RegistrySetup(registry_dir)


def test_promotion_moves_both_aliases_and_publishes(setup: RegistrySetup) -> None:
    first = setup.promotion.promote(1, who="ann", why="first")
    second = setup.promotion.promote(2, who="bob", why="better")

    assert (first.previous, second.previous) == (None, 1)
    assert (second.replicas_swapped, second.replicas_waiting) == (2, 0)
    assert setup.aliases() == {CHAMPION: 2, PREVIOUS: 1}
    assert setup.publisher.published == [1, 2]
    assert setup.promotion.history(limit=10) == [second, first]
    assert [(event.kind, event.version, event.who) for event in setup.events] == [
        (EventKind.PROMOTION, 1, "ann"),
        (EventKind.PROMOTION, 2, "bob"),
    ]


def test_history_keeps_its_order_when_the_clock_is_set_back(setup: RegistrySetup) -> None:
    for version in (1, 2, 3):
        setup.promotion.promote(version, who="ann", why="")
        setup.clock.now -= 3600.0

    moves = setup.restarted().history(limit=10)

    assert [move.version for move in moves] == [3, 2, 1]
    assert moves == sorted(moves, key=lambda move: move.at, reverse=True)


def test_promoting_the_champion_does_nothing_and_says_so(setup: RegistrySetup) -> None:
    setup.promotion.promote(1, who="ann", why="")

    move = setup.promotion.promote(1, who="ann", why="again")

    assert not move.moved
    assert "already" in move.why
    assert setup.publisher.published == [1]
    assert len(setup.promotion.history(limit=10)) == 1


def test_rollback_again_and_again_walks_back_and_never_forward(setup: RegistrySetup) -> None:
    for version in (1, 2, 3):
        setup.promotion.promote(version, who="ann", why="")

    moves = [setup.promotion.rollback(to=None, who="ann", why="worse") for _ in range(2)]

    assert [(move.version, move.previous, move.kind) for move in moves] == [
        (2, 3, "rollback"),
        (1, 2, "rollback"),
    ]
    assert setup.aliases() == {CHAMPION: 1, PREVIOUS: None}
    with pytest.raises(UnknownVersion, match="no previous champion"):
        setup.promotion.rollback(to=None, who="ann", why="")
    assert setup.events.kinds()[-2:] == [EventKind.ROLLBACK] * 2


def test_the_previous_alias_says_where_a_rollback_goes(setup: RegistrySetup) -> None:
    for version in (1, 2, 3):
        setup.promotion.promote(version, who="ann", why="")
    setup.promotion.rollback(to=None, who="ann", why="")
    named = setup.aliases()[PREVIOUS]

    assert setup.promotion.rollback(to=None, who="ann", why="").version == named == 1


def test_rollback_passes_over_versions_in_quarantine(setup: RegistrySetup) -> None:
    for version in (1, 2, 3):
        setup.promotion.promote(version, who="ann", why="")
    setup.registry.tag(2, {QUARANTINED: "true"})

    assert setup.promotion.rollback(to=None, who="ann", why="").version == 1


def test_a_promotion_after_a_rollback_goes_back_to_where_it_came_from(
    setup: RegistrySetup,
) -> None:
    for version in (1, 2):
        setup.promotion.promote(version, who="ann", why="")
    setup.promotion.rollback(to=None, who="ann", why="")
    setup.promotion.promote(3, who="ann", why="")

    assert setup.restarted().rollback(to=None, who="ann", why="").version == 1


def test_a_version_of_another_encoder_is_refused_with_the_way_out(setup: RegistrySetup) -> None:
    foreign = setup.registry.register(small_artifact(4.0, encoder_id="another"), {}, {})
    promotion = setup.restarted(encoder_id="test-encoder")
    promotion.promote(1, who="ann", why="")

    for move in (promotion.promote, lambda v, **w: promotion.rollback(to=v, **w)):
        with pytest.raises(EncoderMismatch, match="start the service with encoder_dir") as refused:
            move(foreign, who="ann", why="")
        assert refused.value.allowed == "a version of encoder test-encoder"
    setup.foreign().set_registered_model_alias(MODEL_NAME, CHAMPION, str(foreign))
    promotion.watch()

    assert promotion.champion() == 1
    assert setup.publisher.published == [1]


def test_rollback_to_a_number_leaves_the_old_champion_as_previous(setup: RegistrySetup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.promotion.promote(2, who="ann", why="")

    setup.promotion.rollback(to=3, who="ann", why="known good")

    assert setup.aliases() == {CHAMPION: 3, PREVIOUS: 2}


def test_rollback_without_a_previous_champion_is_refused(setup: RegistrySetup) -> None:
    setup.promotion.promote(1, who="ann", why="")

    with pytest.raises(UnknownVersion, match="no previous champion"):
        setup.promotion.rollback(to=None, who="ann", why="")


def test_an_alias_moved_with_mlflows_client_is_obeyed(setup: RegistrySetup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.foreign().set_registered_model_alias(MODEL_NAME, CHAMPION, "3")

    setup.promotion.watch()

    assert setup.publisher.published == [1, 3]
    assert setup.promotion.history(limit=1)[0].who == "mlflow"
    assert setup.events.kinds() == [EventKind.PROMOTION, EventKind.ALIAS_FOLLOWED]
    assert setup.aliases() == {CHAMPION: 3, PREVIOUS: 1}


def test_a_damaged_version_is_never_promoted(setup: RegistrySetup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.damage(2)

    with pytest.raises(ArtifactError):
        setup.promotion.promote(2, who="ann", why="")

    assert setup.aliases() == {CHAMPION: 1, PREVIOUS: None}


def test_an_alias_on_a_damaged_version_is_not_obeyed_and_status_says_so(
    setup: RegistrySetup,
) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.damage(2)
    setup.foreign().set_registered_model_alias(MODEL_NAME, CHAMPION, "2")

    setup.promotion.watch()

    assert setup.publisher.published == [1]
    assert setup.promotion.champion() == 1
    refused = setup.promotion.status().refused
    assert refused is not None
    assert "SHA-256" in refused
    setup.promotion.watch()
    assert setup.events.kinds() == [EventKind.PROMOTION, EventKind.ALIAS_REFUSED]


def test_an_alias_that_was_removed_leaves_the_champion(setup: RegistrySetup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.foreign().delete_registered_model_alias(MODEL_NAME, CHAMPION)

    setup.promotion.watch()

    assert setup.promotion.champion() == 1
    assert setup.promotion.status().refused is not None
    setup.promotion.promote(1, who="ann", why="put it back")
    assert setup.aliases()[CHAMPION] == 1


def test_the_champion_is_published_at_start_where_the_publisher_has_another(
    setup: RegistrySetup,
) -> None:
    setup.promotion.promote(2, who="ann", why="")
    setup.publisher.published.append(1)

    setup.restarted().watch()

    assert setup.publisher.published[-1] == 2


def test_a_publisher_that_is_away_gets_the_champion_later(setup: RegistrySetup) -> None:
    setup.publisher.away = True
    move = setup.promotion.promote(2, who="ann", why="")
    setup.publisher.away = False

    setup.promotion.watch()

    assert (move.replicas_swapped, move.replicas_waiting) == (0, 0)
    assert setup.publisher.published == [2]


def test_a_crash_before_the_alias_moved_leaves_no_move(setup: RegistrySetup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    AliasHistory(setup.registry, clock=setup.clock).intend(
        2, previous=1, who="ann", why="", kind="promotion"
    )

    restarted = setup.restarted()

    assert restarted.champion() == 1
    assert [move.version for move in restarted.history(limit=10)] == [1]
    assert setup.aliases() == {CHAMPION: 1, PREVIOUS: None}


def test_a_crash_after_the_alias_moved_leaves_no_gap(setup: RegistrySetup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    AliasHistory(setup.registry, clock=setup.clock).intend(
        2, previous=1, who="bob", why="", kind="promotion"
    )
    setup.registry.point(CHAMPION, 2)

    restarted = setup.restarted()
    restarted.watch()

    moves = restarted.history(limit=10)
    assert [(move.version, move.previous, move.who) for move in moves] == [
        (2, 1, "bob"),
        (1, None, "ann"),
    ]
    assert setup.aliases() == {CHAMPION: 2, PREVIOUS: 1}
    assert setup.publisher.published == [1, 2]


def test_a_registry_that_is_away_says_so_and_comes_back(setup: RegistrySetup) -> None:
    """The aliases' table is taken away under the running registry, then put back."""
    setup.promotion.promote(1, who="ann", why="")
    _rename_table(setup.folder, "registered_model_aliases", "gone")
    with pytest.raises(Unavailable):
        setup.promotion.promote(2, who="ann", why="")
    with pytest.raises(Unavailable):
        setup.promotion.watch()
    _rename_table(setup.folder, "gone", "registered_model_aliases")

    setup.promotion.promote(2, who="ann", why="")

    assert [move.version for move in setup.promotion.history(limit=10)] == [2, 1]


def test_a_failure_between_two_steps_is_settled_by_the_next_call(setup: RegistrySetup) -> None:
    """The move is written down, then the alias cannot be moved."""
    setup.promotion.promote(1, who="ann", why="")
    failing = _FailsOnce(setup.registry, alias=CHAMPION)
    promotion = Promotion(failing, publisher=setup.publisher, clock=setup.clock, events=EventList())
    with pytest.raises(Unavailable):
        promotion.promote(2, who="ann", why="")

    promotion.promote(3, who="ann", why="")

    moves = promotion.history(limit=10)
    assert [(move.version, move.previous) for move in moves] == [(3, 1), (1, None)]


class _FailsOnce:
    """A registry whose store goes away the first time that an alias is to be moved."""

    def __init__(self, registry: Registry, *, alias: str) -> None:
        self._alias: str | None = alias
        self._registry = registry
        self.files, self.pointed_at = registry.files, registry.pointed_at
        self.add_record, self.close_record = registry.add_record, registry.close_record
        self.records, self.unpoint = registry.records, registry.unpoint
        self.quarantined = registry.quarantined

    def point(self, alias: str, version: int) -> None:
        """Fail once, then do it."""
        if alias == self._alias:
            self._alias = None
            raise Unavailable("registry is away")
        self._registry.point(alias, version)


def _rename_table(folder: Path, name: str, to: str) -> None:
    """Rename a table of the MLflow database from outside."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        database.execute(f"ALTER TABLE {name} RENAME TO {to}")
        database.commit()


def test_a_verdict_about_another_champion_promotes_nothing(setup: RegistrySetup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.promotion.promote(2, who="trainer", why="better", instead_of=1)

    with pytest.raises(Conflict, match="judged against 1, but 2 serves"):
        setup.promotion.promote(3, who="trainer", why="better", instead_of=1)

    assert setup.promotion.champion() == 2
