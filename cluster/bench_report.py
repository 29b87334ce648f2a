"""What a benchmark shows a person: one table, references first."""

from __future__ import annotations

from typing import Any, Final

from rich.table import Table

from cluster.console import console
from pipelines.quality_report import QualityReport

# An estimate is flagged where more than this share of the logs gave it too small an ESS.
MOSTLY: Final = 0.5


def show_quality(report: QualityReport) -> None:
    """Show every rule's gap, reward and cost, and what learning online cost."""
    found = report.to_json()
    table = Table(
        "who decides", "gap closed", "as served", "reward", "regret", "score at 1", "USD/1k"
    )
    for name, one in sorted(found["references"].items(), key=lambda item: item[1]["reward"]):
        table.add_row(
            name,
            f"{one['gap_closed']:+.3f}",
            "",
            f"{one['reward']:.4f}",
            _interval(one["online_regret"], ".4f") if "online_regret" in one else "",
            f"{one['score_at_1']:.4f}",
            f"{one['cost_per_1k_at_1']:.3f}",
            style="dim",
        )
    for name, one in found["learners"].items():
        table.add_row(
            f"[bold]{name}[/]",
            _interval(one["gap_closed"], "+.3f"),
            _interval(one["gap_closed_served"], "+.3f"),
            f"{one['reward']['mean']:.4f}",
            _interval(one["online_regret"], ".4f"),
            f"{one['score_at_1']:.4f}",
            f"{one['cost_per_1k_at_1']:.3f}",
        )
    console.print(table)
    monotone = [name for name, one in found["learners"].items() if one["monotone"]]
    lowest = found["lowest_regret"]
    console.print(
        f"{found['n_train']} training and {found['n_test']} held-out prompts, {len(report.arms)} "
        f"models, {found['seeds']} seeds, tau = {found['tau']:.6f} USD (mean cost of the dearest)"
    )
    console.print(
        f"monotone: {', '.join(monotone) or 'none'}; least regret: {lowest['name']}, "
        f"{found['default']} minus it {_interval(lowest['default_minus_lowest'], '+.4f')}"
    )


def show_coverage(found: dict[str, Any]) -> None:
    """Show coverage, error and effective sample size by exploration, region and estimator."""
    table = Table("explored", "judged", "region", "estimator", "covers", "rmse", "bias", "ESS", "")
    for exploration, ways in found["explorations"].items():
        for way, regions in ways.items():
            for region, estimators in regions.items():
                for name, one in estimators.items():
                    table.add_row(
                        f"{float(exploration):.0%}",
                        way,
                        region,
                        name,
                        f"{one['coverage']:.1%}",
                        f"{one['rmse']:.4f}",
                        f"{one['bias']:+.4f}",
                        f"{one['mean_ess']:.0f}",
                        "untrusted" if one["untrusted_share"] > MOSTLY else "",
                    )
    console.print(table)
    console.print(
        f"{found['repetitions']} logs of {found['rows']} rows from {found['n_pool']} prompts; the "
        f"target's true reward is {found['truth']['overall']:.4f}"
    )


def _interval(value: dict[str, float | list[float] | None], form: str) -> str:
    """Write a mean with half its interval's width."""
    mean, interval = value["mean"], value["ci95"]
    if not isinstance(interval, list):
        return f"{mean:{form}}"
    return f"{mean:{form}} ± {(interval[1] - interval[0]) / 2:.3f}"
