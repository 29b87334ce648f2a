"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    f"{path.parent.name}.{path.stem}"
    for package in ("policies", "pipelines", "services", "cluster")
    for path in (ROOT / package).glob("*.py")
    # The others need not be imported, Ray and MLflow with them.
    if ">>> " in path.read_text(encoding="utf-8")
)
RUN = """
import doctest, importlib, json, sys
for name in sys.argv[1:]:
    results = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
    print(json.dumps([name, results.attempted, results.failed]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[int, int, str]]:
    """How many examples each module has, how many failed, and what was printed.

    In a process of their own: an example's output is all that is printed meanwhile, and other
    tests' threads may print.
    """
    done = subprocess.run(
        [sys.executable, "-c", RUN, *MODULES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    rows = (json.loads(line) for line in done.stderr.splitlines() if line.startswith('["'))
    return {name: (attempted, failed, done.stdout) for name, attempted, failed in rows}


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str, results: dict[str, tuple[int, int, str]]) -> None:
    """An example that has gone stale is worse than none."""
    attempted, failed, printed = results[name]
    assert attempted > 0
    assert failed == 0, printed
