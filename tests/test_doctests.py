"""Every example in a docstring runs, and shows what it says."""

from __future__ import annotations

import doctest
import importlib
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


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    """An example that has gone stale is worse than none."""
    results = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
    assert results.attempted > 0
    assert results.failed == 0
