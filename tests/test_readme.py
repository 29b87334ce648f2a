"""The README says what is so: the settings as they are, the files that exist."""

from __future__ import annotations

import re
from pathlib import Path

from cluster.settings_table import settings_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_settings_table_is_the_settings() -> None:
    assert f"<!-- settings: begin -->\n{settings_table()}\n<!-- settings: end -->" in README


def test_every_module_in_the_tree_exists_and_none_is_missing() -> None:
    tree = README.split("## The folders")[1].split("```")[1]
    for folder in ("policies", "services", "pipelines", "cluster"):
        part = re.split(r"^\w+/ ", tree.split(f"{folder}/ ")[1], flags=re.MULTILINE)[0]
        lines = [re.split(r"\s{3,}", line.strip())[0] for line in part.splitlines()[1:]]
        for name in re.findall(r"[\w./]+", " ".join(lines)):
            path = ROOT / folder / name
            assert path.exists() or path.with_suffix(".py").exists(), f"{folder}/{name}"


def test_links_point_at_files() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
