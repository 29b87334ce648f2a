"""A version made again from its lineage has the same weights, however its rows are stored now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from clock import Clock
from event_lists import EventList
from interactions import PRICES, Interactions
from registries import FakePublisher, RegistryAndPromotion, open_promotion, open_registry

from pipelines.dataset import InteractionDataset
from pipelines.rebuild import NOT_KEPT, Rebuilt, rebuild
from pipelines.trainer import Trainer
from pipelines.training import TrainingPlan
from policies.arms import PriceTable
from policies.barp_dr import BarpDrLearner
from policies.errors import UnknownVersion
from policies.posterior_learner import PosteriorLearner

PLAN = TrainingPlan(
    encoder_id="e",
    context_dim=4,
    cost_ceiling_usd=0.01,
    exploration_total=0.1,
    seed=3,
    holdout_share=0.3,
    min_interactions=50,
    max_age_s=600.0,
    max_tenant_share=0.9,
)
LEARNERS = (PosteriorLearner(), BarpDrLearner())
TRAININGS = 5


class Compacted:
    """The same interactions from files of other sizes, in other chunks; or not all of them."""

    def __init__(
        self, rows: pa.Table, folder: Path, *, sizes: Sequence[int], first: int = 1
    ) -> None:
        self._dataset, self._first = InteractionDataset(folder), first
        start = 0
        while start < len(rows):
            size = sizes[start % len(sizes)]
            self._dataset.append(rows.slice(start, size))
            start += size

    def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """Read from the files."""
        return self._dataset.read(max(after_seq, self._first - 1)).slice(0, limit)

    def last_seq(self) -> int:
        """Return the last number."""
        return self._dataset.last_seq()

    def prices(self) -> PriceTable:
        """Return the only price table."""
        return PRICES

    def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return the only price table."""
        return {PRICES.version: PRICES}


class Trained:
    """Both learners after some trainings in a row."""

    def __init__(self, folder: Path) -> None:
        self.source, clock = Interactions(), Clock()
        self.registry = open_registry(folder, clock)
        promotion = open_promotion(self.registry, FakePublisher(), clock)
        trainer = Trainer(
            LEARNERS,
            source=self.source,
            registry=RegistryAndPromotion(self.registry, promotion),
            plan=PLAN,
            code="1.0",
            clock=clock,
            events=EventList(),
        )
        trainer.bootstrap()
        for _ in range(TRAININGS):
            self.source.happen(150)
            trainer.train()
        self.numbers = [info.version for info in self.registry.versions()]

    def rebuilt(self, version: int, source: Interactions | Compacted | None = None) -> Rebuilt:
        """Make one again."""
        return rebuild(
            version, store=self.registry, source=source or self.source, learners=LEARNERS
        )


@pytest.fixture(scope="module")
def trained(empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Twelve versions."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "mlflow.db").write_bytes(empty_mlflow.read_bytes())
    return Trained(folder)


def test_every_version_in_a_row_has_identical_weights(trained: Trained) -> None:
    results = [trained.rebuilt(version) for version in trained.numbers]

    assert len(results) == 2 * (TRAININGS + 1)
    assert [result.reason for result in results] == ["weights are identical"] * len(results)
    assert all(result.identical for result in results)
    assert {result.rows_match for result in results} == {True, None}


@pytest.mark.parametrize("sizes", [(7,), (1, 100, 33), (1000,)])
def test_weights_do_not_depend_on_how_rows_lie_in_files(
    trained: Trained, tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    compacted = Compacted(trained.source.rows, tmp_path, sizes=sizes)

    for version in trained.numbers[: 2 * TRAININGS]:
        assert trained.rebuilt(version, compacted).identical


def test_rows_past_retention_are_said_to_be(trained: Trained, tmp_path: Path) -> None:
    compacted = Compacted(trained.source.rows, tmp_path, sizes=(1000,), first=200)
    oldest = min(v for v in trained.numbers if trained.rebuilt(v).rows)

    result = trained.rebuilt(oldest, compacted)

    assert not result.identical
    assert result.reason == NOT_KEPT
    assert result.rows_found < result.rows
    assert trained.rebuilt(max(trained.numbers), compacted).identical


def test_rows_that_were_altered_are_found_out(trained: Trained) -> None:
    altered = Interactions()
    rows = trained.source.rows.to_pylist()
    rows[-1] = rows[-1] | {"quality": 0.123}
    rows[-2] = rows[-2] | {"quality": 0.123}
    rows[-3] = rows[-3] | {"quality": 0.123}
    altered.rows = pa.Table.from_pylist(rows, schema=trained.source.rows.schema)

    result = trained.rebuilt(max(trained.numbers), altered)

    assert (result.identical, result.rows_match, result.rebuilt_sha256) == (False, False, None)
    assert result.reason == "its rows are not the ones it was trained on"


def test_an_unknown_version_is_named_as_such(trained: Trained) -> None:
    with pytest.raises(UnknownVersion, match="99"):
        trained.rebuilt(99)
