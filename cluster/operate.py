"""`barp versions`, `barp models`, `barp status`: clients of a running service's HTTP API."""

from __future__ import annotations

import getpass
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.table import Table

from cluster.client import ServiceClient
from cluster.console import JsonOption, console, print_json
from cluster.version_view import history_rows, history_table, why_drawn
from cluster.version_view import show_version as show_one

# A rebuild is a training, and may wait for one.
REBUILD_TIMEOUT_S: Final = 600.0

UrlOption = Annotated[
    str | None,
    typer.Option(
        envvar="BARP_URL",
        help="Base URL of the service; without it the one that runs on this state folder, "
        "else http://127.0.0.1:8000.",
    ),
]
KeyOption = Annotated[
    str | None, typer.Option(envvar="BARP_API_KEY", help="API key, where the service asks for one.")
]
WhyOption = Annotated[str, typer.Option(help="Why, kept in the history.")]

versions = typer.Typer(help="List, promote and roll back policy versions.", no_args_is_help=True)
models = typer.Typer(help="List, add, price and remove models.", no_args_is_help=True)


@versions.command("list")
def list_versions(url: UrlOption = None, key: KeyOption = None, json: JsonOption = False) -> None:
    """List every version, newest first, with aliases and held-out estimates."""
    with ServiceClient(url, api_key=key) as client:
        answer = client.get("/v1/versions")
    table = Table("version", "learner", "aliases", "rows", "uplift", "created")
    for version in answer["versions"]:
        uplift = version["metrics"].get("uplift")
        table.add_row(
            str(version["version"]),
            version["kind"],
            ", ".join(version["aliases"]),
            str(int(version["metrics"].get("rows", 0))),
            "" if uplift is None else f"{uplift:+.4f}",
            str(version["created_at"]),
        )
    _show(table, answer, json=json)


@versions.command("show")
def show_version(
    version: Annotated[int, typer.Argument(help="Version number.", min=1)],
    url: UrlOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Show one version: whether it may serve and why, on what evidence, what it came from."""
    with ServiceClient(url, api_key=key) as client:
        answer = client.get(f"/v1/versions/{version}")
        history = client.get("/v1/versions/history")
    show_one(answer, history)
    if json:
        print_json(answer)


@versions.command("rebuild")
def rebuild_version(
    version: Annotated[int, typer.Argument(help="Version number.", min=1)],
    url: UrlOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Make a version again from its parent and rows; exit status 1 where weights differ."""
    with ServiceClient(url, api_key=key, timeout_s=REBUILD_TIMEOUT_S) as client:
        answer = client.post(f"/v1/versions/{version}/rebuild")
    console.print(f"version {version} of {answer['kind']}: {answer['reason']}")
    console.print(f"  rows {answer['rows_found']} of {answer['rows']}")
    console.print(f"  weights {answer['weights_sha256']}, rebuilt {answer['rebuilt_sha256']}")
    if json:
        print_json(answer)
    if not answer["identical"]:
        raise typer.Exit(1)


@versions.command("promote")
def promote(
    version: Annotated[int, typer.Argument(help="Version number.", min=1)],
    why: WhyOption = "promoted by hand",
    url: UrlOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Make a version the champion on every replica."""
    with ServiceClient(url, api_key=key) as client:
        body = {"who": getpass.getuser(), "why": why}
        move = client.post(f"/v1/versions/{version}/promote", body)
    _show_move(move, json=json)


@versions.command("rollback")
def rollback(
    to: Annotated[
        int | None, typer.Option(help="Version number; without it the previous champion.", min=1)
    ] = None,
    why: WhyOption = "rolled back by hand",
    url: UrlOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Go back to the previous champion, or to any version, on every replica."""
    body = {"who": getpass.getuser(), "why": why} | ({"to": to} if to is not None else {})
    with ServiceClient(url, api_key=key) as client:
        move = client.post("/v1/versions/rollback", body)
    _show_move(move, json=json)


@versions.command("history")
def history(url: UrlOption = None, key: KeyOption = None, json: JsonOption = False) -> None:
    """List moves of champion and canary, breaches and quarantines: when, who, why."""
    with ServiceClient(url, api_key=key) as client:
        answer = client.get("/v1/versions/history")
    _show(history_table(history_rows(answer)), answer, json=json)


@models.command("list")
def list_models(url: UrlOption = None, key: KeyOption = None, json: JsonOption = False) -> None:
    """List the models on offer and what they charge."""
    with ServiceClient(url, api_key=key) as client:
        answer = client.get("/v1/models")
    table = Table("model", "USD per Mtok in", "USD per Mtok out", "USD per call")
    for model in answer["models"]:
        table.add_row(
            model["name"],
            f"{model['input_usd_per_mtok']:g}",
            f"{model['output_usd_per_mtok']:g}",
            f"{model['usd_per_call']:g}",
        )
    _show(table, answer, json=json)


@models.command("put")
def put_model(
    name: Annotated[str, typer.Argument(help="Model name, as your gateway calls it.")],
    input_usd_per_mtok: Annotated[
        float | None, typer.Option(help="USD per million tokens in.")
    ] = None,
    output_usd_per_mtok: Annotated[
        float | None, typer.Option(help="USD per million tokens out.")
    ] = None,
    usd_per_call: Annotated[float | None, typer.Option(help="USD per call on top.")] = None,
    typical_output_tokens: Annotated[
        int | None, typer.Option(help="Usual answer length, tokens; 256 for a new model.")
    ] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Add a model, or change what it charges; counts from the next request on.

    What is left out stays as it is, and is 0 for a new model.
    """
    given = {
        "input_usd_per_mtok": input_usd_per_mtok,
        "output_usd_per_mtok": output_usd_per_mtok,
        "usd_per_call": usd_per_call,
        "typical_output_tokens": typical_output_tokens,
    }
    prices = {field: value for field, value in given.items() if value is not None}
    with ServiceClient(url, api_key=key) as client:
        known = {model["name"] for model in client.get("/v1/models")["models"]}
        change = client.patch_model if name in known else client.put_model
        answer = change(name, prices)
    console.print(f"{name} is on price table {answer['price_version']}")
    if json:
        print_json(answer)


@models.command("remove")
def remove_model(
    name: Annotated[str, typer.Argument(help="Model name.")],
    url: UrlOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Take a model off the table; nothing is routed to it from the next request on."""
    with ServiceClient(url, api_key=key) as client:
        answer = client.delete_model(name)
    console.print(f"{name} is gone from price table {answer['price_version']}")
    if json:
        print_json(answer)


def explain(
    decision_id: Annotated[str, typer.Argument(help="As `POST /v1/route` gave it.")],
    tenant: Annotated[
        str | None, typer.Option(help="Whose decision it is; the default tenant's without it.")
    ] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Say why a decision went to its model; exit status 1 where it cannot be derived again."""
    query = "" if tenant is None else f"?tenant={quote(tenant)}"
    with ServiceClient(url, api_key=key) as client:
        answer = client.get(f"/v1/decisions/{quote(decision_id)}{query}")
    why = answer["explanation"]
    if "unavailable" in why:
        console.print(f"{answer['arm']}, drawn with {answer['propensity']:.6f}")
        console.print(f"it cannot be derived again: {why['unavailable']}")
    else:
        _show_why(answer, why)
    if json:
        print_json(answer)
    if not why.get("agrees", False):
        raise typer.Exit(1)


def _show_why(answer: dict[str, Any], why: dict[str, Any]) -> None:
    """Show what made a decision, and what came of it."""
    trial = ""
    if why["canary_version"] is not None:
        trial = f", beside canary {why['canary_version']} at {why['canary_share']:g}"
    console.print(
        f"{answer['arm']} by version {why['drawn_by_version']} ({why['learner']}){trial}; "
        f"quality {answer['w_quality']:g}, cost {answer['w_cost']:g}"
    )
    console.print(why_drawn(why))
    table = Table("", "model", "probability", "logged", "quality", "USD", "reward", "list USD")
    for model in why["models"]:
        table.add_row(
            "→" if model["chosen"] else "",
            model["model"],
            f"{model['probability']:.6f}",
            f"{model['logged']:.6f}",
            *("" if v is None else f"{v:.4g}" for v in _expected(model)),
        )
    console.print(table)
    if why["not_offered"]:
        console.print(f"not offered: {', '.join(why['not_offered'])}")
    console.print(f"derived again to {why['max_difference']:.1e}; floor {why['floor']:.6f}")
    outcome = answer["interaction"]
    if outcome is not None:
        console.print(f"outcome: quality {outcome['quality']}, USD {outcome['cost_usd']}")


def _expected(model: dict[str, Any]) -> list[float | None]:
    """Pick what is expected of a model."""
    names = ("expected_quality", "expected_cost_usd", "expected_reward", "list_cost_usd")
    return [model[name] for name in names]


def status(url: UrlOption = None, key: KeyOption = None, json: JsonOption = False) -> None:
    """Show what the service holds: champion, replicas, ledger, trainer."""
    with ServiceClient(url, api_key=key) as client:
        answer = client.get("/v1/status")
    table = Table("part", "what", "value")
    for part, values in answer.items():
        rows = values.items() if isinstance(values, dict) else (("", values),)
        for what, value in rows:
            table.add_row(part, what, str(value))
    learning = answer["trainer"].get("apprentice")
    if learning is not None:
        console.print(f"{learning['model']} decides: {learning['reason'] or 'yes'}")
        for learner, found in learning["learners"].items():
            console.print(f"{learner}: {found['reason']}")
    _show(table, answer, json=json)


def _show_move(move: dict[str, Any], *, json: bool) -> None:
    """Say what an alias move did."""
    came_from = f", before it {move['previous']}" if move["previous"] is not None else ""
    console.print(
        f"champion is version {move['version']}{came_from}; "
        f"{move['replicas_swapped']} replicas swapped, {move['replicas_waiting']} to follow"
    )
    if json:
        print_json(move)


def _show(table: Table, answer: dict[str, Any], *, json: bool) -> None:
    """Show a table to a person and, where asked for, the object to a program."""
    console.print(table)
    if json:
        print_json(answer)
