"""`barp bench`: measurements one can repeat."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from cluster.bench_chaos import bench_chaos
from cluster.console import console, print_json, steps_progress
from pipelines.judgement import Mode
from pipelines.quality_plan import Protocol, ReferenceSet
from pipelines.replay_plan import Stream
from policies.encoder_files import EncoderKind
from policies.errors import InvalidRequest
from policies.sharding import MAX_SHARDS

bench = typer.Typer(help="Measure, with one JSON object for each figure.", no_args_is_help=True)

bench.command("chaos")(bench_chaos)

DEFAULT_CACHE_DIR: Final = Path(".barp/bench")

CacheOption = Annotated[
    Path, typer.Option(help="Folder for encoders and encoded prompts, kept between runs.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")
]
EncoderOption = Annotated[
    str, typer.Option(help="`minilm` or `static`; or the folder of an encoder that was built.")
]
TrainOption = Annotated[
    str, typer.Option(help="`paretobandit`, a wide .parquet file or a RouterBench .csv.")
]


@bench.command("quality")
def bench_quality(
    train: TrainOption = "paretobandit",
    test: Annotated[
        str | None, typer.Option(help="Outcomes to judge on, of the same models.")
    ] = None,
    split: Annotated[float, typer.Option(help="Share of prompts held out without --test.")] = 0.2,
    protocol: Annotated[
        Protocol, typer.Option(help="`deployment`: each prompt once. `simulated`: --passes times.")
    ] = "deployment",
    stream: Annotated[
        Stream, typer.Option(help="Preferences: `uniform` on [0, 1] or `typical` (70 % at 0.7).")
    ] = "uniform",
    learners: Annotated[
        str, typer.Option(help="Learners, separated by commas, the default one first.")
    ] = "posterior,barp",
    encoder: EncoderOption = "minilm",
    seeds: Annotated[int, typer.Option(help="Runs; each redraws split, order and draws.")] = 10,
    delay: Annotated[int, typer.Option(help="Prompts between a decision and its feedback.")] = 64,
    passes: Annotated[int, typer.Option(help="Passes over the prompts (simulated).")] = 1,
    missing: Annotated[float, typer.Option(help="Share of outcomes that never come.")] = 0.0,
    holdout_tasks: Annotated[
        str, typer.Option(help="Tasks left out of training and judged on, comma separated.")
    ] = "",
    exploration_total: Annotated[
        float, typer.Option(help="Probability that learners share evenly over the arms.")
    ] = 0.02,
    first_seed: Annotated[
        int, typer.Option(help="First of the seeds: settings are chosen on others than reported.")
    ] = 0,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A learner's setting, `barp-dr.head=linear`; may be given again."
        ),
    ] = None,
    cost_ceiling_usd: Annotated[
        float | None,
        typer.Option(help="tau, USD; 1 leaves costs unscaled. Else the dearest model's mean."),
    ] = None,
    fresh_draws: Annotated[
        bool, typer.Option(help="Thompson draws anew for each request, not the version's own.")
    ] = False,
    perturb: Annotated[
        str, typer.Option(help="Judge on prompts written differently too: typos,lower,reworded.")
    ] = "",
    references: Annotated[
        ReferenceSet,
        typer.Option(help="`bandits` leaves out full-information routers, `simple` peers too."),
    ] = "all",
    plots: Annotated[Path | None, typer.Option(help="Folder to draw pictures into.")] = None,
    cache_dir: CacheOption = DEFAULT_CACHE_DIR,
    json: JsonOption = False,
) -> None:
    """Measure how well learners route recorded outcomes, beside every reference."""
    from cluster.bench_report import show_quality
    from cluster.bench_sources import encoded_outcomes
    from pipelines.quality import run_quality
    from pipelines.quality_plan import QualityPlan
    from pipelines.quality_plots import draw_plots
    from pipelines.quality_report import QualityReport

    plan = QualityPlan(
        learners=_names(learners),
        protocol=protocol,
        stream=stream,
        seeds=seeds,
        split=split,
        delay=delay,
        passes=passes,
        missing=missing,
        holdout_tasks=_names(holdout_tasks),
        exploration_total=exploration_total,
        first_seed=first_seed,
        settings=tuple(changes or ()),
        cost_ceiling_usd=cost_ceiling_usd,
        fresh_draws=fresh_draws,
    )
    with steps_progress() as show:
        encoded = partial(encoded_outcomes, encoder=encoder, cache_dir=cache_dir, progress=show)
        trained_on = encoded(train, perturbed=() if test else _names(perturb))
        judged_on = test and encoded(test, perturbed=_names(perturb))
        results = run_quality(
            plan, trained_on, judged_on or None, references=references, progress=show
        )
    report = QualityReport(
        data=train,
        test=test,
        arms=trained_on.table.arms,
        encoder_id=trained_on.encoder_id,
        plan=plan,
        results=results,
    )
    show_quality(report)
    for path in draw_plots(report, plots) if plots else ():
        console.print(f"  {path}", soft_wrap=True)
    if json:
        print_json(report.to_json())


@bench.command("serve")
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


@bench.command("coverage")
def bench_coverage(
    train: TrainOption = "paretobandit",
    learner: Annotated[str, typer.Option(help="Whose policies log and are judged.")] = "posterior",
    encoder: EncoderOption = "minilm",
    repetitions: Annotated[int, typer.Option(help="How many logs are drawn.", min=1)] = 400,
    rows: Annotated[int, typer.Option(help="Interactions in each log.", min=10)] = 1_000,
    learning_repetitions: Annotated[
        int, typer.Option(help="How many more logs the learner writes as it learns.", min=0)
    ] = 0,
    explorations: Annotated[
        str, typer.Option(help="Shares of the logged requests spread evenly, comma separated.")
    ] = "0.2,0.05",
    seed: Annotated[int, typer.Option(help="Seed of the split and of all draws.")] = 0,
    cache_dir: CacheOption = DEFAULT_CACHE_DIR,
    json: JsonOption = False,
) -> None:
    """Measure how often off-policy intervals hold the truth."""
    from cluster.bench_report import show_coverage
    from cluster.bench_sources import encoded_outcomes
    from pipelines.coverage import CoveragePlan, run_coverage

    plan = CoveragePlan(
        learner=learner,
        repetitions=repetitions,
        rows=rows,
        learning_repetitions=learning_repetitions,
        explorations=tuple(_share(text) for text in _names(explorations)),
        seed=seed,
    )
    with steps_progress() as show:
        outcomes = encoded_outcomes(train, encoder, cache_dir, progress=show)
        found = {"data": train} | run_coverage(plan, outcomes, progress=show)
    show_coverage(found)
    if json:
        print_json(found)


@bench.command("ledger")
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
            folder=Path(place),
            decisions=decisions,
            shards=shards,
            compact=compact,
        )
        with steps_progress() as show:
            found = run_ledger_benchmark(plan, progress=show)
    show_ledger(found)
    if json:
        print_json(found)


@bench.command("peers")
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


@bench.command("gate")
def bench_gate(
    train: TrainOption = "paretobandit",
    runs: Annotated[int, typer.Option(min=1, help="Trials of each kind.")] = 60,
    mode: Annotated[
        Mode, typer.Option(help="What challengers have to show: not to be worse, or to be better.")
    ] = Mode.NONINFERIOR,
    share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="The canary's share of the sessions.")
    ] = 0.2,
    effect: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="True loss that makes a challenger bad, gain that makes one good; half of it is "
            "the margin. Default 0.02, or 0.005 where routing itself is worth less than 0.1.",
        ),
    ] = None,
    delay: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Requests until an outcome is known, in the mean; the last model's calls take "
            "three times as long as the first one's.",
        ),
    ] = 0.0,
    missing: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of the outcomes that never come.")
    ] = 0.0,
    learner: Annotated[str, typer.Option(help="Who makes the versions.")] = "posterior",
    encoder: EncoderOption = "static",
    seed: Annotated[int, typer.Option(help="Of the split and all draws.")] = 0,
    cache_dir: CacheOption = DEFAULT_CACHE_DIR,
    json: JsonOption = False,
) -> None:
    """Measure how often the gate lets bad, better and equal challengers through."""
    from cluster.bench_report import show_gate
    from cluster.bench_sources import encoded_outcomes
    from pipelines.gate_bench import GatePlan, run_gate_bench
    from pipelines.gate_world import Lateness

    plan = GatePlan(
        runs=runs,
        mode=mode,
        share=share,
        effect=effect or None,
        learner=learner,
        lateness=Lateness(delay=delay, missing=missing),
        seed=seed,
    )
    with steps_progress() as show:
        outcomes = encoded_outcomes(train, encoder, cache_dir, progress=show)
        found = run_gate_bench(plan, outcomes, progress=show)
    show_gate(found)
    if json:
        print_json(found)


def _share(text: str) -> float:
    """Read a share above 0; raises InvalidRequest."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise InvalidRequest(
            f"explorations={text} must be shares above 0, at most 1",
            field="explorations",
            value=text,
            allowed="above 0, at most 1",
        )
    return share


def _names(listed: str) -> tuple[str, ...]:
    """Part a list at its commas."""
    return tuple(name.strip() for name in listed.split(",") if name.strip())


@bench.command("scale")
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
    )
    found = run_scale(points, given, requests=requests, seed=seed)
    found["points"] = [asdict(point) for point in points]
    show_scale(found)
    if json:
        print_json(found)
