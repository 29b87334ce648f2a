"""The Parquet dataset: append-only, whole parts, exactly once, and nothing silently missing.

On a disk and in an object store alike.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pd
import pyarrow.fs as pafs
import pytest
from clock import Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import TENANT, batch, interactions_of, open_ledger

from pipelines.dataset import DamagedDataset, InteractionDataset, export
from pipelines.ledger import Ledger
from policies.interaction import INTERACTION_SCHEMA, Outcome, canonical_rows
from policies.storage import is_remote, open_folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Twelve real interactions, schema INTERACTION_SCHEMA."""
    return interactions_of(12, tmp_path_factory.mktemp("rows"))


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a dataset of the test's own goes."""
    if request.param == "disk":
        return str(tmp_path / "interactions")
    return f"{request.getfixturevalue('object_store')}/{tmp_path.name}/interactions"


def source(rows: pa.Table, up_to: int) -> Callable[[int, int], pa.Table]:
    """Read pages of rows as the ledger does."""
    known = rows.slice(0, up_to)
    return lambda after_seq, limit: known.slice(after_seq, limit)


def remove_file(place: str, name: str) -> None:
    """Lose a file behind the dataset's back."""
    store, prefix = pafs.FileSystem.from_uri(place if is_remote(place) else f"file://{place}")
    store.delete_file(f"{prefix}/{name}")


def test_what_is_read_back_equals_what_matured(rows: pa.Table, place: str) -> None:
    dataset = InteractionDataset(place)
    assert dataset.read().equals(INTERACTION_SCHEMA.empty_table())
    dataset.append(rows.slice(0, 5))
    dataset.append(rows.slice(5))
    assert dataset.read().schema.equals(INTERACTION_SCHEMA)
    assert dataset.read().equals(rows)
    assert canonical_rows(dataset.read()) == canonical_rows(rows)


@pytest.mark.parametrize("after_seq", [0, 3, 4, 11, 12, 40])
@pytest.mark.parametrize("up_to", [0, 4, 5, 12, 40, None])
def test_a_range_is_read_across_parts(
    rows: pa.Table, place: str, after_seq: int, up_to: int | None
) -> None:
    dataset = InteractionDataset(place)
    for start in range(0, 12, 4):
        dataset.append(rows.slice(start, 4))
    last = 12 if up_to is None else up_to
    wanted = [seq for seq in range(1, 13) if after_seq < seq <= last]
    assert dataset.read(after_seq, up_to)["seq"].to_pylist() == wanted


def test_anyones_notebook_reads_it(rows: pa.Table, tmp_path: Path) -> None:
    """Half-written files, which begin with a dot, are not seen."""
    InteractionDataset(tmp_path).append(rows)
    (tmp_path / ".part-x.tmp").write_bytes(b"half")
    assert pd.dataset(tmp_path).to_table().num_rows == len(rows)


@given(st.lists(st.integers(0, 12), max_size=6).map(sorted), st.integers(1, 5))
@settings(deadline=None, max_examples=15, derandomize=True)
def test_each_interaction_leaves_exactly_once(
    tmp_path_factory: pytest.TempPathFactory,
    rows: pa.Table,
    matured_by_then: list[int],
    max_part_rows: int,
) -> None:
    """However much has matured at each export, and though each is by a new process."""
    folder = tmp_path_factory.mktemp("interactions")
    copied = 0
    for matured in [*matured_by_then, 12]:
        read = source(rows, matured)
        copied += export(read, InteractionDataset(folder), max_part_rows=max_part_rows)
    assert copied == 12
    assert InteractionDataset(folder).read().equals(rows)


def test_an_export_that_died_before_the_rename_is_done_again(
    rows: pa.Table, tmp_path: Path
) -> None:
    dataset = InteractionDataset(tmp_path)
    dataset.append(rows.slice(0, 4))
    (tmp_path / f".part-{5:019d}-{12:019d}.parquet.99.tmp").write_bytes(b"PAR1 half of it")
    after_crash = InteractionDataset(tmp_path)
    assert after_crash.last_seq() == 4
    after_crash.append(rows.slice(4))
    assert after_crash.read().equals(rows)


@pytest.mark.parametrize("start, length", [(3, 2), (5, 2)])
def test_rows_that_do_not_follow_are_refused(
    rows: pa.Table, place: str, start: int, length: int
) -> None:
    """Neither twice nor with a gap before them."""
    dataset = InteractionDataset(place)
    dataset.append(rows.slice(0, 4))
    with pytest.raises(DamagedDataset, match="do not follow 4"):
        dataset.append(rows.slice(start, length))


def test_rows_with_a_gap_inside_are_refused(rows: pa.Table, place: str) -> None:
    with pytest.raises(DamagedDataset):
        InteractionDataset(place).append(rows.take([0, 1, 3]))


def test_a_missing_part_is_noticed(rows: pa.Table, place: str) -> None:
    dataset = InteractionDataset(place)
    for start in range(0, 12, 4):
        dataset.append(rows.slice(start, 4))
    remove_file(place, dataset.parts()[1].name)
    with pytest.raises(DamagedDataset, match=r"does not follow|is missing"):
        dataset.read()


def test_a_part_under_anothers_name_is_refused(rows: pa.Table, place: str) -> None:
    dataset = InteractionDataset(place)
    dataset.append(rows.slice(0, 6))
    dataset.append(rows.slice(6))
    files = open_folder(place)
    first, second = (part.name for part in dataset.parts())
    files.write(first, files.read(second))
    with pytest.raises(DamagedDataset, match=r"other interactions|its digest"):
        dataset.read()


def test_a_truncated_part_is_refused(rows: pa.Table, place: str) -> None:
    dataset = InteractionDataset(place)
    dataset.append(rows)
    [part] = dataset.parts()
    files = open_folder(place)
    files.write(part.name, files.read(part.name)[:-10])
    with pytest.raises(DamagedDataset, match="cannot be read"):
        dataset.read()


def test_a_flipped_byte_is_never_silently_wrong(rows: pa.Table, place: str) -> None:
    """A byte in every stretch of the file: refused, or without effect on what is read."""
    dataset = InteractionDataset(place)
    dataset.append(rows)
    [part] = dataset.parts()
    files = open_folder(place)
    content = files.read(part.name)
    refused = 0
    # An object is held against its digest, so that few bytes say as much.
    for position in range(0, len(content), 1997 if is_remote(place) else 97):
        files.write(part.name, _flipped(content, position))
        try:
            assert dataset.read().equals(rows), position
        except DamagedDataset:
            refused += 1
    assert refused > 0


def _flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


def test_the_ledger_is_a_source(tmp_path: Path, rows: pa.Table) -> None:
    ledger: Ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", Clock())
    dataset = InteractionDataset(tmp_path / "interactions")
    assert export(ledger.interactions, dataset) == 0
    ledger.record([batch(["a"])])
    ledger.submit([(TENANT, Outcome(decision_id="a", quality=0.5, final=True))])
    assert export(ledger.interactions, dataset) == 1
    assert dataset.read()["decision_id"].to_pylist() == ["a"]
    ledger.close()


def test_parts_of_an_older_release_are_read_with_no_canary(rows: pa.Table, place: str) -> None:
    dataset = InteractionDataset(place)
    dataset.append(rows.drop_columns(["champion_version", "canary_version", "canary_share"]))
    assert InteractionDataset(place).read() == rows
