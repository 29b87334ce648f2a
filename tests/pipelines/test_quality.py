"""The benchmark on real outcomes of three models: complete, repeatable, and printable as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from outcome_tables import some_outcomes

from pipelines.quality import PEERS, run_quality
from pipelines.quality_plan import QualityPlan
from pipelines.quality_plots import draw_plots
from pipelines.quality_report import QualityReport, SeedMean, regret_curve
from policies.errors import InvalidRequest

PLAN = QualityPlan(learners=("posterior", "barp"), seeds=2)
OUTCOMES = some_outcomes(200)
FIXED = {"uniform", "cheapest", "largest", "best_single", "oracle"}
FITTED = {"ridge", "ridge_components", "knn", "mlp", "task_mix", "task_table"}


@pytest.fixture(scope="module")
def report() -> QualityReport:
    return QualityReport(
        data="some.parquet",
        test=None,
        arms=OUTCOMES.table.arms,
        encoder_id="e",
        plan=PLAN,
        results=run_quality(PLAN, OUTCOMES),
    )


def test_the_object_printed_has_every_figure(report: QualityReport) -> None:
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (found["n_train"], found["n_test"]) == (160, 40)
    assert set(found["references"]) == FIXED | FITTED | set(PEERS)
    assert set(found["learners"]) == {"posterior", "barp"}
    assert found["default"] == "posterior"
    one = found["learners"]["posterior"]
    for name in ("gap_closed", "gap_closed_served", "reward", "online_regret"):
        low, high = one[name]["ci95"]
        assert low <= one[name]["mean"] <= high
    assert list(one["arm_share"]) == [f"{i / 10:.1f}" for i in range(11)]
    for share in one["arm_share"].values():
        assert sum(share.values()) == pytest.approx(1.0)
    assert isinstance(one["monotone"], bool)
    assert found["references"]["linucb"]["online_regret"]["mean"] > 0


def test_the_scale_runs_from_best_single_to_oracle(report: QualityReport) -> None:
    references = report.to_json()["references"]
    assert references["best_single"]["gap_closed"] == 0.0
    assert references["oracle"]["gap_closed"] == 1.0
    assert all(one["gap_closed"] <= 1.0 for one in references.values())
    assert references["uniform"]["reward"] < references["oracle"]["reward"]


def test_tau_is_the_mean_cost_of_the_dearest_arm_in_training(report: QualityReport) -> None:
    dearest = OUTCOMES.table.costs.mean(axis=0).max()
    assert report.to_json()["tau"] == pytest.approx(dearest, rel=0.3)
    assert report.results[0].cost_ceiling_usd != report.results[1].cost_ceiling_usd


def test_the_same_plan_finds_the_same(report: QualityReport) -> None:
    again = dataclasses.replace(report, results=run_quality(PLAN, OUTCOMES, references="simple"))
    for name in PLAN.learners:
        assert again.to_json()["learners"][name] == report.to_json()["learners"][name]


def test_tasks_left_out_are_judged_on() -> None:
    task = OUTCOMES.table.datasets[0]
    plan = QualityPlan(learners=("posterior",), seeds=1, holdout_tasks=(task,))
    (result,) = run_quality(plan, OUTCOMES, references="simple")
    assert result.n_test == OUTCOMES.table.datasets.count(task)


def test_a_test_file_takes_the_place_of_a_split() -> None:
    other = some_outcomes(50, seed=1)
    plan = QualityPlan(learners=("posterior",), seeds=1)
    (result,) = run_quality(plan, OUTCOMES, other, references="simple")
    assert (result.n_train, result.n_test) == (200, 50)


def test_a_test_file_of_other_models_is_refused() -> None:
    table = dataclasses.replace(OUTCOMES.table, arms=("x", "y", "z"))
    with pytest.raises(InvalidRequest, match="test=x, y, z"):
        run_quality(PLAN, OUTCOMES, dataclasses.replace(OUTCOMES, table=table))


def test_an_unknown_learner_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="learners=magic must be some of"):
        run_quality(QualityPlan(learners=("magic",)), OUTCOMES)


def test_one_seed_has_no_interval() -> None:
    assert SeedMean(values=np.array([0.5])).to_json()["ci95"] is None


def test_the_interval_is_students() -> None:
    """Of 1 and 3: 2, give or take 12.706 standard errors of 1."""
    low, high = SeedMean(values=np.array([1.0, 3.0])).to_json()["ci95"]
    assert (low, high) == (pytest.approx(2 - 12.7062, abs=1e-3), pytest.approx(14.7062, abs=1e-3))


def test_the_curve_is_the_mean_so_far() -> None:
    at, running = regret_curve(np.array([[1.0, 3.0, 5.0]]))
    assert at.tolist() == [1, 2, 3]
    assert running.tolist() == [[1.0, 2.0, 3.0]]


def test_plots_are_written(report: QualityReport, tmp_path: Path) -> None:
    names = [path.name for path in draw_plots(report, tmp_path / "plots")]
    assert names == ["frontier.png", "arm-share-posterior.png", "arm-share-barp.png", "regret.png"]
    for name in names:
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
