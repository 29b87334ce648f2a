"""The registry on a real MLflow: versions, aliases, history, and what damage does to them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from clock import Clock
from mlflow import MlflowClient
from registries import (
    FakePublisher,
    open_promotion,
    open_registry,
    small_artifact,
)

from pipelines.history import AliasHistory
from pipelines.promotion import Promotion
from pipelines.registry import MODEL_NAME, Registry
from policies.errors import ArtifactError, Unavailable, UnknownVersion
from policies.versions import CHALLENGER, CHAMPION, PREVIOUS

PICKLE_OPCODES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Setup:
    """A registry with three versions, and promotion on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.publisher = folder, Clock(), FakePublisher()
        self.registry = open_registry(folder, self.clock)
        self.promotion = self.restarted()
        for level in (1.0, 2.0, 3.0):
            self.registry.register(small_artifact(level), {}, {})

    def restarted(self) -> Promotion:
        """Start promotion again, as a new process would."""
        return open_promotion(self.registry, self.publisher, self.clock)

    def foreign(self) -> MlflowClient:
        """Return MLflow's own client, as an operator has it."""
        uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        return MlflowClient(uri, uri)

    def aliases(self) -> dict[str, int | None]:
        """Read the aliases back."""
        return {alias: self.registry.pointed_at(alias) for alias in (CHAMPION, PREVIOUS)}

    def damage(self, version: int) -> None:
        """Flip a byte in a version's weights."""
        uri = self.foreign().get_model_version_download_uri(MODEL_NAME, str(version))
        weights = Path(uri.removeprefix("file://")) / "data" / "policy" / "policy.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)


@pytest.fixture
def setup(registry_dir: Path) -> Setup:
    """Three versions, nothing promoted."""
    return Setup(registry_dir)


def test_a_version_comes_back_as_it_was_registered(registry_dir: Path) -> None:
    registry = open_registry(registry_dir, Clock())
    artifact = small_artifact(0.5, parent_version=7, rows=12, rows_sha256="ab")

    version = registry.register(artifact, {"uplift": 0.25}, {"verdict": "better"})

    assert registry.artifact(version).to_files() == artifact.to_files()
    (info,) = registry.versions()
    assert (info.version, info.kind, info.metrics) == (1, "posterior", {"uplift": 0.25})
    lineage = {name: info.tags[name] for name in ("parent_version", "rows", "rows_sha256")}
    assert lineage == {"parent_version": "7", "rows": "12", "rows_sha256": "ab"}
    assert info.tags["verdict"] == "better"


def test_mlflows_own_pages_show_metrics_and_lineage(setup: Setup) -> None:
    version = setup.registry.register(small_artifact(4.0, rows=12), {"uplift": 0.25}, {})
    client = setup.foreign()

    found = client.get_model_version(MODEL_NAME, str(version))
    assert found.run_id is not None
    run = client.get_run(found.run_id)
    assert run.outputs is not None
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)

    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"uplift": 0.25}
    assert run.data.params["rows"] == "12"
    assert model.params["rows"] == "12"
    assert [metric.value for metric in model.metrics or []] == [0.25]
    assert model.status == "READY"


def test_there_is_no_pickle_in_a_models_folder(setup: Setup) -> None:
    files = [path for path in (setup.folder / "artifacts").rglob("*") if path.is_file()]

    assert {"MLmodel", "policy.safetensors", "policy.json"} <= {path.name for path in files}
    for path in files:
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".joblib")
        assert not path.read_bytes().startswith(PICKLE_OPCODES)


def test_the_tracking_uri_stays_out_of_the_environment(setup: Setup) -> None:
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert setup.registry.pointed_at(CHAMPION) is None


def test_promotion_moves_both_aliases_and_publishes(setup: Setup) -> None:
    first = setup.promotion.promote(1, who="ann", why="first")
    second = setup.promotion.promote(2, who="bob", why="better")

    assert (first.previous, second.previous) == (None, 1)
    assert (second.replicas_swapped, second.replicas_waiting) == (2, 0)
    assert setup.aliases() == {CHAMPION: 2, PREVIOUS: 1}
    assert setup.publisher.published == [1, 2]
    assert setup.promotion.history(limit=10) == [second, first]


def test_history_keeps_its_order_when_the_clock_is_set_back(setup: Setup) -> None:
    for version in (1, 2, 3):
        setup.promotion.promote(version, who="ann", why="")
        setup.clock.now -= 3600.0

    moves = setup.restarted().history(limit=10)

    assert [move.version for move in moves] == [3, 2, 1]
    assert moves == sorted(moves, key=lambda move: move.at, reverse=True)


def test_promoting_the_champion_does_nothing_and_says_so(setup: Setup) -> None:
    setup.promotion.promote(1, who="ann", why="")

    move = setup.promotion.promote(1, who="ann", why="again")

    assert not move.moved
    assert "already" in move.why
    assert setup.publisher.published == [1]
    assert len(setup.promotion.history(limit=10)) == 1


def test_rollback_goes_back_and_forth_between_two_champions(setup: Setup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.promotion.promote(2, who="ann", why="")

    back = setup.promotion.rollback(to=None, who="ann", why="worse")
    forth = setup.promotion.rollback(to=None, who="ann", why="was right")

    assert (back.version, back.previous) == (1, 2)
    assert (forth.version, forth.previous) == (2, 1)


def test_rollback_to_a_number_leaves_the_old_champion_as_previous(setup: Setup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.promotion.promote(2, who="ann", why="")

    setup.promotion.rollback(to=3, who="ann", why="known good")

    assert setup.aliases() == {CHAMPION: 3, PREVIOUS: 2}


def test_rollback_without_a_previous_champion_is_refused(setup: Setup) -> None:
    setup.promotion.promote(1, who="ann", why="")

    with pytest.raises(UnknownVersion, match="no previous champion"):
        setup.promotion.rollback(to=None, who="ann", why="")


@pytest.mark.parametrize("step", ["promote", "rollback", "artifact", "challenge"])
def test_an_unknown_version_is_named_as_such(setup: Setup, step: str) -> None:
    steps: dict[str, Callable[[], object]] = {
        "promote": lambda: setup.promotion.promote(99, who="ann", why=""),
        "rollback": lambda: setup.promotion.rollback(to=99, who="ann", why=""),
        "artifact": lambda: setup.registry.artifact(99),
        "challenge": lambda: setup.registry.point(CHALLENGER, 99),
    }

    with pytest.raises(UnknownVersion, match="99"):
        steps[step]()


def test_versions_show_their_aliases_newest_first(setup: Setup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.registry.point(CHALLENGER, 3)

    aliases = {info.version: info.aliases for info in setup.registry.versions()}

    assert aliases == {3: (CHALLENGER,), 2: (), 1: (CHAMPION,)}
    assert list(aliases) == [3, 2, 1]


def test_an_alias_moved_with_mlflows_client_is_obeyed(setup: Setup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.foreign().set_registered_model_alias(MODEL_NAME, CHAMPION, "3")

    setup.promotion.watch()

    assert setup.publisher.published == [1, 3]
    assert setup.promotion.history(limit=1)[0].who == "mlflow"
    assert setup.aliases() == {CHAMPION: 3, PREVIOUS: 1}


def test_a_damaged_version_is_never_promoted(setup: Setup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.damage(2)

    with pytest.raises(ArtifactError):
        setup.promotion.promote(2, who="ann", why="")

    assert setup.aliases() == {CHAMPION: 1, PREVIOUS: None}


def test_an_alias_on_a_damaged_version_is_not_obeyed_and_status_says_so(setup: Setup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.damage(2)
    setup.foreign().set_registered_model_alias(MODEL_NAME, CHAMPION, "2")

    setup.promotion.watch()

    assert setup.publisher.published == [1]
    assert setup.promotion.champion() == 1
    refused = setup.promotion.status().refused
    assert refused is not None
    assert "SHA-256" in refused


def test_an_alias_that_was_removed_leaves_the_champion(setup: Setup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.foreign().delete_registered_model_alias(MODEL_NAME, CHAMPION)

    setup.promotion.watch()

    assert setup.promotion.champion() == 1
    assert setup.promotion.status().refused is not None
    setup.promotion.promote(1, who="ann", why="put it back")
    assert setup.aliases()[CHAMPION] == 1


def test_the_champion_is_published_at_start_where_the_publisher_has_another(setup: Setup) -> None:
    setup.promotion.promote(2, who="ann", why="")
    setup.publisher.published.append(1)

    setup.restarted().watch()

    assert setup.publisher.published[-1] == 2


def test_a_publisher_that_is_away_gets_the_champion_later(setup: Setup) -> None:
    setup.publisher.away = True
    move = setup.promotion.promote(2, who="ann", why="")
    setup.publisher.away = False

    setup.promotion.watch()

    assert (move.replicas_swapped, move.replicas_waiting) == (0, 0)
    assert setup.publisher.published == [2]


def test_a_crash_before_the_alias_moved_leaves_no_move(setup: Setup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    AliasHistory(setup.registry, clock=setup.clock).intend(2, previous=1, who="ann", why="")

    restarted = setup.restarted()

    assert restarted.champion() == 1
    assert [move.version for move in restarted.history(limit=10)] == [1]
    assert setup.aliases() == {CHAMPION: 1, PREVIOUS: None}


def test_a_crash_after_the_alias_moved_leaves_no_gap(setup: Setup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    AliasHistory(setup.registry, clock=setup.clock).intend(2, previous=1, who="bob", why="")
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


def test_a_registry_that_is_away_says_so_and_comes_back(setup: Setup) -> None:
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


def test_a_failure_between_two_steps_is_settled_by_the_next_call(setup: Setup) -> None:
    """The move is written down, then the alias cannot be moved."""
    setup.promotion.promote(1, who="ann", why="")
    failing = _FailsOnce(setup.registry, alias=CHAMPION)
    promotion = Promotion(failing, publisher=setup.publisher, clock=setup.clock)
    with pytest.raises(Unavailable):
        promotion.promote(2, who="ann", why="")

    promotion.promote(3, who="ann", why="")

    moves = promotion.history(limit=10)
    assert [(move.version, move.previous) for move in moves] == [(3, 1), (1, None)]


def test_mlflow_loads_a_version_and_predicts_the_pmf(registry_dir: Path) -> None:
    """In a process of its own, as a user of MLflow would, with nothing but the URI."""
    from policies.arms import Arm
    from policies.learning import LearnerSpec
    from policies.posterior import PosteriorLearner

    registry = open_registry(registry_dir, Clock())
    spec = LearnerSpec(
        arms=(Arm(name="a"), Arm(name="b")), encoder_id="e", context_dim=4, cost_ceiling_usd=0.01
    )
    registry.register(PosteriorLearner().initial(spec), {}, {})
    registry.point(CHAMPION, 1)
    uri = f"sqlite:///{registry_dir / 'mlflow.db'}"
    code = """
import sys, mlflow, pandas, numpy
mlflow.set_tracking_uri(sys.argv[1]); mlflow.set_registry_uri(sys.argv[1])
frame = pandas.DataFrame({"context": [numpy.zeros(4)] * 2, "quality": [0.7, 0.1]})
frame["cost"] = 1.0 - frame["quality"]
pmf = mlflow.pyfunc.load_model("models:/barp@champion").predict(frame)
assert numpy.allclose(numpy.asarray(pmf, dtype=float).sum(axis=1), 1.0), pmf
"""

    done = subprocess.run(
        [sys.executable, "-c", code, uri],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


class _FailsOnce:
    """A registry whose store goes away the first time that an alias is to be moved."""

    def __init__(self, registry: Registry, *, alias: str) -> None:
        self._alias: str | None = alias
        self._registry = registry
        self.files, self.pointed_at = registry.files, registry.pointed_at
        self.add_record, self.close_record = registry.add_record, registry.close_record
        self.records = registry.records

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
