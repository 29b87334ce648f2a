"""The command `barp`: serve, demo, replay, doctor and settings; operating commands beside it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from cluster import operate
from cluster.bench import bench
from cluster.console import JsonOption, console, print_json, replay_progress
from cluster.encoders import encoder
from cluster.events import show_events
from cluster.instance import LOGS, logging_to
from cluster.keys import keys
from cluster.ledgers import ledger
from cluster.nodes import cluster
from cluster.options import default_text, load_settings, with_settings
from cluster.preview import show_preview
from cluster.settings import Settings
from cluster.supervisor import Supervisor
from pipelines.replay_plan import Stream
from policies.errors import RouterError

app = typer.Typer(
    name="barp",
    help="BaRP Router: one online-learning policy for every trade-off between quality and cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(operate.versions, name="versions")
app.add_typer(operate.models, name="models")
app.add_typer(keys, name="keys")
app.add_typer(bench, name="bench")
app.add_typer(encoder, name="encoder")
app.add_typer(cluster, name="cluster")
app.add_typer(ledger, name="ledger")
app.command("status")(operate.status)
app.command("explain")(operate.explain)
app.command("events")(show_events)
app.command("preview")(show_preview)

logger = logging.getLogger(__name__)

# `-P` keeps the present directory off the import path.
ENTRY: Final = "from cluster.entry import main; main()"


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a known error is one line on stderr and exit status 2.

    A file or folder that cannot be written or read is an error of the same kind.

    Args:
        arguments: What follows `barp`; None takes them from the process.
    """
    try:
        app(arguments)
    except (RouterError, OSError) as error:
        console.print(f"[red]error[/] {error}", soft_wrap=True, highlight=False)
        sys.exit(getattr(error, "exit_status", 2))


@app.command()
@with_settings
def serve(
    settings: Settings,
    supervise: Annotated[
        bool, typer.Option("--supervise", help="Start it again whenever it ends or hangs.")
    ] = False,
) -> None:
    """Run the service on this machine until interrupted (Ctrl-C or SIGTERM).

    Exit status: 0 after a stop; 2 where a setting or the state folder has to be put right; 3 when
    Ray died, and 4 when it did not get ready, where another start may help.
    """
    stop = threading.Event()
    _stop_on_signals(stop)
    if supervise:
        own = [word for word in sys.argv[1:] if word != "--supervise"]
        with logging_to(settings.state_dir / LOGS):
            command = [sys.executable, "-P", "-c", ENTRY, *own]
            supervisor = Supervisor(command, settings.state_dir, stop=stop, say=_step)
            raise typer.Exit(supervisor.run())
    _serve(settings, stop)


def _stop_on_signals(stop: threading.Event) -> None:
    """Let Ctrl-C and SIGTERM end the service in order."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())


def _serve(settings: Settings, stop: threading.Event) -> None:
    """Run the service in this process until told to stop, or until Ray has died under it."""
    from cluster.launch import ClusterDied, local_service

    try:
        with (
            logging_to(settings.state_dir.resolve() / LOGS),
            # Ray takes SIGTERM for a crash of the driver, and sets a handler that ends in one. A
            # stop that comes while the rest starts is kept until it can be done in order.
            local_service(
                settings, progress=_step, ray_is_up=lambda: _stop_on_signals(stop)
            ) as service,
        ):
            console.print(f"[bold green]ready[/] after {service.started_s:.0f} s at {service.url}")
            console.print(f"  API page {service.url}/docs, stop with Ctrl-C")
            service.watch(stop)
    except ClusterDied as error:
        console.print(f"[red]error[/] {error}", soft_wrap=True, highlight=False)
        # Ray's own clean-up at exit would wait for a cluster that is not there.
        os._exit(error.exit_status)


@app.command()
def demo(
    json: JsonOption = False,
    state_dir: Annotated[
        Path, typer.Option(help="Folder for the demo's state; an earlier demo's is replaced.")
    ] = Path(".barp/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the stream's order and preferences.")] = 0,
) -> None:
    """Route real prompts, learn, publish versions, roll back: the whole loop in minutes."""
    from cluster.demo import run_demo
    from cluster.demo_report import show_demo

    report = run_demo(state_dir, seed=seed, progress=_step)
    show_demo(report)
    if json:
        print_json(report.to_json())
    if not report.holds:
        raise typer.Exit(1)


@app.command()
def replay(
    source: Annotated[
        str, typer.Argument(help="`paretobandit`, a wide .parquet file or a RouterBench .csv.")
    ] = "paretobandit",
    url: operate.UrlOption = None,
    key: operate.KeyOption = None,
    rate: Annotated[float, typer.Option(help="Requests per second; 0 is as fast as it goes.")] = 50,
    limit: Annotated[int, typer.Option(help="Prompts to play at most; 0 plays all.")] = 0,
    delay: Annotated[float, typer.Option(help="Longest delay of an outcome, seconds.")] = 2.0,
    stream: Annotated[
        Stream, typer.Option(help="Preferences: `uniform` on [0, 1] or `typical` (70 % at 0.7).")
    ] = "uniform",
    cost_ceiling_usd: Annotated[
        float, typer.Option(help="The service's tau, for the rewards shown, USD.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of order, preferences and delays.")] = 0,
    json: JsonOption = False,
) -> None:
    """Play recorded real outcomes as live traffic against a running service."""
    from cluster.client import reach
    from cluster.demo_report import show_replay
    from pipelines.outcomes import load_outcomes
    from pipelines.replay import Replay

    url, key = reach(url, key)
    play = Replay(
        load_outcomes(source),
        url,
        requests=limit,
        rate_per_s=rate,
        delay_s=(0.0, delay),
        preferences=stream,
        cost_ceiling_usd=cost_ceiling_usd,
        seed=seed,
        api_key=key,
    )
    with replay_progress() as show:
        report = play.run(show)
    show_replay(report)
    if json:
        print_json(report.to_json())
    if report.failed:
        raise typer.Exit(1)


@app.command()
def doctor(json: JsonOption = False) -> None:
    """Check that this machine can run the service; exit status 1 where it cannot."""
    from cluster.doctor import check_installation
    from cluster.ledgers import check_revision

    settings = load_settings()
    checks = [
        *check_installation(state_dir=settings.state_dir, port=settings.port),
        check_revision(settings),
    ]
    table = Table("check", "found", "needed", "")
    for check in checks:
        colour = {"ok": "green", "look": "yellow", "no": "red"}[check.mark]
        table.add_row(check.name, check.found, check.needed, f"[{colour}]{check.mark}[/]")
    console.print(table)
    if json:
        print_json({"ok": all(c.ok for c in checks), "checks": [c.to_json() for c in checks]})
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command("settings")
@with_settings
def show_settings(settings: Settings) -> None:
    """List every setting: its value now, its default, its unit and meaning."""
    table = Table("setting", "value", "default", "meaning")
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        table.add_row(name, str(value), default_text(field), field.description)
    console.print(table)


def _step(text: str) -> None:
    """Show one step of a launch, and log it."""
    console.print(f"[dim]·[/] {text}")
    logger.info("%s", text)
