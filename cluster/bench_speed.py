"""`barp bench serve`, `ledger`, `peers` and `scale`: how fast it is, and what a rate takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.bench_options import DEFAULT_CACHE_DIR, CacheOption
from cluster.console import JsonOption, print_json, steps_progress
from policies.encoder_files import EncoderKind
from policies.sharding import MAX_SHARDS


def bench_serve(
    encoder: Annotated[EncoderKind, typer.Option(help="Encoder that serves.")] = "static",
    replicas: Annotated[int, typer.Option(help="Router replicas.", min=1)] = 1,
    duration: Annotated[float, typer.Option(help="Length of each measurement, s.", min=0.5)] = 5.0,
    rounds: Annotated[int, typer.Option(help="Turns of every contender.", min=1)] = 3,
    clients: Annotated[int, typer.Option(help="Clients of the closed loop.", min=1)] = 32,
    rate: Annotated[
        list[int] | None, typer.Option(help="Fixed rate, requests/s; may be given again.")
    ] = None,
    soak: Annotated[
        float, typer.Option(help="Minutes at 70 % of saturation afterwards; 0 for none.", min=0.0)
    ] = 0.0,
    cache_dir: CacheOption = DEFAULT_CACHE_DIR,
    json: JsonOption = False,
) -> None:
    """Measure the service over HTTP beside a bare server and the pipeline without any."""
    from cluster.bench_report import show_serve
    from cluster.bench_serve import ServePlan, run_serve_benchmark
    from cluster.bench_sources import built_encoder

    with steps_progress() as show:
        plan = ServePlan(
            encoder=encoder,
            encoder_dir=built_encoder(encoder, cache_dir, progress=show),
            replicas=replicas,
            duration_s=duration,
            rounds=rounds,
            clients=clients,
            rates=tuple(rate or (100, 500)),
            soak_s=60.0 * soak,
        )
        found = run_serve_benchmark(plan, progress=show)
    show_serve(found)
    if json:
        print_json(found)


def bench_ledger(
    ledger_url: Annotated[
        str | None,
        typer.Option(help="SQLAlchemy URL of an empty ledger; default a new SQLite file."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder for file and dataset, on the disk to measure; default the "
            "system's temporary one. What is written there is removed."
        ),
    ] = None,
    decisions: Annotated[
        int, typer.Option(help="Decisions recorded; half of them get an outcome.", min=20_000)
    ] = 100_000,
    shards: Annotated[
        int, typer.Option(help="Aggregators side by side.", min=1, max=MAX_SHARDS)
    ] = 1,
    compact: Annotated[
        bool,
        typer.Option(
            help="At the end, let everything leave the ledger as if two days had passed, and say "
            "how large its file is then."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure durable feedback at the aggregators: one by one, in lists, as Arrow."""
    import tempfile

    from cluster.bench_ledger import LedgerPlan, run_ledger_benchmark
    from cluster.bench_report import show_ledger

    with tempfile.TemporaryDirectory(prefix="barp-ledger-", dir=folder) as place:
        plan = LedgerPlan(
            ledger_url=ledger_url,
            folder=Path(place).resolve(),
            decisions=decisions,
            shards=shards,
            compact=compact,
        )
        with steps_progress() as show:
            found = run_ledger_benchmark(plan, progress=show)
    show_ledger(found)
    if json:
        print_json(found)


def bench_peers(
    requests: Annotated[int, typer.Option(help="Decisions of each in a round.", min=10)] = 200,
    rounds: Annotated[int, typer.Option(help="Turns of every contender.", min=1)] = 5,
    cache_dir: CacheOption = DEFAULT_CACHE_DIR,
    json: JsonOption = False,
) -> None:
    """Measure one decision in-process beside ParetoBandit, the router published as a package."""
    from cluster.bench_peers import PeersPlan, run_peers_benchmark
    from cluster.bench_report import show_peers
    from cluster.bench_sources import built_encoder
    from policies.encoder_files import KINDS

    with steps_progress() as show:
        folders = {kind: built_encoder(kind, cache_dir, progress=show) for kind in KINDS}
        plan = PeersPlan(encoder_dirs=folders, requests=requests, rounds=rounds)
        found = run_peers_benchmark(plan, progress=show)
    show_peers(found)
    if json:
        print_json(found)


def bench_scale(
    points_file: Annotated[
        Path | None,
        typer.Option(
            "--points",
            help="What an earlier run printed with --json, whose points to use; without it this "
            "machine is measured, some three minutes.",
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option(help="Requests simulated for each rate.", min=1_000)
    ] = 20_000,
    cores_per_node: Annotated[int, typer.Option(help="Cores of a node.", min=1)] = 8,
    usd_per_core_hour: Annotated[float, typer.Option(help="Price of a core, USD an hour.")] = 0.04,
    postgres_rows_per_s: Annotated[
        float, typer.Option(help="Rows that one PostgreSQL takes durably, per second.")
    ] = 20_000.0,
    keeper_rows_per_s: Annotated[
        float,
        typer.Option(help="Interactions the keeper exports; joined_per_s of `barp bench ledger`."),
    ] = 19_000.0,
    seed: Annotated[int, typer.Option(help="Seed of the simulated arrivals.")] = 0,
    cache_dir: CacheOption = DEFAULT_CACHE_DIR,
    json: JsonOption = False,
) -> None:
    """Predict what it takes to answer ten to a million requests a second; see docs/scaling.md."""
    from dataclasses import asdict

    from cluster.bench_report import show_scale
    from cluster.bench_scale import read_points, run_scale
    from cluster.bench_sources import built_encoder
    from cluster.scale_measure import measure_points
    from cluster.scale_model import Assumptions

    if points_file is not None:
        points = read_points(points_file)
    else:
        with steps_progress() as show:
            points = measure_points(
                encoder="static",
                encoder_dir=built_encoder("static", cache_dir, progress=show),
                replicas=(1, 2, 4),
                rates=(50, 200, 500, 900),
                duration_s=3.0,
                progress=show,
            )
    given = Assumptions(
        cores_per_node=cores_per_node,
        usd_per_core_hour=usd_per_core_hour,
        postgres_rows_per_s=postgres_rows_per_s,
        keeper_rows_per_s=keeper_rows_per_s,
    )
    found = run_scale(points, given, requests=requests, seed=seed)
    found["points"] = [asdict(point) for point in points]
    show_scale(found)
    if json:
        print_json(found)
