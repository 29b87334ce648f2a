"""The publisher: one pair pushed to all, acknowledged, and not lost with the process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from clock import START_S, Clock
from registries import small_artifact

from pipelines.publisher import KEEP_FOLDERS, Publisher
from policies.arms import Arm, PriceTable
from policies.errors import ArtifactError, Unavailable
from policies.publication import POINTER_FILE, Canary, Publication, read_pointer

T = TypeVar("T")

FILES = small_artifact(1.0).to_files()
OTHER = small_artifact(2.0).to_files()
PRICES = PriceTable(version=4, arms=(Arm(name="a", usd_per_call=0.01),))


class Setup:
    """A publisher that hands out publications as they are, and counts them."""

    def __init__(self, folder: Path, *, poll_s: float = 0.02) -> None:
        self.folder, self.clock, self.poll_s = folder, Clock(), poll_s
        self.puts: list[Publication] = []
        self.publisher = self.restarted()

    def restarted(self) -> Publisher:
        """Start the publisher again, as a new process would."""
        publisher = Publisher(self.folder, put=self._put, clock=self.clock, poll_s=self.poll_s)
        publisher.restore()
        return publisher

    def _put(self, publication: Publication) -> Publication:
        self.puts.append(publication)
        return publication


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """A publisher with nothing published."""
    return Setup(tmp_path)


@pytest.fixture
def patient(tmp_path: Path) -> Setup:
    """The same, for polls that wait for news however slow the disk is."""
    return Setup(tmp_path, poll_s=600.0)


def run(steps: Coroutine[Any, Any, T]) -> T:
    """Run a test's steps in an event loop."""
    return asyncio.run(steps)


def test_a_poll_returns_as_soon_as_there_is_news(patient: Setup) -> None:
    async def steps() -> list[Publication]:
        poll = asyncio.create_task(patient.publisher.next("r", 0, None))
        await asyncio.sleep(0)
        await patient.publisher.publish(7, FILES)
        return await poll

    (publication,) = run(steps())

    assert (publication.version, publication.revision) == (7, 1)
    assert publication.files == FILES


def test_a_poll_without_news_ends_empty(setup: Setup) -> None:
    async def steps() -> list[Publication]:
        revision = await setup.publisher.publish(7, FILES)
        return await setup.publisher.next("r", revision, START_S)

    assert run(steps()) == []


def test_prices_and_policy_travel_as_one_pair(setup: Setup) -> None:
    async def steps() -> list[Publication]:
        await setup.publisher.publish_prices(PRICES)
        await setup.publisher.publish(7, FILES)
        return await setup.publisher.next("r", 0, None)

    (publication,) = run(steps())

    assert (publication.version, publication.prices) == (7, PRICES)


def test_new_prices_are_pushed_with_the_champion_of_now(setup: Setup) -> None:
    async def steps() -> list[Publication]:
        have = await setup.publisher.publish(7, FILES)
        await setup.publisher.publish_prices(PRICES)
        return await setup.publisher.next("r", have, START_S)

    (publication,) = run(steps())

    assert (publication.version, publication.revision, publication.prices) == (7, 2, PRICES)


def test_older_prices_and_the_same_policy_change_nothing(setup: Setup) -> None:
    async def steps() -> list[int]:
        return [
            await setup.publisher.publish_prices(PRICES),
            await setup.publisher.publish(7, FILES),
            await setup.publisher.publish_prices(PriceTable(version=3, arms=())),
            await setup.publisher.publish(7, dict(FILES)),
        ]

    assert run(steps()) == [0, 1, 1, 1]
    assert len(setup.puts) == 1


def test_one_payload_serves_all_replicas(patient: Setup) -> None:
    async def steps() -> list[list[Publication]]:
        polls = [patient.publisher.next(name, 0, None) for name in "abcd"]
        waiting = asyncio.gather(*polls)
        await asyncio.sleep(0)
        await patient.publisher.publish(7, FILES)
        return await waiting

    received = run(steps())

    assert len(patient.puts) == 1
    assert all(publications[0] is patient.puts[0] for publications in received)


def test_the_pointer_is_written_before_the_news_is_out(patient: Setup) -> None:
    async def steps() -> Publication | None:
        poll = asyncio.create_task(patient.publisher.next("r", 0, None))
        publishing = asyncio.create_task(patient.publisher.publish(7, FILES))
        await poll
        pointer = read_pointer(patient.folder)
        await publishing
        return pointer

    pointer = run(steps())

    assert pointer == patient.puts[0]


def test_a_restart_goes_on_where_it_was(setup: Setup) -> None:
    async def before() -> None:
        await setup.publisher.publish_prices(PRICES)
        await setup.publisher.publish(7, FILES)

    async def after() -> int:
        publisher = setup.restarted()
        assert publisher.status().version == 7
        assert publisher.status().price_version == PRICES.version
        return await publisher.publish(8, OTHER)

    run(before())

    assert run(after()) == 2


def test_a_damaged_pointer_waits_for_the_registry(setup: Setup) -> None:
    run(setup.publisher.publish(7, FILES))
    (setup.folder / POINTER_FILE).write_text("{")

    async def after() -> tuple[str | None, list[Publication]]:
        publisher = setup.restarted()
        error = publisher.status().error
        await publisher.publish(7, FILES)
        assert publisher.status().error is None
        return error, await publisher.next("new", 0, None)

    error, publications = run(after())

    assert error is not None
    assert POINTER_FILE in error
    assert publications[0].version == 7


def test_a_replica_ahead_of_a_lost_pointer_still_gets_what_follows(setup: Setup) -> None:
    async def steps() -> list[Publication]:
        await setup.publisher.publish(7, FILES)
        await setup.publisher.next("r", 41, START_S)
        await setup.publisher.publish(8, OTHER)
        return await setup.publisher.next("r", 42, START_S)

    (publication,) = run(steps())

    assert publication.version == 8
    assert publication.revision > 42


def test_files_that_are_no_policy_are_refused(setup: Setup) -> None:
    async def steps() -> None:
        await setup.publisher.publish(7, FILES)
        with pytest.raises(ArtifactError):
            await setup.publisher.publish(8, {**FILES, "policy.safetensors": b"damaged"})

    run(steps())

    assert setup.publisher.status().version == 7


def test_a_pointer_that_cannot_be_written_announces_nothing(setup: Setup) -> None:
    """A file stands where the folder should be."""
    folder = setup.folder / "taken"
    folder.write_text("")
    publisher = Publisher(folder, put=lambda p: p, clock=setup.clock, poll_s=0.01)

    async def steps() -> list[Publication]:
        with pytest.raises(Unavailable):
            await publisher.publish(7, FILES)
        return await publisher.next("r", 0, None)

    assert run(steps()) == []


def test_rollout_counts_who_swapped_and_who_did_not(setup: Setup) -> None:
    async def steps() -> None:
        polls = [asyncio.create_task(setup.publisher.next(name, 0, None)) for name in "ab"]
        await asyncio.sleep(0)
        revision = await setup.publisher.publish(7, FILES)
        await asyncio.gather(*polls)
        acknowledged = asyncio.create_task(setup.publisher.next("a", revision, START_S + 0.02))
        rollout = await setup.publisher.rollout(revision, timeout_s=0.02)
        assert rollout.version == 7
        assert rollout.swapped == pytest.approx({"a": 0.02}, abs=1e-6)
        assert rollout.waiting == ("b",)
        await acknowledged

    run(steps())


def test_rollout_returns_when_the_last_replica_has_swapped(setup: Setup) -> None:
    async def steps() -> tuple[str, ...]:
        first = asyncio.create_task(setup.publisher.next("a", 0, None))
        await asyncio.sleep(0)
        revision = await setup.publisher.publish(7, FILES)
        await first
        waiting = asyncio.create_task(setup.publisher.rollout(revision, timeout_s=60.0))
        await asyncio.sleep(0)
        await setup.publisher.next("a", revision, START_S)
        return (await waiting).waiting

    assert run(steps()) == ()


def test_a_replica_that_is_gone_is_not_waited_for(setup: Setup) -> None:
    async def steps() -> None:
        await setup.publisher.next("gone", 0, None)
        setup.clock.now += 36.0
        revision = await setup.publisher.publish(7, FILES)
        rollout = await setup.publisher.rollout(revision, timeout_s=60.0)
        assert (rollout.swapped, rollout.waiting) == ({}, ())

    run(steps())


def test_swaps_to_another_version_are_timed_and_others_are_not(setup: Setup) -> None:
    async def steps() -> tuple[float, ...]:
        publisher = setup.publisher
        first = await publisher.publish(7, FILES)
        await publisher.next("a", first, START_S + 9.0)
        second = await publisher.publish(8, OTHER)
        await publisher.next("a", second, START_S + 0.025)
        third = await publisher.publish_prices(PRICES)
        await publisher.next("a", third, START_S + 5.0)
        return publisher.status().swap_ms

    assert run(steps()) == pytest.approx((25.0,), abs=1e-3)


def test_folders_of_versions_long_gone_are_dropped(setup: Setup) -> None:
    async def steps() -> None:
        for version in range(KEEP_FOLDERS + 5):
            await setup.publisher.publish(version, FILES)

    run(steps())

    assert len(list(setup.folder.glob("v*"))) == KEEP_FOLDERS
    assert read_pointer(setup.folder) is not None


def test_a_canary_is_announced_with_the_champion_and_kept_through_new_prices(
    setup: Setup,
) -> None:
    canary = Canary(version=8, files=OTHER, share=0.2)

    async def steps() -> list[int]:
        revisions = [await setup.publisher.publish(7, FILES, canary)]
        revisions.append(await setup.publisher.publish(7, FILES, canary))
        revisions.append(await setup.publisher.publish_prices(PRICES))
        return revisions

    assert run(steps()) == [1, 1, 2]
    assert setup.puts[-1].canary == canary
    assert read_pointer(setup.folder) == setup.puts[-1]
    status = setup.restarted().status()
    assert (status.version, status.canary, status.canary_share) == (7, 8, 0.2)

    run(setup.publisher.publish(7, FILES))
    assert setup.puts[-1].canary is None


def test_a_damaged_canary_is_not_announced(setup: Setup) -> None:
    with pytest.raises(ArtifactError):
        run(setup.publisher.publish(7, FILES, Canary(version=8, files={}, share=0.2)))
    assert setup.puts == []
