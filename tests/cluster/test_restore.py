"""Backup and restore as docs/runbooks.md says, with the script that it shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from service_process import StartService

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks.md"


def backup_script() -> str:
    """Read the script out of the page."""
    (found,) = re.findall(r"<<'EOF'\n(.*?)\nEOF\n", RUNBOOKS.read_text(), flags=re.DOTALL)
    return str(found)


def test_a_backup_of_a_running_service_is_a_service(
    start_service: StartService, tmp_path: Path, encoder_dir: Path
) -> None:
    state_dir = tmp_path / ".barp"
    state_dir.mkdir()
    shutil.copytree(encoder_dir, state_dir / "encoder")
    settings = {"encoder_dir": state_dir / "encoder"}
    first = start_service(state_dir, **settings)
    first.http.put("/v1/models/small", json={"usd_per_call": 0.001}).raise_for_status()
    decided = first.route()
    report = {"decision_id": decided["decision_id"], "quality": 0.9, "cost_usd": 0.001}
    first.http.post("/v1/feedback", json=report).raise_for_status()
    first.wait_for(lambda: first.get("/v1/status")["ledger"]["joined"] == 1)
    champion = first.get("/v1/versions")["champion"]

    (tmp_path / "backup").mkdir()
    subprocess.run([sys.executable, "-c", backup_script()], cwd=tmp_path, check=True, timeout=60)
    after = first.route()
    assert first.stop() == 0

    shutil.move(state_dir, tmp_path / "lost")
    shutil.copytree(tmp_path / "backup", state_dir)
    second = start_service(state_dir, **settings)
    assert second.get("/v1/versions")["champion"] == champion
    assert second.route()["policy_version"] == champion
    record = second.get(f"/v1/decisions/{decided['decision_id']}")
    assert len(record["outcomes"]) == 1
    # Made after the backup: not known, but signed here, so its outcome waits.
    report = {"decision_id": after["decision_id"], "quality": 0.9, "cost_usd": 0.001}
    (result,) = second.http.post("/v1/feedback", json=[report]).raise_for_status().json()["results"]
    assert result["status"] == "pending"
    assert second.stop() == 0
