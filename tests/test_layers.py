"""Imports point one way: cluster to services and pipelines, both to policies."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("policies", "pipelines", "services", "cluster")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MAY_IMPORT = {
    "policies": {"policies"},
    "pipelines": {"pipelines", "policies"},
    "services": {"services", "policies"},
    "cluster": {"cluster", "services", "pipelines", "policies"},
}
# The mathematics is shared by all, so it knows no cluster, registry, HTTP or database.
NOT_IN_POLICIES = {
    "ray",
    "mlflow",
    "fastapi",
    "starlette",
    "uvicorn",
    "httpx",
    "sqlalchemy",
    "psycopg",
}
ONLY_IN = {
    "ray.rllib": "pipelines/rllib.py",
    "mlflow": "pipelines/registry.py",
}

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: _name(path))


def _name(path: Path) -> str:
    """Name a file as the rules do, `package/file.py`."""
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> Iterator[str]:
    """Yield the dotted path of everything a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_in(imported: str, module: str) -> bool:
    """Tell whether an import is of the module or of something inside it."""
    return imported == module or imported.startswith(f"{module}.")


@every_file
def test_imports_point_one_way(path: Path) -> None:
    """Services and pipelines never import each other; policies import nobody."""
    allowed = MAY_IMPORT[path.relative_to(ROOT).parts[0]]
    tops = {imported.partition(".")[0] for imported in _imports(path)}
    assert tops & set(PACKAGES) <= allowed


@every_file
def test_policies_know_no_infrastructure(path: Path) -> None:
    """They are numbers in, numbers out."""
    if path.relative_to(ROOT).parts[0] == "policies":
        assert not {imported.partition(".")[0] for imported in _imports(path)} & NOT_IN_POLICIES


@every_file
def test_rllib_and_mlflow_have_one_door_each(path: Path) -> None:
    """So that either can be replaced in one file."""
    for module, door in ONLY_IN.items():
        if _name(path) != door:
            assert not [imported for imported in _imports(path) if _is_in(imported, module)]


@every_file
def test_only_deployments_deploys(path: Path) -> None:
    """Everything else is a plain class, tested without a cluster."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "deployment"
        and ast.unparse(node.value).split(".")[-1] == "serve"
    ]
    said_by_import = "ray.serve.deployment" in set(_imports(path))
    assert _name(path) == "services/deployments.py" or not (said or said_by_import)


def test_there_are_four_packages() -> None:
    """In the distribution and in the tree: no fifth top-level package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}

    assert set(project["tool"]["setuptools"]["packages"]) == set(PACKAGES)
    assert found == set(PACKAGES)


def test_the_four_packages_are_flat() -> None:
    """But for Alembic's scripts, which nobody imports, and of which there is one a revision."""
    scripts = {path for path in FILES if path.parts[len(ROOT.parts) + 1] == "migrations"}
    assert {path.parent.name for path in set(FILES) - scripts} == set(PACKAGES)
