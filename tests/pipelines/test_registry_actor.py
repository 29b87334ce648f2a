"""Registry and publisher as actors: a version on its way to whoever listens."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import ray
from registries import small_artifact

from pipelines.publisher import PublisherActor
from pipelines.registry_actor import RegistryActor
from policies.errors import Unavailable, UnknownVersion
from policies.publication import Publication

pytestmark = pytest.mark.ray

# Far beyond what it takes; a test on a busy machine must not fail for its slowness.
PATIENCE_S = 60.0
MOVE_ALIAS = """
import sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1], sys.argv[1])
client.set_registered_model_alias("barp", "champion", sys.argv[2])
"""


class Actors:
    """A registry and a publisher with two versions, the first one champion."""

    def __init__(self, folder: Path) -> None:
        self.suffix = uuid.uuid4().hex[:8]
        self.uri, self.artifacts = f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artifacts")
        self.publisher = self.start(
            PublisherActor, "publisher", str(folder / "published"), keeper="none"
        )
        self.registry = self.start_registry("registry", publisher=f"publisher-{self.suffix}")
        for level in (1.0, 2.0):
            self.get(self.registry.register.remote(small_artifact(level), {}, {}))
        self.get(self.registry.promote.remote(1, who="ann", why="first"))

    def start(self, actor: type, name: str, *args: Any, **named: Any) -> Any:
        """Start an actor of a name nobody else has."""
        options = {"name": f"{name}-{self.suffix}", "num_cpus": 0}
        return cast(Any, ray.remote(actor)).options(**options).remote(*args, **named)

    def start_registry(self, name: str, *, publisher: str) -> Any:
        """Start a registry on the same database."""
        args = (self.uri, self.artifacts)
        return self.start(RegistryActor, name, *args, publisher=publisher, alias_watch_s=0.2)

    def get(self, reference: Any) -> Any:
        """Wait for an answer."""
        return ray.get(reference, timeout=PATIENCE_S)

    def poll(self, have: int) -> Any:
        """Begin one poll, as a replica does."""
        return self.publisher.next.remote("replica", have, time.time() if have else None)

    def published(self, poll: Any) -> Publication:
        """Wait for what a poll brings."""
        return cast(Publication, self.get(self.get(poll)[0]))


@pytest.fixture(scope="module")
def actors(
    ray_local: None, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Actors]:
    """Both actors, shared by the tests of this file: each takes seconds to import MLflow."""
    folder = tmp_path_factory.mktemp("actors")
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    made = Actors(folder)
    yield made
    ray.kill(made.registry)
    ray.kill(made.publisher)


def test_a_promotion_reaches_a_listening_replica_which_acknowledges_it(actors: Actors) -> None:
    actors.get(actors.registry.promote.remote(1, who="ann", why="begin"))
    first = actors.published(actors.poll(have=0))
    poll = actors.poll(have=first.revision)

    promotion = actors.registry.promote.remote(2, who="ann", why="better")
    second = actors.published(poll)
    acknowledging = actors.poll(have=second.revision)
    move = actors.get(promotion)

    assert (first.version, second.version) == (1, 2)
    assert second.artifact().to_files() == small_artifact(2.0).to_files()
    assert (move.replicas_swapped, move.replicas_waiting) == (1, 0)
    assert actors.get(actors.publisher.status.remote())["swap_ms"]
    ray.cancel(acknowledging)


def test_an_alias_moved_by_another_process_is_obeyed(actors: Actors) -> None:
    actors.get(actors.registry.promote.remote(1, who="ann", why="begin"))
    first = actors.published(actors.poll(have=0))
    poll = actors.poll(have=first.revision)

    subprocess.run([sys.executable, "-c", MOVE_ALIAS, actors.uri, "2"], check=True)

    assert actors.published(poll).version == 2
    assert actors.get(actors.registry.champion.remote()) == 2
    assert actors.get(actors.registry.history.remote())[0].who == "mlflow"


def test_errors_of_our_own_cross_the_actors_border(actors: Actors) -> None:
    with pytest.raises(UnknownVersion, match="99"):
        actors.get(actors.registry.promote.remote(99, who="ann", why=""))


def test_another_process_reads_the_same_champion_and_history(actors: Actors) -> None:
    """All that the registry knows is in MLflow; what it cannot reach does not stop it."""
    again = actors.start_registry("again", publisher="none")

    champion, history = actors.get([again.champion.remote(), again.history.remote()])

    assert champion == actors.get(actors.registry.champion.remote())
    assert history == actors.get(actors.registry.history.remote())
    ray.kill(again)


@pytest.mark.slow
def test_a_locked_registry_stops_no_replica_and_goes_on_when_it_is_free(actors: Actors) -> None:
    """MLflow waits 20 s for a lock."""
    actors.get(actors.registry.promote.remote(1, who="ann", why="begin"))
    database = sqlite3.connect(actors.uri.removeprefix("sqlite:///"), isolation_level=None)
    with contextlib.closing(database):
        database.execute("BEGIN EXCLUSIVE")
        refused = actors.registry.promote.remote(2, who="ann", why="locked")
        # Whoever starts meanwhile gets the champion: the publisher asks no registry.
        assert actors.published(actors.poll(have=0)).version == 1
        with pytest.raises(Unavailable, match="database is locked"):
            actors.get(refused)
        database.execute("ROLLBACK")
    move = actors.get(actors.registry.promote.remote(2, who="ann", why="free"))
    assert (move.previous, move.version) == (1, 2)
    assert actors.published(actors.poll(have=0)).version == 2
