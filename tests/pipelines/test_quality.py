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
FIXED = {"uniform", "cheapest", "largest", "best_single", "even_log", "oracle"}
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


def test_regret_is_paired_with_every_other_contender(report: QualityReport) -> None:
    found = report.to_json()
    assert set(found["regret_default_minus"]) == {"barp", *PEERS}
    mine = found["learners"]["posterior"]["online_regret"]["per_seed"]
    theirs = found["references"]["linucb"]["online_regret"]["per_seed"]
    assert found["regret_default_minus"]["linucb"]["per_seed"] == pytest.approx(
        [a - b for a, b in zip(mine, theirs, strict=True)]
    )


def test_the_score_at_1_stands_beside_the_largest_models(report: QualityReport) -> None:
    found = report.to_json()
    assert found["references"]["largest"]["score_at_1_over_largest"] == 0.0
    assert found["references"]["oracle"]["score_at_1_over_largest"] > 0.0


def test_peers_without_full_information_are_the_same_peers(report: QualityReport) -> None:
    (result, _) = run_quality(PLAN, OUTCOMES, references="bandits")
    assert set(result.references) == FIXED
    for name in PEERS:
        expected = report.results[0].peers[name].regret
        np.testing.assert_array_equal(result.peers[name].regret, expected)


def test_runs_begin_at_the_first_seed(report: QualityReport) -> None:
    plan = QualityPlan(learners=("posterior",), seeds=1, first_seed=1)
    (result,) = run_quality(plan, OUTCOMES, references="simple")
    expected = report.results[1].learners["posterior"].regret
    np.testing.assert_array_equal(result.learners["posterior"].regret, expected)


def test_a_given_tau_is_kept_to() -> None:
    plan = QualityPlan(learners=("posterior",), seeds=1, cost_ceiling_usd=1.0)
    (result,) = run_quality(plan, OUTCOMES, references="simple")
    assert result.cost_ceiling_usd == 1.0


def test_choices_on_prompts_written_differently_are_compared() -> None:
    """The same contexts keep every choice; blank ones lose some, and with them reward."""
    same, blank = OUTCOMES.contexts, np.zeros_like(OUTCOMES.contexts)
    outcomes = dataclasses.replace(OUTCOMES, perturbed={"same": same, "blank": blank})
    plan = QualityPlan(learners=("posterior",), seeds=1)
    results = run_quality(plan, outcomes, references="simple")
    found = QualityReport(
        data="f", test=None, arms=OUTCOMES.table.arms, encoder_id="e", plan=plan, results=results
    ).to_json()["learners"]["posterior"]
    assert found["perturbed"]["same"]["choices_kept"]["mean"] == pytest.approx(1.0)
    assert found["perturbed"]["same"]["reward_lost"]["mean"] == 0.0
    assert found["perturbed"]["blank"]["choices_kept"]["mean"] < 1.0
    lost = found["reward"]["mean"] - found["perturbed"]["blank"]["reward_lost"]["mean"]
    assert results[0].learners["posterior"].perturbed["blank"].found.reward.mean() == (
        pytest.approx(lost)
    )


def test_fresh_draws_change_the_pmf_a_little() -> None:
    """The whole stream: at first the sweep, which draws nothing, takes nearly every request."""
    plan = QualityPlan(learners=("posterior",), seeds=1, settings=("posterior.sweep_rows=10",))
    both = (plan, dataclasses.replace(plan, fresh_draws=True))
    fixed, fresh = (
        run_quality(one, OUTCOMES, references="simple")[0].learners["posterior"].regret
        for one in both
    )
    assert (fresh != fixed).any()
    assert fresh.mean() == pytest.approx(fixed.mean(), abs=0.02)


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
