"""The champion source: swaps to what is newer and fits, else keeps what it has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from actor_fakes import DIM, ENCODER_ID, NOW, FakeMetrics, FakePublisher
from replica_fakes import PricePolicy, a_publication

from policies.artifact import PolicyArtifact
from policies.errors import Unavailable
from policies.events import EventKind
from policies.publication import POINTER_FILE, write_pointer
from services.champion import ChampionSource
from services.metrics import ReplicaMetrics


def load(artifact: PolicyArtifact) -> PricePolicy:
    """Make a policy as `policies.learners.load_policy` does."""
    return PricePolicy(encoder_id=artifact.encoder_id, context_dim=artifact.context_dim)


class Parts:
    """A source, its publisher, its folder and what it counts."""

    def __init__(self, folder: Path) -> None:
        self.publisher, self.metrics = FakePublisher(), ReplicaMetrics()
        self.folder, self.events = folder, FakeMetrics()
        self.source = ChampionSource(
            self.publisher,
            folder=folder,
            encoder_id=ENCODER_ID,
            context_dim=DIM,
            replica_id="replica-1",
            load=load,
            clock=lambda: NOW,
            metrics=self.metrics,
            tell=self.events.take_event,
        )

    def push(self, **publication: object) -> None:
        """Publish."""
        self.publisher.queue.put_nowait(a_publication(**publication))  # type: ignore[arg-type]

    def count(self, name: str) -> float:
        """Read a metric."""
        return sum(value for metric, _, value, _ in self.metrics.samples() if metric == name)


def run(folder: Path, steps: Callable[[Parts], Awaitable[None]]) -> Parts:
    """Run a test's steps in an event loop; the source is stopped at the end."""

    async def all_steps() -> Parts:
        parts = Parts(folder)
        await steps(parts)
        await parts.source.stop()
        return parts

    return asyncio.run(all_steps())


async def until(holds: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds."""
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)


def test_start_waits_for_the_first_publication_and_follows_the_next(tmp_path: Path) -> None:
    async def steps(parts: Parts) -> None:
        with pytest.raises(Unavailable):
            _ = parts.source.current
        parts.push(revision=1, version=5)
        await parts.source.start(timeout_s=30)
        assert (parts.source.current.version, parts.source.current.swapped_at) == (5, NOW)
        parts.push(revision=2, version=6)
        await until(lambda: parts.source.current.version == 6)
        assert parts.source.alive
        await until(lambda: len(parts.publisher.acknowledged) == 3)

    parts = run(tmp_path, steps)
    assert parts.publisher.acknowledged == [0, 1, 2]
    assert parts.count("barp_swaps_total") == 2
    assert parts.count("barp_policy_version") == 6


def test_start_takes_the_pointer_while_the_publisher_is_away(tmp_path: Path) -> None:
    async def steps(parts: Parts) -> None:
        parts.publisher.away = True
        await parts.source.start(timeout_s=30)
        assert parts.source.current.version == 4
        write_pointer(tmp_path, a_publication(revision=8, version=5))
        await until(lambda: parts.source.current.version == 5)
        parts.publisher.away = False
        parts.push(revision=9, version=6)
        await until(lambda: parts.source.current.version == 6)

    write_pointer(tmp_path, a_publication(revision=7, version=4))
    assert run(tmp_path, steps).count("barp_publisher_failures_total") >= 1


def test_start_gives_up_with_a_clear_error(tmp_path: Path) -> None:
    async def steps(parts: Parts) -> None:
        with pytest.raises(Unavailable, match="no policy that fits encoder hash-encoder"):
            await parts.source.start(timeout_s=0.01)
        assert not parts.source.alive

    run(tmp_path, steps)


def test_an_older_revision_changes_nothing(tmp_path: Path) -> None:
    async def steps(parts: Parts) -> None:
        parts.push(revision=5, version=5)
        await parts.source.start(timeout_s=30)
        parts.push(revision=4, version=4)
        parts.push(revision=5, version=3)
        await until(lambda: len(parts.publisher.acknowledged) == 4)
        assert parts.source.current.version == 5

    assert run(tmp_path, steps).count("barp_swaps_total") == 1


def test_a_policy_of_another_encoder_is_refused_and_the_old_one_kept(tmp_path: Path) -> None:
    async def steps(parts: Parts) -> None:
        parts.push(revision=1, version=1)
        await parts.source.start(timeout_s=30)
        parts.push(revision=2, version=2, encoder_id="another")
        await until(lambda: parts.count("barp_publications_refused_total") == 1)
        assert parts.source.current.version == 1
        parts.push(revision=3, version=3)
        await until(lambda: parts.source.current.version == 3)

    [event] = run(tmp_path, steps).events.taken
    assert (event.kind, event.version) == (EventKind.ARTIFACT_REFUSED, 2)
    assert "encoder another" in event.why


def test_a_damaged_pointer_is_no_obstacle(tmp_path: Path) -> None:
    async def steps(parts: Parts) -> None:
        parts.push(revision=1, version=1)
        await parts.source.start(timeout_s=30)
        assert parts.source.current.version == 1

    (tmp_path / POINTER_FILE).write_text("{")
    run(tmp_path, steps)


def test_champion_and_canary_are_swapped_as_one(tmp_path: Path) -> None:
    async def steps(parts: Parts) -> None:
        parts.push(revision=1, version=1, canary=2)
        await parts.source.start(timeout_s=30)
        canary = parts.source.current.canary
        assert canary is not None
        assert (parts.source.current.version, canary.version, canary.share) == (1, 2, 0.5)
        parts.push(revision=2, version=2)
        await until(lambda: parts.source.current.version == 2)
        assert parts.source.current.canary is None

    run(tmp_path, steps)


def test_a_canary_of_another_encoder_is_refused_with_its_champion(tmp_path: Path) -> None:
    async def steps(parts: Parts) -> None:
        parts.push(revision=1, version=1)
        await parts.source.start(timeout_s=30)
        parts.push(revision=2, version=2, canary=3, canary_encoder_id="another")
        await until(lambda: parts.count("barp_publications_refused_total") == 1)
        assert (parts.source.current.version, parts.source.current.canary) == (1, None)

    run(tmp_path, steps)
