"""What the demo and a replay show a person: tables of rewards, shares and promises."""

from __future__ import annotations

from rich.table import Table

from cluster.console import console
from cluster.demo import DemoReport
from pipelines.replay_report import ReplayReport


def show_demo(report: DemoReport) -> None:
    """Show rewards by version beside the references, arm shares, and the promises."""
    console.print(_rewards(report))
    console.print(_shares(report))
    slowest = max(report.swap_ms, default=0.0)
    console.print(
        f"{report.replay.requests} requests, {report.replay.failed} failed, "
        f"{report.replay.feedback_joined} of {report.replay.feedback_sent} outcomes joined, "
        f"p50 {report.replay.p50_ms:.0f} ms, p99 {report.replay.p99_ms:.0f} ms, "
        f"{report.swaps} swaps, slowest replica {slowest:.0f} ms"
    )
    for reason, count in report.replay.errors.items():
        console.print(f"  [red]{count}[/] {reason}")
    for promise, kept in report.promises.items():
        console.print(f"  {'[green]yes[/]' if kept else '[red]no [/]'} {promise}")
    console.print(
        f"look closer: .venv/bin/mlflow ui --backend-store-uri {report.mlflow_uri}", soft_wrap=True
    )


def show_replay(report: ReplayReport) -> None:
    """Show what each version decided during a replay."""
    table = Table("version", "requests", "mean reward", "most chosen")
    for traffic in report.versions:
        arm = max(traffic.arm_counts, key=lambda name: traffic.arm_counts[name])
        table.add_row(
            str(traffic.version), str(traffic.requests), f"{traffic.mean_reward:.4f}", arm
        )
    console.print(table)
    latency = "" if report.p50_ms is None else f", p50 {report.p50_ms:.0f} ms"
    console.print(
        f"{report.requests} requests, {report.failed} failed, {report.feedback_joined} of "
        f"{report.feedback_sent} outcomes joined{latency}"
    )
    for reason, count in report.errors.items():
        console.print(f"  [red]{count}[/] {reason}")


def _rewards(report: DemoReport) -> Table:
    """Expected reward on prompts never routed, and how far that is from random to best single."""
    table = Table("who decides", "held-out reward", "random → best single", "online", "requests")
    references = report.references
    for name in ("random", "cheapest", "largest"):
        value = getattr(references, name)
        table.add_row(name, f"{value:.4f}", f"{report.progress(value):.2f}", "", "", style="dim")
    for version, reward in report.rewards.items():
        table.add_row(
            f"version {version}",
            f"{reward.heldout:.4f}",
            f"{report.progress(reward.heldout):.2f}",
            "" if reward.online is None else f"{reward.online:.4f}",
            str(reward.n),
        )
    for name in ("best_single", "oracle"):
        value = getattr(references, name)
        label = "best single per preference" if name == "best_single" else "oracle (clairvoyant)"
        table.add_row(label, f"{value:.4f}", f"{report.progress(value):.2f}", "", "", style="dim")
    return table


def _shares(report: DemoReport) -> Table:
    """How often the last version picks each model, by preference."""
    table = Table("weight on quality", *next(iter(report.shares.values())))
    for weight, share in report.shares.items():
        table.add_row(str(weight), *(f"{part:.0%}" for part in share.values()))
    return table
