"""The dataset in an object store: of two writers neither undoes what the other did."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from botocore.awsrequest import AWSPreparedRequest
from crashes import Broken, dying_at_store_step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import interactions_of
from object_stores import seeing_puts, sent_before

from pipelines.dataset import DamagedDataset, InteractionDataset, export
from pipelines.dataset_parts import MERGE_PARTS, merge_parts, named_parts
from pipelines.object_parts import MANIFEST, ObjectParts
from policies.errors import Conflict, Unavailable
from policies.storage import open_folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Twenty-four real interactions."""
    return interactions_of(24, tmp_path_factory.mktemp("rows"))


@pytest.fixture
def url(object_store: str, tmp_path: Path) -> str:
    return f"{object_store}/{tmp_path.name}/interactions"


def source(rows: pa.Table, up_to: int = 24) -> Callable[[int, int], pa.Table]:
    """Read pages of rows as the ledger does."""
    return lambda after_seq, limit: rows.slice(0, up_to).slice(after_seq, limit)


def filled(url: str, rows: pa.Table, *, size: int) -> InteractionDataset:
    """Make a dataset of parts of one size."""
    dataset = InteractionDataset(url)
    for start in range(0, len(rows), size):
        dataset.append(rows.slice(start, size))
    return dataset


def files(url: str) -> set[str]:
    """Name the objects there are."""
    store, prefix = pafs.FileSystem.from_uri(url)
    return {info.base_name for info in store.get_file_info(pafs.FileSelector(prefix))}


def test_a_writer_that_comes_back_overwrites_nothing(url: str, rows: pa.Table) -> None:
    """It is refused once, reads what the other did, and is then as good a writer as any."""
    old = InteractionDataset(url)
    old.append(rows.slice(0, 4))
    new = InteractionDataset(url)
    new.append(rows.slice(4, 4))
    with pytest.raises(Conflict, match="another writer"):
        old.append(rows.slice(4, 20))
    assert InteractionDataset(url).read().equals(rows.slice(0, 8))
    assert export(source(rows), old) == 16
    with pytest.raises(Conflict):
        new.append(rows.slice(8, 1))
    assert export(source(rows), new) == 0
    assert InteractionDataset(url).read().equals(rows)
    counted = {part.name for part in new.parts()}
    assert files(url) == counted | {MANIFEST}


def test_two_that_make_the_first_part_at_once_make_one(url: str, rows: pa.Table) -> None:
    """Both have read that there is none."""
    second = InteractionDataset(url)

    def meanwhile() -> Iterator[pa.Table]:
        second.append(rows.slice(0, 2))
        yield rows.slice(0, 9)

    with pytest.raises(Conflict):
        ObjectParts(url).add(1, 9, meanwhile())
    assert InteractionDataset(url).read().equals(rows.slice(0, 2))


def test_a_merge_beside_another_writer_takes_nothing_back(url: str, rows: pa.Table) -> None:
    filled(url, rows.slice(0, 8), size=1)
    slow, other = ObjectParts(url), InteractionDataset(url)
    run = slow.parts()

    def meanwhile() -> Iterator[pa.Table]:
        yield rows.slice(0, 8)
        other.append(rows.slice(8, 4))

    with pytest.raises(Conflict):
        slow.replace(run, meanwhile())
    assert InteractionDataset(url).read().equals(rows.slice(0, 12))
    merge_parts(slow, run)
    with pytest.raises(Conflict):
        merge_parts(slow, run)
    assert len(slow.parts()) == 2
    assert InteractionDataset(url).read().equals(rows.slice(0, 12))


def test_merging_changes_no_row(url: str, rows: pa.Table) -> None:
    dataset = filled(url, rows, size=1)
    while dataset.merge():
        pass
    assert len(dataset.parts()) == 24 // MERGE_PARTS
    assert dataset.read().equals(rows)
    assert dataset.read(8, 9).equals(rows.slice(8, 1))
    assert dataset.find("d08")["seq"].to_pylist() == [9]
    assert len(dataset.find("nobody")) == 0
    assert files(url) == {part.name for part in dataset.parts()} | {MANIFEST}


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_writer_that_dies_at_any_step_loses_nothing(url: str, rows: pa.Table, done: bool) -> None:
    """Before each request that changes something, and after it was done and before its answer."""
    step, finished = 0, False
    while not finished:
        place = f"{url}/{done}-{step}"
        filled(place, rows.slice(0, 8), size=8)
        try:
            with dying_at_store_step(step, done=done):
                dying = InteractionDataset(place)
                dying.append(rows.slice(8, 8))
                dying.merge(parts_to_merge=2)
            finished = True
        except Broken:
            step += 1
        after = InteractionDataset(place)
        export(source(rows), after)
        assert after.read().equals(rows)
        ObjectParts(place, sweep_after_s=0.0).sweep()
        assert InteractionDataset(place).read().equals(rows)
        assert files(place) == {part.name for part in after.parts()} | {MANIFEST}
    assert step == 6, "two parts, two manifests, and the two parts that were merged"


def test_a_commit_whose_answer_was_lost_is_known_again(url: str, rows: pa.Table) -> None:
    """The SDK sends a request again, and then the condition does not hold any more."""
    puts = []

    def twice(put: AWSPreparedRequest) -> None:
        puts.append(put.url)
        sent_before(put)

    with seeing_puts(twice):
        dataset = filled(url, rows, size=12)
    assert len(puts) == 2, "a manifest for each part"
    assert InteractionDataset(url).read().equals(rows)
    assert len(dataset.parts()) == 2


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["export", "merge"]), st.integers(0, 24)),
        max_size=8,
    )
)
@settings(
    deadline=None,
    max_examples=5,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_two_writers_do_each_row_is_there_once(
    url: str, rows: pa.Table, turns: list[tuple[str, str, int]]
) -> None:
    place = f"{url}/{abs(hash(tuple(turns)))}"
    writers = {name: InteractionDataset(place) for name in "ab"}
    furthest = 0
    for name, work, up_to in [*turns, ("a", "export", 24), ("a", "export", 24)]:
        furthest = max(furthest, up_to if work == "export" else 0)
        try:
            if work == "export":
                export(source(rows, furthest), writers[name], max_part_rows=2)
            else:
                writers[name].merge(parts_to_merge=2)
        except Conflict:
            continue
    assert InteractionDataset(place).read().equals(rows)


def test_what_never_counted_is_swept_when_it_is_old(url: str, rows: pa.Table) -> None:
    dataset = filled(url, rows, size=12)
    left = "part-0000000000000000025-0000000000000000030-00000000.parquet"
    open_folder(url).write(left, b"of a writer that died")
    open_folder(url).write("README", b"somebody's")
    ObjectParts(url).sweep()
    assert left in files(url), "a writer may be about to let it count"
    assert dataset.read().equals(rows)
    ObjectParts(url, sweep_after_s=0.0).sweep()
    assert files(url) == {part.name for part in dataset.parts()} | {MANIFEST, "README"}


def test_a_folder_copied_from_a_disk_is_taken_as_it_is(
    url: str, rows: pa.Table, tmp_path: Path
) -> None:
    on_disk = InteractionDataset(tmp_path / "disk")
    on_disk.append(rows.slice(0, 5))
    on_disk.append(rows.slice(5, 7))
    for part in on_disk.parts():
        open_folder(url).write(part.name, (tmp_path / "disk" / part.name).read_bytes())
    moved = InteractionDataset(url)
    assert moved.last_seq() == 12
    assert moved.read().equals(rows.slice(0, 12))
    assert export(source(rows), moved) == 12
    assert MANIFEST in files(url)
    assert InteractionDataset(url).read().equals(rows)


def test_one_that_grew_in_the_store_can_go_to_a_disk(
    url: str, rows: pa.Table, tmp_path: Path
) -> None:
    for part in filled(url, rows, size=9).parts():
        (tmp_path / part.name).write_bytes(open_folder(url).read(part.name))
    assert InteractionDataset(tmp_path).read().equals(rows)


PART = {"name": "part-0000000000000000001-0000000000000000002.parquet", "first": 1, "last": 2}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"schema": 2, "commit": "", "parts": []}',
        json.dumps({"schema": 1, "commit": "", "parts": [{**PART, "last": 3}]}).encode(),
        json.dumps({"schema": 1, "commit": "", "parts": [{**PART, "name": "../x"}]}).encode(),
        json.dumps({"schema": 1, "commit": "", "parts": [PART, PART]}).encode(),
        json.dumps({"schema": 1, "commit": "", "parts": [{**PART, "more": 1}]}).encode(),
    ],
)
def test_a_damaged_manifest_is_refused(url: str, content: bytes) -> None:
    open_folder(url).write(MANIFEST, content)
    with pytest.raises(DamagedDataset, match=MANIFEST):
        InteractionDataset(url).read()


def test_a_bucket_that_nobody_made_is_unavailable(object_store: str) -> None:
    with pytest.raises(Unavailable, match="bucket"):
        InteractionDataset(f"{object_store}-that-nobody-made/interactions").last_seq()


def test_a_store_that_is_away_is_no_damage(
    url: str, rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = filled(url, rows, size=24)
    [part] = dataset.parts()
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        away.setenv("AWS_MAX_ATTEMPTS", "1")
        unreached = ObjectParts(url)
        with pytest.raises(Unavailable):
            unreached.parts()
        assert isinstance(unreached.trouble(part, OSError("timed out")), Unavailable)
    assert dataset.read().equals(rows)
    assert named_parts([part.name])[0].last == 24
