"""The README's tour works as printed: every line is run against a real service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from service_process import StartService

pytestmark = pytest.mark.ray

BARP = str(Path(sys.executable).with_name("barp"))
README = (Path(__file__).parents[2] / "README.md").read_text()


def tour_lines() -> list[str]:
    """Return the commands of the tour in order, continued lines joined."""
    tour = README.split("## Five minutes with it")[1].split("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", tour, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines]


def shell(script: str, url: str) -> str:
    """Run lines as a person does, against a service; return what they printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=os.environ | {"BARP_URL": url},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_line_of_the_tour_answers_as_printed(
    start_service: StartService, tmp_path: Path
) -> None:
    lines = tour_lines()
    assert lines[0].endswith("barp serve --gate estimate")
    assert "mlflow ui" in lines[-1], "a server of its own; its store is tested elsewhere"
    service = start_service(
        tmp_path, retrain_min_interactions=60, holdout_share=0.3, cost_ceiling_usd=0.03
    )
    port = service.url.rsplit(":", 1)[1]
    # Fewer prompts than a person plays, so that this test stays short.
    script = "\n".join(lines[1:-1]).replace("localhost:8000", f"localhost:{port}")
    script = script.replace("--rate 40 --limit 1200", "--rate 0 --limit 250 --delay 0.1")
    script = script.replace(".venv/bin/barp", BARP)
    before, listing, after = script.partition("\nbarp versions list".replace("barp", BARP))
    assert listing
    said = shell(before, service.url)
    # A person plays five times as many, and by then versions have come.
    service.wait_for(lambda: bool(service.get("/v1/versions")["champion"] > 1), timeout_s=120)
    said += shell(listing + after, service.url)
    assert '"error"' not in said
    # Pending where the feedback overtook the flush of its decision; by the next line it is joined.
    assert '"status":"joined"' in said or '"status":"pending"' in said
    assert '"quality":0.9' in said
    assert '"policy_version":1' in said
    assert service.stop() == 0
