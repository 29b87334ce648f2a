"""Where words go: progress and tables to stderr, one JSON object to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines.replay_report import Progress as ReplayCallback
from pipelines.replay_report import ReplayProgress

console: Final = Console(stderr=True)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")
]


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object as the last line of stdout; NaN is a bug and raises ValueError."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()


@contextmanager
def replay_progress() -> Iterator[ReplayCallback]:
    """Show a bar of the requests answered and the version that answers."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("requests"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("routing", total=None)

        def show(progress: ReplayProgress) -> None:
            failed = f", [red]{progress.failed} failed[/]" if progress.failed else ""
            bar.update(
                task,
                completed=progress.done,
                total=progress.total,
                description=f"version {progress.policy_version} decides{failed}",
            )

        yield show


@contextmanager
def steps_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar of steps: what is being done, how many of how many are done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda step, done, total: bar.update(
            task, description=step, completed=done, total=total
        )
