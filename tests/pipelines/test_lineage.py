"""The code's name in the lineage."""

from __future__ import annotations

from pathlib import Path

from pipelines.lineage import code_version


def test_code_is_named_by_release_and_commit(tmp_path: Path) -> None:
    release = code_version(tmp_path)
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git" / "refs" / "heads" / "main").write_text("0123456789abcdef0123\n")

    assert code_version(tmp_path) == f"{release} 0123456789ab"
