"""The benchmark beside peers, run small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.bench_peers import PEERS
from cluster.cli import app


@pytest.mark.slow
def test_everybody_decides_and_the_parts_fit_the_whole(tmp_path: Path) -> None:
    words = ["bench", "peers", "--requests", "20", "--rounds", "1", "--json"]
    done = CliRunner().invoke(app, [*words, "--cache-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(PEERS)
    for one in found.values():
        assert 0 < one["encode_p50_ms"] < one["p50_ms"] <= one["p99_ms"]
        assert 0 < one["decide_p50_ms"] < one["p50_ms"]
