"""`barp preview`: which model a prompt would go to, at every trade-off; nothing is decided."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.table import Table

from cluster.client import ServiceClient
from cluster.console import JsonOption, console, print_json
from cluster.operate import KeyOption, UrlOption

QUALITY_WEIGHTS: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
# Below this a share is what every model is explored with, not what the policy is for.
BOLD_SHARE: Final = 0.2


def show_preview(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    quality: Annotated[
        list[float] | None,
        typer.Option(
            help="Weight on quality, 0 to 1; may be repeated. Default: 0 to 1 in steps of 0.2.",
            min=0.0,
            max=1.0,
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only these models; may be repeated.")
    ] = None,
    max_cost_usd: Annotated[
        float | None, typer.Option(help="Only models whose list price is at most this, USD.", min=0)
    ] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Show how likely each model would be for a prompt, by how much quality counts."""
    limits = {"models": model, "max_cost_usd": max_cost_usd}
    with ServiceClient(url, api_key=key) as client:
        previews = [
            client.post("/v1/route/preview", limits | {"prompt": prompt, "preference": preference})
            for preference in _preferences(quality or QUALITY_WEIGHTS)
        ]
    console.print(preview_table(previews))
    for name in previews[0]["not_offered"]:
        console.print(f"{name}: not offered under these limits")
    if json:
        print_json({"previews": previews})


def preview_table(previews: list[dict[str, Any]]) -> Table:
    """Lay out previews of one prompt: a row a model, a column a preference.

    Args:
        previews: As `POST /v1/route/preview` answers, one for each preference.
    """
    table = Table(title=f"version {previews[0]['policy_version']}, share of each model")
    for name in ("model", "quality", "USD"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for one in previews:
        table.add_column(f"w_q {one['preference']['quality']:.2g}", justify="right")
    rows = {row["model"]: row for row in previews[-1]["models"]}
    for name, row in sorted(rows.items(), key=lambda item: item[1]["list_cost_usd"]):
        expected = row.get("expected")
        shares = [_share(preview, name) for preview in previews]
        table.add_row(
            name,
            "" if expected is None else f"{expected['quality']:.3f}",
            f"{row['list_cost_usd'] if expected is None else expected['cost_usd']:.2g}",
            *(f"[bold]{s:.0%}[/bold]" if s >= BOLD_SHARE else f"{s:.0%}" for s in shares),
        )
    return table


def _share(preview: dict[str, Any], name: str) -> float:
    """Return the probability of a model; 0 where a change of prices has just taken it away."""
    found = (row["probability"] for row in preview["models"] if row["model"] == name)
    return float(next(found, 0.0))


def _preferences(weights: tuple[float, ...] | list[float]) -> list[dict[str, float]]:
    return [{"quality": weight, "cost": 1.0 - weight} for weight in weights]
