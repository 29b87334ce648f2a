"""`barp events`: what happened to a running service, once or as it happens."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any, Final
from urllib.parse import urlencode

import typer
from rich.table import Table

from cluster.client import ServiceClient
from cluster.console import JsonOption, console, print_json
from cluster.operate import KeyOption, UrlOption
from policies.events import EventKind

FOLLOW_EVERY_S: Final = 1.0
FOLLOW_LIMIT: Final = 1000


def show_events(
    kind: Annotated[
        list[EventKind] | None, typer.Option(help="Only events of this kind; may be repeated.")
    ] = None,
    after: Annotated[int, typer.Option(help="Only events with a higher number.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="Most events, the newest.", min=1, max=1000)] = 100,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on as more happens, until Ctrl-C.")
    ] = False,
    url: UrlOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """List what happened: promotions, rollbacks, verdicts, breaches, prices.

    With --follow each event is one line as it comes, with --json one JSON object a line.
    """
    with ServiceClient(url, api_key=key) as client:
        answer = _read(client, after=after, limit=limit, kinds=kind or [])
        if not follow:
            _show(answer, json=json)
            return
        try:
            _follow(client, answer, kinds=kind or [], json=json)
        except KeyboardInterrupt:
            return


def _follow(
    client: ServiceClient, answer: dict[str, Any], *, kinds: list[EventKind], json: bool
) -> None:
    """Print one line an event, for ever."""
    while True:
        for event in answer["events"]:
            if json:
                print_json(event)
            else:
                sys.stdout.write(_line(event) + "\n")
                sys.stdout.flush()
        time.sleep(FOLLOW_EVERY_S)
        answer = _read(client, after=answer["last_seq"], limit=FOLLOW_LIMIT, kinds=kinds)


def _read(
    client: ServiceClient, *, after: int, limit: int, kinds: list[EventKind]
) -> dict[str, Any]:
    """Ask for events."""
    query = [("after", str(after)), ("limit", str(limit)), *(("kind", one.value) for one in kinds)]
    found: dict[str, Any] = client.get(f"/v1/events?{urlencode(query)}")
    return found


def _show(answer: dict[str, Any], *, json: bool) -> None:
    """Show a table to a person and, where asked for, the object to a program."""
    table = Table("at", "kind", "version", "who", "why")
    for event in answer["events"]:
        version = "" if event["version"] is None else str(event["version"])
        table.add_row(event["at"], event["kind"], version, event["who"], event["why"])
    console.print(table)
    if json:
        print_json(answer)


def _line(event: dict[str, Any]) -> str:
    """Write an event as one line."""
    version = "" if event["version"] is None else f" version {event['version']}"
    return f"{event['at']} {event['kind']}{version} by {event['who']}: {event['why']}"
