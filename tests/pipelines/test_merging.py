"""Parts of the dataset become fewer: no row is lost, none is there twice, whatever dies when."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest
from crashes import Broken, dying_at_file_step
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import interactions_of

from pipelines.dataset import DamagedDataset, InteractionDataset, export
from pipelines.dataset_parts import MERGE_PARTS, Part, mergeable
from policies.interaction import canonical_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Twenty-four real interactions."""
    return interactions_of(24, tmp_path_factory.mktemp("rows"))


def _filled(folder: Path, rows: pa.Table, *, size: int) -> InteractionDataset:
    dataset = InteractionDataset(folder)
    for start in range(0, len(rows), size):
        dataset.append(rows.slice(start, size))
    return dataset


def test_merging_changes_no_row_and_no_digest(rows: pa.Table, tmp_path: Path) -> None:
    dataset = _filled(tmp_path, rows, size=1)
    while dataset.merge():
        pass
    assert len(dataset.parts()) == 24 // MERGE_PARTS
    assert dataset.read().equals(rows)
    assert _sha256(dataset.read()) == _sha256(rows)
    for seq in (1, 8, 9, 24):
        assert dataset.read(seq - 1, seq).equals(rows.slice(seq - 1, 1))
    assert dataset.find("d08")["seq"].to_pylist() == [9]
    following = rows.slice(23).set_column(0, rows.schema.field("seq"), pa.array([25], pa.int64()))
    dataset.append(following)
    assert dataset.read()["seq"].to_pylist() == list(range(1, 26))


def test_a_merge_that_dies_at_any_step_leaves_each_row_once(rows: pa.Table, tmp_path: Path) -> None:
    """Whoever comes after it reads the same, goes on, and leaves no file behind."""
    step, finished = 0, False
    while not finished:
        folder = tmp_path / str(step)
        _filled(folder, rows, size=3)
        try:
            with dying_at_file_step(step) as done:
                InteractionDataset(folder).merge()
            finished = True
        except Broken:
            step += 1
        after = InteractionDataset(folder)
        assert after.last_seq() == 24
        assert after.read().equals(rows)
        while after.merge():
            pass
        assert after.read().equals(rows)
        assert [path.name for path in folder.iterdir()] == [after.parts()[0].name]
    assert done.count("unlink") == MERGE_PARTS
    assert {"fsync", "replace"} <= set(done)


def test_an_append_that_dies_at_any_step_is_done_again(rows: pa.Table, tmp_path: Path) -> None:
    for step in range(4):
        folder = tmp_path / str(step)
        _filled(folder, rows.slice(0, 12), size=12)
        with pytest.raises(Broken), dying_at_file_step(step):
            InteractionDataset(folder).append(rows.slice(12))
            raise Broken
        export(lambda after_seq, limit: rows.slice(after_seq, limit), InteractionDataset(folder))
        assert InteractionDataset(folder).read().equals(rows)


def test_a_damaged_part_is_not_merged_away(rows: pa.Table, tmp_path: Path) -> None:
    dataset = _filled(tmp_path, rows, size=3)
    damaged = tmp_path / dataset.parts()[4].name
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(DamagedDataset, match="cannot be read"):
        dataset.merge()
    assert len(InteractionDataset(tmp_path).parts()) == MERGE_PARTS


class _MergedWhileListing(InteractionDataset):
    """A dataset that another process merges just after its parts were listed first."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder, self.merged_meanwhile = folder, 0

    def parts(self) -> list[Part]:
        """List them as they were before the merge, the first time."""
        listed = super().parts()
        if not self.merged_meanwhile:
            self.merged_meanwhile = InteractionDataset(self._folder).merge()
        return listed


def test_a_reader_elsewhere_looks_again_where_parts_were_merged(
    rows: pa.Table, tmp_path: Path
) -> None:
    _filled(tmp_path, rows, size=3)
    reader = _MergedWhileListing(tmp_path)
    assert reader.read().equals(rows)
    assert reader.merged_meanwhile


@given(st.lists(st.integers(1, 60), max_size=300))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_few_parts_remain_and_rows_are_seldom_written_again(sizes: list[int]) -> None:
    parts: list[Part] = []
    written = 0
    for size in sizes:
        first = parts[-1].last + 1 if parts else 1
        parts.append(Part(name="", first=first, last=first + size - 1))
        while run := mergeable(parts, max_rows=2000):
            start = parts.index(run[0])
            parts[start : start + len(run)] = [Part(name="", first=run[0].first, last=run[-1].last)]
            written += sum(map(len, run))
    total = sum(sizes)
    assert sum(map(len, parts)) == total
    assert max(map(len, parts), default=0) <= 2000
    assert len(parts) <= 10 * MERGE_PARTS
    assert written <= 11 * total, "each merge at least doubles a row's part: 2 ** 11 > 2000"


def _sha256(rows: pa.Table) -> str:
    return hashlib.sha256(canonical_rows(rows)).hexdigest()
