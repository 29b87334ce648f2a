"""`barp encoder`: build an encoder once, and register it as a version."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from cluster.console import JsonOption, console, print_json
from cluster.options import load_settings
from cluster.places import places
from policies.encoder_files import EncoderKind

encoder = typer.Typer(help="Build and register encoders.", no_args_is_help=True)


@encoder.command("build")
def build(
    out: Annotated[Path, typer.Option(help="Folder to write the encoder into.")],
    kind: Annotated[
        EncoderKind, typer.Option(help="`minilm`, or `static`, token vectors distilled from it.")
    ] = "minilm",
    register: Annotated[
        bool, typer.Option("--register", help="Make it a version of `barp-encoder` in MLflow.")
    ] = False,
    state_dir: Annotated[
        Path | None, typer.Option(help="State folder whose registry is written to.")
    ] = None,
    registry_url: Annotated[
        str | None, typer.Option(help="MLflow URI; default is SQLite in the state folder.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Build an encoder, half a minute on one core; the folder names itself by its content."""
    from policies.encoder import build_encoder, describe_encoder

    console.print(f"[dim]·[/] building {kind}")
    build_encoder(kind, out)
    encoder_id, dim = describe_encoder(out)
    console.print(f"{encoder_id}, contexts of {dim}, in {out}", soft_wrap=True)
    found: dict[str, object] = {"encoder_id": encoder_id, "kind": kind, "context_dim": dim}
    if register:
        found["version"] = _registered(out, state_dir, registry_url)
        console.print(f"version {found['version']} of barp-encoder")
    if json:
        print_json(found | {"out": str(out)})


def _registered(folder: Path, state_dir: Path | None, registry_url: str | None) -> int:
    """Open the registry that the settings name and register the folder."""
    from pipelines.registry import Registry

    place = places(load_settings(state_dir=state_dir, registry_url=registry_url))
    place.state_dir.mkdir(parents=True, exist_ok=True)
    registry = Registry(place.registry_url, place.artifact_dir, clock=time.time)
    return registry.register_encoder(folder)
