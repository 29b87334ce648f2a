"""Three pictures of a benchmark: cost-quality frontier, arm shares, online regret."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipelines.quality import GRID
from pipelines.quality_report import QualityReport, SeedMean, means_by_name, regret_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES: Final = (8.0, 5.5)
DOTS_PER_INCH: Final = 130
# Rules that do not look at the preference, or look at nothing: points, not lines.
POINTS: Final = ("uniform", "cheapest", "largest")


def draw_plots(report: QualityReport, folder: Path) -> list[Path]:
    """Write every picture as PNG into a folder; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "frontier.png"]
    with _axes(paths[0], report, "USD per 1,000 requests (log)", "score") as axes:
        _frontier(axes, report)
    for name in report.plan.learners:
        paths.append(folder / f"arm-share-{name}.png")
        with _axes(paths[-1], report, "weight on quality", f"share of requests ({name})") as axes:
            _shares(axes, report, name)
    paths.append(folder / "regret.png")
    with _axes(paths[-1], report, "requests", "mean regret per request so far") as axes:
        _regret(axes, report)
    return paths


@contextmanager
def _axes(path: Path, report: QualityReport, x: str, y: str) -> Iterator[Axes]:
    """Give a picture to draw into, then write it; no window, no global state."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"].resampled(20)(range(20)))
    plan = report.plan
    axes.set_title(f"{Path(report.data).name}: {plan.protocol}, {plan.seeds} seeds", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    yield axes
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _frontier(axes: Axes, report: QualityReport) -> None:
    """Draw score over cost, one line a rule, one dot a preference."""
    rules = [
        {**one.references, **{name: peer.greedy for name, peer in one.peers.items()}}
        for one in report.results
    ]
    for name, (cost, score) in means_by_name(rules).items():
        style: dict[str, Any] = (
            {"marker": "s", "ls": ""} if name in POINTS else {"lw": 1, "ls": "--"}
        )
        chosen = slice(0, 1) if name in POINTS else slice(None)
        axes.plot(cost[chosen], score[chosen], label=name, alpha=0.8, **style)
    learned = [{n: one.greedy for n, one in result.learners.items()} for result in report.results]
    for name, (cost, score) in means_by_name(learned).items():
        axes.plot(cost, score, marker="o", lw=2, label=f"{name} (learned online)")
    axes.set_xscale("log")


def _shares(axes: Axes, report: QualityReport, name: str) -> None:
    """Stack the arms' shares over the weight on quality."""
    share = report.arm_share(name)
    weights = [point.quality for point in GRID]
    rows = [[share[f"{w:.1f}"][arm] for w in weights] for arm in report.arms]
    axes.stackplot(weights, rows, labels=report.arms, edgecolor="white", lw=0.3)
    axes.set_ylim(0, 1)


def _regret(axes: Axes, report: QualityReport) -> None:
    """Draw the mean regret so far, with 95 % bands over seeds."""
    for name in report.contenders:
        at, running = regret_curve(np.array([one.regret for one in report.online(name)]))
        mean = running.mean(axis=0)
        half = np.array([SeedMean(values=point).half_width or 0.0 for point in running.T])
        (line,) = axes.plot(at, mean, lw=2 if name in report.plan.learners else 1, label=name)
        axes.fill_between(at, mean - half, mean + half, color=line.get_color(), alpha=0.15)
