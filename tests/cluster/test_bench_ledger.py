"""The ledger benchmark: a small run of all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.bench_ledger import _scattered
from cluster.cli import app


def test_outcomes_come_scattered_and_each_once() -> None:
    ids = [str(number) for number in range(100)]
    assert _scattered(ids, seed=1) != ids
    assert sorted(_scattered(ids, seed=1)) == sorted(ids)


@pytest.mark.ray
@pytest.mark.slow
def test_every_way_is_measured_and_nothing_is_left_behind(tmp_path: Path) -> None:
    command = ["bench", "ledger", "--decisions", "20000", "--compact", "--folder", str(tmp_path)]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    rates = {"single_per_s", "batched_per_s", "arrow_per_s", "p99_ms", "joined_per_s"}
    assert found.keys() == rates | {"fsync", "backend", "shards", "detail"}
    assert all(found[name] > 0 for name in rates)
    assert (found["fsync"], found["backend"]) == (True, "sqlite")
    assert found["detail"]["kept"] == 0
    assert list(tmp_path.iterdir()) == []
