"""`barp keys`: a key is shown once, and the file obeys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from policies.errors import Conflict, InvalidRequest, NotFound
from services.keys import digest_of, read_keys


def run(state_dir: Path, *words: str) -> dict[str, Any]:
    """Run `barp keys` and return its JSON; an error of ours is raised as itself."""
    done = CliRunner().invoke(app, ["keys", *words, "--state-dir", str(state_dir), "--json"])
    if done.exception is not None:
        raise done.exception
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    words = ("--scope", "route", "--scope", "feedback", "--tenant", "a", "--rate-per-s", "5")
    made = run(tmp_path, "create", "app", *words)
    [kept] = read_keys(tmp_path / "keys.json")
    assert kept.sha256 == digest_of(made["key"])
    assert made["key"] not in (tmp_path / "keys.json").read_text()

    [listed] = run(tmp_path, "list")["keys"]
    assert (listed["name"], listed["tenant"], listed["rate_per_s"]) == ("app", "a", 5.0)
    assert listed["scopes"] == ["feedback", "route"]
    assert made["key"] not in str(listed) and kept.sha256 not in str(listed)

    assert run(tmp_path, "revoke", "app") == {"revoked": "app", "left": 0}
    assert read_keys(tmp_path / "keys.json") == ()


def test_the_key_alone_is_on_stdout(tmp_path: Path) -> None:
    words = ["keys", "create", "a", "--scope", "route", "--state-dir", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    [kept] = read_keys(tmp_path / "keys.json")
    assert kept.sha256 == digest_of(done.stdout.strip())


def test_mistakes_are_refused_by_name_and_change_nothing(tmp_path: Path) -> None:
    run(tmp_path, "create", "a", "--scope", "route")
    before = (tmp_path / "keys.json").read_bytes()
    with pytest.raises(Conflict, match="there is a key a already"):
        run(tmp_path, "create", "a", "--scope", "route")
    with pytest.raises(NotFound, match="there is no key b"):
        run(tmp_path, "revoke", "b")
    with pytest.raises(InvalidRequest, match="scopes=root"):
        run(tmp_path, "create", "b", "--scope", "root")
    with pytest.raises(InvalidRequest, match="tenant=t"):
        run(tmp_path, "create", "b", "--scope", "operate", "--tenant", "t")
    assert (tmp_path / "keys.json").read_bytes() == before
