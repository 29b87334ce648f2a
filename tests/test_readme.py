"""The README says what is so: the settings as they are, the files that exist."""

from __future__ import annotations

import re
from pathlib import Path

from cluster.settings_table import settings_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_settings_table_is_the_settings() -> None:
    assert f"<!-- settings: begin -->\n{settings_table()}\n<!-- settings: end -->" in README


def test_the_tree_names_every_module_once_and_nothing_that_is_not_there() -> None:
    tree = README.split("## The folders")[1].split("```")[1]
    for folder in ("policies", "services", "pipelines", "cluster"):
        part = re.split(r"^\w+/ ", tree.split(f"{folder}/ ")[1], flags=re.MULTILINE)[0]
        lines = [re.split(r"\s{3,}", line.strip())[0] for line in part.splitlines()[1:]]
        named = re.findall(r"[\w./]+", " ".join(lines))
        modules = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
        others = {name for name in named if (ROOT / folder / name).exists()}
        assert sorted(set(named) - others) == sorted(modules), folder
        assert len(named) == len(set(named)), folder


def test_links_point_at_files() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
