"""The key file: what it takes, what it refuses, and that no key is in it."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policies.errors import InvalidRequest
from services.keys import ApiKey, DamagedKeys, digest_of, new_key, read_keys, write_keys

KEY = ApiKey(name="app", sha256=digest_of("x"), scopes=frozenset({"route", "feedback"}))


def test_keys_survive_the_file_which_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys.json"
    keys = (KEY, replace(KEY, name="b", tenant="t", rate_per_s=2.5, max_body_bytes=10))
    write_keys(path, keys)
    assert read_keys(path) == keys
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_key_is_another_one() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("barp_") and len(key) >= 48 for key in made)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"sha256": "abc"}, "sha256"),
        ({"scopes": frozenset()}, "scopes"),
        ({"scopes": frozenset({"root"})}, "scopes"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": "t", "scopes": frozenset({"operate"})}, "tenant"),
        ({"tenant": "t", "scopes": frozenset({"route", "observe"})}, "tenant"),
        ({"rate_per_s": 0.0}, "rate_per_s"),
        ({"rate_per_s": float("nan")}, "rate_per_s"),
        ({"rate_per_s": float("inf")}, "rate_per_s"),
        ({"max_body_bytes": -1}, "max_body_bytes"),
    ],
)
def test_what_no_key_can_be_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        replace(KEY, **change)
    assert refused.value.field == field
    assert refused.value.allowed


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"version": 2, "keys": []}',
        '{"version": 1}',
        '{"version": 1, "keys": [{}]}',
        '{"version": 1, "keys": [1]}',
        json.dumps({"version": 1, "keys": [KEY.to_json() | {"surprise": 1}]}),
        json.dumps({"version": 1, "keys": [KEY.to_json() | {"rate_per_s": "fast"}]}),
        json.dumps({"version": 1, "keys": [KEY.to_json(), KEY.to_json()]}),
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(DamagedKeys, match="restore it"):
        read_keys(path)
