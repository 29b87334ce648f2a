"""`barp bench chaos`: kills parts of a service under load, and audits what it kept."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.console import JsonOption, console, print_json


def bench_chaos(
    minutes: Annotated[float, typer.Option(help="How long at least, minutes.", min=0.0)] = 10.0,
    kills: Annotated[int, typer.Option(help="How many processes are killed.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Seed of schedule and outcomes.")] = 0,
    rate: Annotated[
        float, typer.Option(help="Requests a second, half of them reports.", min=2.0)
    ] = 200.0,
    ledger_url: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL of an empty ledger; SQLite without it.")
    ] = None,
    shards: Annotated[
        int, typer.Option(help="Aggregators; more than one needs PostgreSQL.", min=1)
    ] = 1,
    encoder_dir: Annotated[
        Path | None, typer.Option(help="A static encoder that was built; one is built without it.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="A new folder for the service's state, kept afterwards.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Kill replica, aggregator, proxy, trainer, publisher, controller, all, one after the other.

    Callers go on calling; each repeats itself for up to 90 s, with the same event id. At the end
    what they were told is compared with ledger and dataset. Exit status 1 where anything that was
    acknowledged is lost or counted twice, or the service does not end ready.
    """
    from cluster.chaos import ChaosPlan, run_chaos

    settings: dict[str, object] = {"aggregator_shards": shards}
    if ledger_url is not None:
        settings["ledger_url"] = ledger_url
    if encoder_dir is not None:
        settings["encoder_dir"] = encoder_dir.resolve()
    plan = ChaosPlan(minutes=minutes, kills=kills, seed=seed, rate_per_s=rate, settings=settings)
    with tempfile.TemporaryDirectory(prefix="barp-chaos-") as folder:
        state_dir = Path(folder) / "state" if keep is None else keep.resolve()
        report = run_chaos(plan, state_dir, progress=console.print)
    _show(report)
    if json:
        print_json(report)
    if report["lost"] or report["doubled"] or not report["ready_at_end"]:
        raise typer.Exit(1)


def _show(report: dict[str, Any]) -> None:
    """Show kills and recovery by part, then the audit."""
    table = Table("part", "kills", "back after, median s", "max s")
    for part, times in report["recovery_s"].items():
        kills = str(report["kills"][part])
        table.add_row(part, kills, f"{times['median']:.1f}", f"{times['max']:.1f}")
    console.print(table)
    table = Table("audit", "")
    for name, value in report.items():
        if name not in ("kills", "recovery_s"):
            table.add_row(name, str(value))
    console.print(table)
