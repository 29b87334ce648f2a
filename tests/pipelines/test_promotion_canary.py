"""A version on trial: named, published beside the champion, ended, and not lost by a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from registries import RegistrySetup, small_artifact

from pipelines.registry import MODEL_NAME
from policies.errors import ArtifactError, Conflict
from policies.versions import CANARY


@pytest.fixture
def setup(registry_dir: Path) -> RegistrySetup:
    """Three versions, the first one serves."""
    setup = RegistrySetup(registry_dir)
    setup.promotion.promote(1, who="ann", why="first")
    return setup


def on_trial(setup: RegistrySetup) -> int | None:
    """Return the version that is published as canary."""
    return setup.publisher.deciding()[1]


def test_a_canary_is_published_beside_the_champion_and_ended(setup: RegistrySetup) -> None:
    setup.promotion.start_canary(2, instead_of=1, who="gate", why="test")
    assert setup.publisher.deciding() == (1, 2)
    assert setup.publisher.canary is not None
    assert setup.publisher.canary.share == 0.2
    assert setup.registry.pointed_at(CANARY) == 2
    assert setup.promotion.status().canary == 2

    setup.promotion.stop_canary(who="gate", why="over")
    assert setup.publisher.deciding() == (1, None)
    assert setup.registry.pointed_at(CANARY) is None


@pytest.mark.parametrize("promoted", [2, 3])
def test_any_promotion_ends_the_trial(setup: RegistrySetup, promoted: int) -> None:
    setup.promotion.start_canary(2, instead_of=1, who="gate", why="test")
    setup.promotion.promote(promoted, who="ann", why="")
    assert setup.publisher.deciding() == (promoted, None)
    assert setup.registry.pointed_at(CANARY) is None


def test_a_restart_keeps_the_canary_and_publishes_it_again(setup: RegistrySetup) -> None:
    setup.promotion.start_canary(2, instead_of=1, who="gate", why="test")
    setup.publisher.canary = None

    restarted = setup.restarted()
    restarted.watch()

    assert restarted.status().canary == 2
    assert on_trial(setup) == 2


def test_a_canary_named_or_ended_with_mlflows_client_is_obeyed(setup: RegistrySetup) -> None:
    setup.foreign().set_registered_model_alias(MODEL_NAME, CANARY, "3")
    setup.promotion.watch()
    assert on_trial(setup) == 3

    setup.foreign().delete_registered_model_alias(MODEL_NAME, CANARY)
    setup.promotion.watch()
    assert on_trial(setup) is None


def test_a_canary_against_another_champion_is_a_conflict(setup: RegistrySetup) -> None:
    for version, instead_of in ((2, 3), (1, 1)):
        with pytest.raises(Conflict):
            setup.promotion.start_canary(version, instead_of=instead_of, who="gate", why="test")
    assert on_trial(setup) is None


def test_a_damaged_canary_is_refused_however_it_was_named(setup: RegistrySetup) -> None:
    setup.damage(2)
    with pytest.raises(ArtifactError):
        setup.promotion.start_canary(2, instead_of=1, who="gate", why="test")
    setup.foreign().set_registered_model_alias(MODEL_NAME, CANARY, "2")
    setup.promotion.watch()
    assert on_trial(setup) is None
    assert "SHA-256" in str(setup.promotion.status().refused)


def test_a_canary_of_another_encoder_is_refused(setup: RegistrySetup) -> None:
    foreign = setup.registry.register(small_artifact(4.0, encoder_id="another"), {}, {})
    with pytest.raises(ArtifactError, match="another"):
        setup.promotion.start_canary(foreign, instead_of=1, who="gate", why="test")


def test_a_publisher_that_is_away_gets_the_canary_later(setup: RegistrySetup) -> None:
    setup.publisher.away = True
    setup.promotion.start_canary(2, instead_of=1, who="gate", why="test")
    setup.publisher.away = False
    setup.promotion.watch()
    assert on_trial(setup) == 2


def test_words_are_set_on_a_version_and_replaced(setup: RegistrySetup) -> None:
    setup.registry.tag(2, {"stage": "shadow", "other": "x"})
    setup.registry.tag(2, {"stage": "canary"})
    tags = {one.version: one.tags for one in setup.registry.versions()}
    assert (tags[2]["stage"], tags[2]["other"]) == ("canary", "x")


def trials(setup: RegistrySetup) -> list[tuple[str, int, str]]:
    """Read the history of canaries, oldest first."""
    moves = setup.restarted().trials(limit=10)
    return [(move.kind, move.version, move.who) for move in reversed(moves)]


def test_every_move_of_the_canary_is_in_the_history(setup: RegistrySetup) -> None:
    setup.promotion.start_canary(2, instead_of=1, who="gate", why="trial")
    setup.promotion.stop_canary(who="gate", why="inconclusive")
    setup.promotion.stop_canary(who="gate", why="again")
    setup.foreign().set_registered_model_alias(MODEL_NAME, CANARY, "3")
    setup.promotion.watch()
    setup.foreign().delete_registered_model_alias(MODEL_NAME, CANARY)
    setup.promotion.watch()
    assert trials(setup) == [
        ("canary_started", 2, "gate"),
        ("canary_ended", 2, "gate"),
        ("canary_started", 3, "mlflow"),
        ("canary_ended", 3, "mlflow"),
    ]
    newest = setup.promotion.trials(limit=10)[2]
    assert (newest.alias, newest.why, newest.replicas_swapped) == (CANARY, "inconclusive", 2)
    assert [move.version for move in setup.promotion.history(limit=10)] == [1]


def test_a_canary_named_while_no_process_watched_is_in_the_history(setup: RegistrySetup) -> None:
    setup.foreign().set_registered_model_alias(MODEL_NAME, CANARY, "3")
    setup.restarted().watch()
    assert trials(setup) == [("canary_started", 3, "mlflow")]
    assert on_trial(setup) == 3


def test_a_trial_that_a_promotion_ended_is_not_taken_up_again(setup: RegistrySetup) -> None:
    setup.promotion.start_canary(2, instead_of=1, who="gate", why="trial")
    setup.promotion.promote(2, who="gate", why="better")
    assert setup.restarted().status().canary is None
    setup.restarted().watch()
    assert trials(setup) == [("canary_started", 2, "gate")]
