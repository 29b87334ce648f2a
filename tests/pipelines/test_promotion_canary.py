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
    setup.promotion.start_canary(2, instead_of=1)
    assert setup.publisher.deciding() == (1, 2)
    assert setup.publisher.canary is not None
    assert setup.publisher.canary.share == 0.2
    assert setup.registry.pointed_at(CANARY) == 2
    assert setup.promotion.status().canary == 2

    setup.promotion.stop_canary()
    assert setup.publisher.deciding() == (1, None)
    assert setup.registry.pointed_at(CANARY) is None


@pytest.mark.parametrize("promoted", [2, 3])
def test_any_promotion_ends_the_trial(setup: RegistrySetup, promoted: int) -> None:
    setup.promotion.start_canary(2, instead_of=1)
    setup.promotion.promote(promoted, who="ann", why="")
    assert setup.publisher.deciding() == (promoted, None)
    assert setup.registry.pointed_at(CANARY) is None


def test_a_restart_keeps_the_canary_and_publishes_it_again(setup: RegistrySetup) -> None:
    setup.promotion.start_canary(2, instead_of=1)
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
            setup.promotion.start_canary(version, instead_of=instead_of)
    assert on_trial(setup) is None


def test_a_damaged_canary_is_refused_however_it_was_named(setup: RegistrySetup) -> None:
    setup.damage(2)
    with pytest.raises(ArtifactError):
        setup.promotion.start_canary(2, instead_of=1)
    setup.foreign().set_registered_model_alias(MODEL_NAME, CANARY, "2")
    setup.promotion.watch()
    assert on_trial(setup) is None
    assert "SHA-256" in str(setup.promotion.status().refused)


def test_a_canary_of_another_encoder_is_refused(setup: RegistrySetup) -> None:
    foreign = setup.registry.register(small_artifact(4.0, encoder_id="another"), {}, {})
    with pytest.raises(ArtifactError, match="another"):
        setup.promotion.start_canary(foreign, instead_of=1)


def test_a_publisher_that_is_away_gets_the_canary_later(setup: RegistrySetup) -> None:
    setup.publisher.away = True
    setup.promotion.start_canary(2, instead_of=1)
    setup.publisher.away = False
    setup.promotion.watch()
    assert on_trial(setup) == 2


def test_words_are_set_on_a_version_and_replaced(setup: RegistrySetup) -> None:
    setup.registry.tag(2, {"stage": "shadow", "other": "x"})
    setup.registry.tag(2, {"stage": "canary"})
    tags = {one.version: one.tags for one in setup.registry.versions()}
    assert (tags[2]["stage"], tags[2]["other"]) == ("canary", "x")
