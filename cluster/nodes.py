"""`barp cluster`: what concerns more than one node."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from cluster.console import JsonOption, console, print_json
from cluster.options import with_settings
from cluster.settings import Settings

cluster = typer.Typer(help="What concerns more than one node.", no_args_is_help=True)


@cluster.command("check")
@with_settings
def check(
    settings: Settings,
    nodes: Annotated[
        int | None,
        typer.Option(
            help="How many nodes there will be; without it the running Ray cluster is asked.", min=1
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check that the settings can serve from several nodes; exit status 1 where they cannot.

    Run it on a node, with the environment that the service has there.
    """
    from cluster.cluster_check import check_cluster, running_nodes

    if nodes is None:
        count, probe = running_nodes()
        checks = check_cluster(settings, nodes=count, probe=probe)
    else:
        checks = check_cluster(settings, nodes=nodes)
    table = Table("check", "found", "needed", "")
    for one in checks:
        table.add_row(one.name, one.found, one.needed, "[green]ok[/]" if one.ok else "[red]no[/]")
    console.print(table)
    if json:
        print_json({"ok": all(c.ok for c in checks), "checks": [c.to_json() for c in checks]})
    if not all(one.ok for one in checks):
        raise typer.Exit(1)
