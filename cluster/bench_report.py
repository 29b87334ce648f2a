"""What a benchmark shows a person: one table, references first."""

from __future__ import annotations

from collections.abc import Mapping
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
    for name, one in found["learners"].items():
        for kind, change in one["perturbed"].items():
            kept, lost = change["choices_kept"], change["reward_lost"]
            console.print(
                f"{name}, prompts {kind}: {kept['mean']:.1%} of choices kept, reward lost "
                f"{_interval(lost, '+.4f')}"
            )
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
    for name, difference in found["regret_default_minus"].items():
        console.print(
            f"  regret of {found['default']} minus {name}'s, paired: "
            f"{_interval(difference, '+.4f')}"
        )


def show_serve(found: dict[str, Any]) -> None:
    """Show throughput beside its measures, latency at fixed rates, and what was recorded."""
    table = Table("who answers", "per second", "p50 ms", "p95 ms", "p99 ms")
    http, batch = found["http"], found["http_batch"]
    latencies = (f"{http[name]:.2f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
    table.add_row("[bold]service[/]", f"{http['rps']:.0f}", *latencies)
    table.add_row(
        "service, batches", f"{batch['decisions_per_s']:.0f}", "", "", f"{batch['p99_ms']:.2f}"
    )
    for rate, one in found["fixed_rate"].items():
        table.add_row("service, paced", rate, f"{one['p50_ms']:.2f}", "", f"{one['p99_ms']:.2f}")
    alone = found["one_client"]
    table.add_row("service, one client", "", f"{alone['p50_ms']:.2f}", "", f"{alone['p99_ms']:.2f}")
    table.add_row("uvicorn, FastAPI", f"{found['uvicorn_noop_rps']:.0f}", style="dim")
    table.add_row("uvicorn, raw ASGI", f"{found['raw_asgi_rps']:.0f}", style="dim")
    table.add_row("no server", f"{found['inprocess_rps']:.0f}", style="dim")
    table.add_row("encoder alone", f"{found['encode_rps']:.0f}", style="dim")
    console.print(table)
    frontier = ", ".join(f"{rate}/s at {bound} ms" for bound, rate in found["frontier"].items())
    console.print(
        f"{found['ratio_to_noop']:.2f} of uvicorn and FastAPI, "
        f"{found['ratio_to_raw_asgi']:.2f} of uvicorn alone, "
        f"{found['ratio_to_inprocess']:.2f} of no server; "
        f"{found['cpu_s_per_1000']:.2f} CPU s per 1,000; p99 kept: {frontier}"
    )
    swap = found["swap"]
    console.print(
        f"swap under load: {swap['swap_ms_max']:.0f} ms, p99 {swap['p99_before_ms']:.1f} then "
        f"{swap['p99_during_ms']:.1f} ms; failed {found['failed']}; "
        f"recorded {found['recorded']} of {found['decided']} decided; started in "
        f"{found['start_s']:.0f} s"
    )
    if "soak" in found:
        show_soak(found["soak"])


def show_ledger(found: dict[str, Any]) -> None:
    """Show durable outcomes a second by the way they came, and what they left behind."""
    table = Table("outcomes", "per second", "p99 ms")
    table.add_row("one a call", f"{found['single_per_s']}", f"{found['p99_ms']:.1f}")
    table.add_row("in lists", f"{found['batched_per_s']}", "")
    table.add_row("as Arrow", f"{found['arrow_per_s']}", "")
    table.add_row("as Arrow, joined and exported", f"{found['joined_per_s']}", "")
    console.print(table)
    detail = found["detail"]
    console.print(
        f"{found['backend']}, every commit flushed; {detail['decisions']} decisions recorded at "
        f"{detail['recorded_per_s']}/s; aggregators: {found['shards']}, {detail['aggregator_mb']} "
        f"MB each, keeper {detail['keeper_mb']} MB, ledger {detail['ledger_mb']} MB, dataset "
        f"{detail['dataset_mb']} MB"
    )
    if "compact_s" in detail:
        console.print(
            f"compacted in {detail['compact_s']} s: {detail['kept']} decisions and "
            f"{detail['compacted_mb']} MB are left of the ledger"
        )


def show_peers(found: dict[str, Any]) -> None:
    """Show what one decision takes, encoding and deciding apart."""
    table = Table("who decides", "per second", "p50 ms", "p99 ms", "encode p50", "decide p50")
    for name, one in found.items():
        times = ("p50_ms", "p99_ms", "encode_p50_ms", "decide_p50_ms")
        table.add_row(name, f"{one['rps']:.0f}", *(f"{one[time]:.3f}" for time in times))
    console.print(table)


def show_soak(found: dict[str, Any]) -> None:
    """Show what steady load came to."""
    most = max(found["memory_mb"], key=lambda name: found["memory_mb"][name]["grown"])
    console.print(
        f"soak: {found['seconds']:.0f} s at {found['rate']:.0f}/s, p99 {found['p99_ms']:.1f} ms, "
        f"failed {found['failed']}; joined {found['joined']} of {found['reported']} reported; "
        f"memory {'flat' if found['flat'] else 'grows'}, most in {most}: "
        f"{found['memory_mb'][most]['grown']:+.1f} MB"
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


def show_gate(found: dict[str, Any]) -> None:
    """Show how many challengers of each kind were promoted."""
    table = Table("challengers", "promoted", "of", "decisions, median", "lost", title="gate")
    others = ("good", "routine", "routine_apart")
    kinds = {**found["bad"], **{kind: found[kind] for kind in others}}
    for kind, one in kinds.items():
        median = one.get("median_decisions")
        shown = "" if median is None else f"{median:.0f}"
        lost = f"at least {one['least_loss']:.4f}" if "least_loss" in one else ""
        table.add_row(kind, str(one["promoted"]), str(one["runs"]), shown, lost)
    console.print(table)
    for kind, one in found["guardrail"].items():
        console.print(f"guardrail, {kind}: {one['breaches']} of {one['runs']} sent back")
    covered = ", ".join(f"{name} {share:.1%}" for name, share in found["coverage"].items())
    console.print(f"95 % intervals of the champion's reward from the mixed log hold it: {covered}")


def show_guardrail(found: dict[str, Any]) -> None:
    """Show how many sound champions were sent back."""
    table = Table("seed", "alarms", "reward", "cost", "feedback")
    for seed, one in enumerate(found["seeds"]):
        counts = (one[name] for name in ("alarms", "reward", "cost", "feedback"))
        table.add_row(str(seed), *(str(count) for count in counts))
    console.print(table)
    console.print(
        f"{found['hours']:g} quiet hours a seed at {found['rate']:g}/s: {found['probations']} "
        f"probations one after the other; {found['alarms_per_ten_hours']:.2f} false alarms in ten "
        f"hours"
    )


def _interval(value: dict[str, float | list[float] | None], form: str) -> str:
    """Write a mean with half its interval's width."""
    mean, interval = value["mean"], value["ci95"]
    if not isinstance(interval, list):
        return f"{mean:{form}}"
    return f"{mean:{form}} ± {(interval[1] - interval[0]) / 2:.3f}"


def show_scale(found: Mapping[str, Any]) -> None:
    """Show where one of each part is full, what each rate takes, and how wrong the model is."""
    table = Table("one of it will do for", "requests/s", "then")
    for name, limit in found["limits"].items():
        table.add_row(name, f"{limit['rate']:,.0f}", limit["then"])
    console.print(table)
    table = Table(
        "requests/s", "replicas", "nodes", "shards", "primaries", "keepers", "publishers",
        "USD/h", "USD/million", "p50 ms", "p99 ms", "swap ms", "ledger GB/day", "fullest",
    )  # fmt: skip
    for one in found["predicted"]:
        table.add_row(
            f"{one['rate']:,}",
            f"{one['replicas']:,}",
            f"{one['nodes']:,}",
            f"{one['aggregator_shards']:,}",
            f"{one['postgresql_primaries']:,}",
            f"{one['keepers']:,}",
            f"{one['publishers']:,}",
            f"{one['usd_per_hour']:,.2f}",
            f"{one['usd_per_million']:,.3f}",
            f"{one['p50_ms']:.1f}",
            f"{one['p99_ms']:.1f}",
            f"{one['swap_ms']:,.0f}",
            f"{one['ledger_gb_per_day']:,.1f}",
            one["fullest"],
        )
    console.print(table)
    table = Table("measured at", "", "replica ms", "p50 ms", "p99 ms")
    for one in found["checked"]:
        for kind in ("measured", "predicted"):
            table.add_row(
                f"{one['replicas']} replicas, {one['rate']}/s" if kind == "measured" else "",
                kind,
                *(f"{one[name][kind]:.2f}" for name in ("replica_ms", "p50_ms", "p99_ms")),
            )
    console.print(table)
