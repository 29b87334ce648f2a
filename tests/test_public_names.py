"""Each package lists what it offers, and offers what it lists."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

each_package = pytest.mark.parametrize("package", ["policies", "pipelines", "services", "cluster"])


def _reexported(package: str) -> set[str]:
    """Name what a package's `__init__.py` imports for others, under the names it gives them."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    imported = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        (alias.asname or alias.name).partition(".")[0]
        for node in imported
        if not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
        for alias in node.names
    }
    return {name for name in names if not name.startswith("_")}


@each_package
def test_all_lists_what_is_imported(package: str) -> None:
    """No name is offered by accident, and none is listed that came from nowhere."""
    listed = getattr(importlib.import_module(package), "__all__", [])
    assert set(listed) == _reexported(package)
    assert len(set(listed)) == len(listed)


@each_package
def test_every_listed_name_exists(package: str) -> None:
    """`from package import name` works for each of them."""
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in getattr(module, "__all__", []))
