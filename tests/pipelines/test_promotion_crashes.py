"""A crash, or a registry that goes away, between any two steps of any move of either alias."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from event_lists import EventList
from registries import RegistrySetup

from pipelines.history import RecordState
from pipelines.promotion import Promotion
from pipelines.registry import MODEL_NAME
from policies.errors import Unavailable
from policies.versions import CANARY, CHAMPION

STEPS = frozenset(
    {"point", "unpoint", "add_record", "close_record", "publish", "rollout", "pointed_at", "files"}
)
Side = Literal["before", "after"]


class Crash(BaseException):
    """The process ends here: nothing may catch it."""


@dataclass
class Fuse:
    """Blows once, at the n-th step, before it is done or just after."""

    at: int
    side: Side
    error: BaseException
    steps: int = 0
    blown: bool = False


@dataclass
class Fused:
    """A store or publisher whose steps count down to the blow."""

    inner: Any
    fuse: Fuse
    names: frozenset[str] = field(default=STEPS)

    def __getattr__(self, name: str) -> Any:
        """Wrap a step; everything else is the inner one's own."""
        step = getattr(self.inner, name)
        if name not in self.names:
            return step

        def guarded(*args: Any, **named: Any) -> Any:
            self.fuse.steps += 1
            hit = self.fuse.steps == self.fuse.at and not self.fuse.blown
            if hit and self.fuse.side == "before":
                self.fuse.blown = True
                raise self.fuse.error
            result = step(*args, **named)
            if hit:
                self.fuse.blown = True
                raise self.fuse.error
            return result

        return guarded


def attempts(
    setup: RegistrySetup,
    move: Callable[[Promotion], object],
    side: Side,
    error: BaseException,
    *,
    steps: int = 9,
) -> Iterator[tuple[Promotion, int | None]]:
    """Try a move with a fuse at its first step, its second, …, until it gets through whole.

    It has at least so many steps.
    """
    for at in range(1, 100):
        before = setup.restarted()
        before.watch()
        fuse = Fuse(at=0, side=side, error=error)
        promotion = Promotion(
            Fused(setup.registry, fuse),
            publisher=Fused(setup.publisher, fuse),
            clock=setup.clock,
            events=EventList(),
        )
        fuse.steps, fuse.at = 0, at
        with contextlib.suppress(Crash, Unavailable):
            move(promotion)
        # From here on nothing fails any more.
        whole, fuse.blown = not fuse.blown, True
        yield promotion, before.champion()
        if whole:
            assert at >= steps, "the move has more steps than that"
            return
    raise AssertionError("it never got through")


def check(setup: RegistrySetup, promotion: Promotion) -> None:
    """Aliases, history and what is published agree, and the history has no gap."""
    promotion.watch()
    moves = promotion.history(limit=1000)
    assert setup.registry.pointed_at(CHAMPION) == promotion.champion() == moves[0].version
    assert setup.publisher.published[-1] == promotion.champion()
    for newer, older in pairwise(moves):
        assert newer.previous == older.version
    canary = promotion.status().canary
    assert setup.publisher.deciding() == (promotion.champion(), canary)
    assert setup.registry.pointed_at(CANARY) == canary == setup.restarted().status().canary
    # Beginnings and ends take turns; a move of the champion between two of them is an end.
    told = sorted([*moves, *promotion.trials(limit=1000)], key=lambda move: move.at)
    on_trial = None
    for move in told:
        if move.kind == "canary_ended":
            assert move.version == on_trial
        if move.kind == "canary_started":
            assert on_trial is None
        on_trial = move.version if move.kind == "canary_started" else None
    assert on_trial == canary
    assert not setup.registry.records(RecordState.INTENDED, limit=10)


def promote_other(promotion: Promotion) -> None:
    """Promote a version that does not serve."""
    promotion.promote(3 if promotion.champion() != 3 else 2, who="ann", why="test")


def roll_back(promotion: Promotion) -> None:
    """Go back to where there is surely a way."""
    promotion.rollback(to=1 if promotion.champion() != 1 else 2, who="ann", why="test")


@pytest.fixture
def setup(registry_dir: Path) -> RegistrySetup:
    """Three versions, two of them have served."""
    made = RegistrySetup(registry_dir)
    for version in (1, 2):
        made.promotion.promote(version, who="ann", why="")
    return made


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("move", [promote_other, roll_back])
def test_a_crash_between_any_two_steps_leaves_no_gap(
    setup: RegistrySetup, move: Callable[[Promotion], object], side: Side
) -> None:
    for _, _ in attempts(setup, move, side, Crash()):
        check(setup, setup.restarted())


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("move", [promote_other, roll_back])
def test_a_registry_away_at_any_step_is_made_good_by_the_same_process(
    setup: RegistrySetup, move: Callable[[Promotion], object], side: Side
) -> None:
    for promotion, _ in attempts(setup, move, side, Unavailable("registry is away")):
        check(setup, promotion)


def begin_or_end_trial(promotion: Promotion) -> None:
    """Put a version beside the champion, or, where there is one, let the champion decide alone."""
    champion = promotion.champion()
    assert champion is not None
    if promotion.status().canary is None:
        other = 3 if champion != 3 else 2
        promotion.start_canary(other, instead_of=champion, who="gate", why="test")
    else:
        promotion.stop_canary(who="gate", why="test")


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_crash_between_any_two_steps_of_a_trial_leaves_no_gap(
    setup: RegistrySetup, side: Side
) -> None:
    for _ in range(2):  # a beginning, then an end; whichever a crash has left to be done
        for _, _ in attempts(setup, begin_or_end_trial, side, Crash(), steps=7):
            check(setup, setup.restarted())
    assert len(setup.promotion.trials(limit=100)) >= 4


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_registry_away_at_any_step_of_a_trial_is_made_good_by_the_same_process(
    setup: RegistrySetup, side: Side
) -> None:
    error = Unavailable("registry is away")
    for promotion, _ in attempts(setup, begin_or_end_trial, side, error, steps=7):
        check(setup, promotion)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_crash_while_a_promotion_ends_a_trial_leaves_no_gap(
    setup: RegistrySetup, side: Side
) -> None:
    begin_or_end_trial(setup.restarted())
    for _, _ in attempts(setup, promote_other, side, Crash()):
        recovered = setup.restarted()
        check(setup, recovered)
        if recovered.status().canary is None:
            begin_or_end_trial(recovered)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_crash_while_a_foreign_move_is_followed_leaves_no_gap(
    setup: RegistrySetup, side: Side
) -> None:
    client = setup.foreign()

    def follow(promotion: Promotion) -> None:
        other = 3 if promotion.champion() != 3 else 2
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, str(other))
        promotion.watch()

    for _, champion in attempts(setup, follow, side, Crash()):
        recovered = setup.restarted()
        check(setup, recovered)
        # The operator's word is kept: it was the alias itself that they moved.
        assert recovered.champion() != champion
