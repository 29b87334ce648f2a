"""`barp keys`: makes, lists and revokes the API keys of a state folder.

It writes the key file, which running replicas read again within a second; it needs no service.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.console import JsonOption, console, print_json
from cluster.options import load_settings
from cluster.places import places
from policies.errors import Conflict, NotFound
from services.keys import SCOPES, ApiKey, digest_of, new_key, read_keys, write_keys

keys = typer.Typer(help="Make, list and revoke API keys; running services obey within a second.")

StateDir = Annotated[
    Path | None, typer.Option(help="Folder of the service, which holds its key file.")
]
Name = Annotated[str, typer.Argument(help="What the key is called: A-Z a-z 0-9 . _ -")]


@keys.command("create")
def create(
    name: Name,
    scope: Annotated[
        list[str],
        typer.Option(help=f"What it may do, of {', '.join(SCOPES)}; give it once for each."),
    ],
    tenant: Annotated[
        str | None, typer.Option(help="The only tenant it acts for; without it any.")
    ] = None,
    rate_per_s: Annotated[
        float | None,
        typer.Option(help="Decisions and outcomes a second, over all replicas; none for no limit."),
    ] = None,
    max_body_bytes: Annotated[
        int | None, typer.Option(help="Largest request body, bytes; none for the service's limit.")
    ] = None,
    state_dir: StateDir = None,
    json: JsonOption = False,
) -> None:
    """Make a key and print it, this once: only its digest is kept."""
    key = new_key()
    made = ApiKey(
        name=name,
        sha256=digest_of(key),
        scopes=frozenset(scope),
        tenant=tenant,
        rate_per_s=rate_per_s,
        max_body_bytes=max_body_bytes,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with _changing(state_dir) as (path, before):
        if any(other.name == name for other in before):
            raise Conflict(
                f"there is a key {name} already: revoke it, or take another name",
                field="name",
                value=name,
                allowed="a name that no key has",
            )
        write_keys(path, [*before, made])
    console.print(f"{name} may {', '.join(sorted(made.scopes))}; it is shown this once")
    if json:
        print_json({**_shown(made), "key": key})
    else:
        typer.echo(key)


@keys.command("list")
def list_keys(state_dir: StateDir = None, json: JsonOption = False) -> None:
    """List the keys: names and what they may do, never the keys."""
    known = _read(_file(state_dir))
    table = Table("name", "scopes", "tenant", "a second", "body bytes", "created")
    for key in known:
        numbers = (
            "" if value is None else f"{value:g}" for value in (key.rate_per_s, key.max_body_bytes)
        )
        scopes = " ".join(sorted(key.scopes))
        table.add_row(key.name, scopes, key.tenant or "any", *numbers, key.created_at)
    console.print(table)
    if json:
        print_json({"keys": [_shown(key) for key in known]})


@keys.command("revoke")
def revoke(name: Name, state_dir: StateDir = None, json: JsonOption = False) -> None:
    """Take a key back: nobody comes in with it from the next second on."""
    with _changing(state_dir) as (path, before):
        left = [key for key in before if key.name != name]
        if len(left) == len(before):
            raise NotFound(
                f"there is no key {name}",
                field="name",
                value=name,
                allowed=", ".join(key.name for key in before) or "none: there are no keys",
            )
        write_keys(path, left)
    console.print(f"{name} is revoked; {len(left)} keys are left")
    if json:
        print_json({"revoked": name, "left": len(left)})


def _file(state_dir: Path | None) -> Path:
    """Find the key file that a service with these settings reads."""
    return places(load_settings(state_dir=state_dir)).keys_file


def _read(path: Path) -> tuple[ApiKey, ...]:
    """Read the keys; none where there is no file. Raises DamagedKeys."""
    try:
        return read_keys(path)
    except FileNotFoundError:
        return ()


@contextmanager
def _changing(state_dir: Path | None) -> Iterator[tuple[Path, tuple[ApiKey, ...]]]:
    """Hold the key file while it is read and replaced."""
    path = _file(state_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path, _read(path)


def _shown(key: ApiKey) -> dict[str, Any]:
    """Return what may be shown of a key: all but its digest."""
    return {name: value for name, value in key.to_json().items() if name != "sha256"}
