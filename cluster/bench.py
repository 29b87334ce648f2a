"""`barp bench`: measurements one can repeat; here those of what is decided and judged."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cluster.bench_chaos import bench_chaos
from cluster.bench_options import DEFAULT_CACHE_DIR, CacheOption
from cluster.bench_speed import bench_ledger, bench_peers, bench_scale, bench_serve
from cluster.console import JsonOption, console, print_json, steps_progress
from pipelines.judgement import Mode
from pipelines.quality_plan import Protocol, ReferenceSet
from pipelines.replay_plan import Stream
from policies.errors import InvalidRequest

bench = typer.Typer(help="Measure, with one JSON object for each figure.", no_args_is_help=True)

bench.command("serve")(bench_serve)
bench.command("ledger")(bench_ledger)
bench.command("peers")(bench_peers)
bench.command("scale")(bench_scale)
bench.command("chaos")(bench_chaos)

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


@bench.command("guardrail")
def bench_guardrail(
    train: TrainOption = "paretobandit",
    hours: Annotated[float, typer.Option(min=0.01, help="Hours of traffic for each seed.")] = 10.0,
    rate: Annotated[float, typer.Option(min=1.0, help="Requests a second.")] = 200.0,
    probation: Annotated[
        int, typer.Option(min=200, help="Decisions of one probation, as probation_decisions.")
    ] = 2_000,
    delay_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds until an outcome is known, in the mean.")
    ] = 2.0,
    missing: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of the outcomes that never come.")
    ] = 0.1,
    effect: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Versions are as good where they differ by a tenth of it; as `bench gate`.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often the hours are drawn anew.")] = 1,
    learner: Annotated[str, typer.Option(help="Who makes the versions.")] = "posterior",
    encoder: EncoderOption = "static",
    cache_dir: CacheOption = DEFAULT_CACHE_DIR,
    json: JsonOption = False,
) -> None:
    """Count the guardrail's false alarms: champions sent back that are as good as what was."""
    from cluster.bench_report import show_guardrail
    from cluster.bench_sources import encoded_outcomes
    from pipelines.gate_probation import Watch, run_quiet_hours
    from pipelines.guardrail import Guard

    watch = Watch(guard=Guard(decisions=probation), rate=rate, delay_s=delay_s, missing=missing)
    with steps_progress() as show:
        outcomes = encoded_outcomes(train, encoder, cache_dir, progress=show)
        found = run_quiet_hours(
            outcomes,
            watch,
            hours=hours,
            learner=learner,
            effect=effect or None,
            seeds=seeds,
            progress=show,
        )
    show_guardrail(found)
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
