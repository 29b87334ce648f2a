"""What a replica has decided outlives it: on disk until the ledger has it, and taken over once."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgpack
import numpy as np
import pytest
from actor_fakes import FakeAggregator
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.interaction import Decision, decisions_to_batch
from policies.preference import Preference
from services.metrics import ReplicaMetrics
from services.recorder import BATCH_ROWS, Recorder
from services.spool import Leftover, Spool

DECIDED_AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
STEPS = st.lists(st.tuples(st.sampled_from("as"), st.integers(1, 5)), max_size=30)


def a_decision(number: int) -> Decision:
    """One decision, with every field set to something of its own."""
    return Decision(
        decision_id=f"d{number}",
        decided_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
        + timedelta(microseconds=number),
        tenant="shop",
        session=None if number % 2 else f"s{number}",
        prompt_hash=f"h{number}",
        prompt_characters=number,
        preference=Preference(quality=0.25, cost=0.75),
        context=np.linspace(0, number, 5, dtype=np.float32),
        encoder_id="e",
        arms_offered=("small", "large"),
        pmf=np.array([0.1, 0.9]),
        arm="large",
        propensity=0.9,
        policy_version=3,
        price_version=4,
        champion_version=None if number % 2 else 2,
        canary_version=None if number % 2 else 3,
        canary_share=0.0 if number % 2 else 0.2,
        deferred=number % 3 == 0,
    )


def a_spool(folder: Path, owner: str = "a", *, segment_rows: int = 3) -> Spool:
    return Spool(folder, owner=owner, failed=lambda: None, segment_rows=segment_rows)


def left(folder: Path) -> list[Leftover]:
    """What somebody else finds there."""
    return list(a_spool(folder, "finder").left_behind())


def names(found: Sequence[Leftover]) -> list[str]:
    return [decision.decision_id for one in found for decision in one.decisions]


def dies(spool: Spool) -> None:
    """Let go of the locks as a process that ends does, and do nothing else."""
    for segment in spool._segments:
        os.close(segment.descriptor)


def test_a_decision_comes_back_as_it_was(tmp_path: Path) -> None:
    decisions = [a_decision(number) for number in range(8)]
    spool = a_spool(tmp_path)
    spool.add(decisions[:2])
    spool.add(decisions[2:])
    dies(spool)
    found = [decision for one in left(tmp_path) for decision in one.decisions]
    assert decisions_to_batch(found).equals(decisions_to_batch(decisions))
    assert [d.decided_at for d in found] == [d.decided_at for d in decisions]


def test_files_of_one_that_lives_are_left_alone(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    spool.add([a_decision(1)])
    assert left(tmp_path) == []
    dies(spool)
    first = left(tmp_path)
    assert names(first) == ["d1"]
    assert left(tmp_path) == [], "two must not take over the same at once"
    first[0].release()
    again = left(tmp_path)
    assert names(again) == ["d1"], "given back, it is there for the next"
    again[0].done()
    assert list(tmp_path.iterdir()) == []


@given(
    st.lists(st.tuples(st.sampled_from("as"), st.integers(1, 5)), max_size=30), st.integers(1, 4)
)
@settings(max_examples=60, deadline=None)
def test_what_is_left_holds_all_that_is_not_stored_and_little_else(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], segment_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool, made, stored = a_spool(folder, segment_rows=segment_rows), 0, 0
    for step, number in steps:
        if step == "a":
            spool.add([a_decision(made + one) for one in range(number)])
            made += number
        else:
            number = min(number, made - stored)
            spool.stored(number)
            stored += number
    dies(spool)
    found = names(left(folder))
    wanted = [f"d{number}" for number in range(stored, made)]
    assert found[len(found) - len(wanted) :] == wanted
    assert len(found) - len(wanted) < segment_rows + 5, "no more than the file being written"


def test_a_replica_that_is_killed_leaves_all_it_answered(tmp_path: Path) -> None:
    code = """
    import sys
    from pathlib import Path
    from test_spool import a_decision
    from services.spool import Spool
    spool = Spool(Path(sys.argv[1]), owner="killed", failed=sys.exit)
    number = 0
    while True:
        spool.add([a_decision(number)])
        print(number, flush=True)
        number += 1
    """
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "support"), str(here.parents[1])]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    answered = [process.stdout.readline().decode().strip() for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    answered += process.stdout.read().decode().split()
    process.wait()
    found = names(left(tmp_path))
    assert answered[0] == "0"
    assert [f"d{number}" for number in answered] == found[: len(answered)]


def test_half_a_record_at_the_end_is_nobody_s(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    spool.add([a_decision(1)])
    spool.add([a_decision(2)])
    [path] = tmp_path.glob("*.spool")
    os.truncate(path, path.stat().st_size - 7)
    dies(spool)
    assert names(left(tmp_path)) == ["d1"]


def test_what_another_release_wrote_is_put_aside(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    spool.add([a_decision(1)])
    [path] = tmp_path.glob("*.spool")
    record = path.read_bytes()
    dies(spool)

    other = msgpack.packb((2, "d1"))
    path.write_bytes(len(other).to_bytes(4, "big") + zlib.crc32(other).to_bytes(4, "big") + other)
    assert left(tmp_path) == []
    [kept] = tmp_path.iterdir()
    assert kept.suffix == ".damaged"
    assert record not in kept.read_bytes()


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Let the kernel write up to there and refuse the rest, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_counted_and_decisions_go_on(tmp_path: Path) -> None:
    failures: list[int] = []
    spool = Spool(tmp_path, owner="a", failed=lambda: failures.append(1), segment_rows=3)
    spool.add([a_decision(1)])
    [path] = tmp_path.iterdir()
    with files_no_longer_than(path.stat().st_size + 5):
        spool.add([a_decision(2)])
    with files_no_longer_than(5):
        spool.add([a_decision(3)])
    spool.add([a_decision(4)])
    assert len(failures) == 2
    # The ledger takes them in their order, those in no file as well.
    spool.stored(3)
    dies(spool)
    assert names(left(tmp_path)) == ["d4"]


def test_others_cannot_read_it(tmp_path: Path) -> None:
    spool = a_spool(tmp_path / "spool")
    spool.add([a_decision(1)])
    [path] = (tmp_path / "spool").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


def a_recorder(folder: Path, owner: str, ledger: FakeAggregator) -> Recorder:
    return Recorder(
        ledger,
        flush_interval_s=0.001,
        capacity=10_000,
        when_full="wait",
        metrics=ReplicaMetrics(),
        spool=a_spool(folder, owner, segment_rows=100),
        look_every_s=0.01,
    )


def stored(ledger: FakeAggregator) -> list[str]:
    return [name for batch in ledger.batches for name in batch["decision_id"].to_pylist()]


async def until_stored(ledger: FakeAggregator, number: int) -> None:
    async with asyncio.timeout(30):
        while len(set(stored(ledger))) < number:
            await asyncio.sleep(0.001)


def test_another_replica_records_what_one_that_died_had_not(tmp_path: Path) -> None:
    """The ledger is away while it dies, which is when it has most to lose."""
    decisions = [a_decision(number) for number in range(2 * BATCH_ROWS + 5)]
    ledger = FakeAggregator()

    async def main() -> None:
        ledger.away = True
        first = a_recorder(tmp_path, "first", ledger)
        first.start()
        await first.add(decisions)
        assert first._spool is not None and first._task is not None
        first._task.cancel()
        dies(first._spool)
        second = a_recorder(tmp_path, "second", ledger)
        second.start()
        await asyncio.sleep(0.05)
        ledger.away = False
        await until_stored(ledger, len(decisions))
        assert await second.drain(timeout_s=10) == 0

    asyncio.run(main())
    assert stored(ledger) == [decision.decision_id for decision in decisions]
    assert list(tmp_path.glob("second*")) == []


def test_a_stop_while_the_ledger_is_away_leaves_all_to_the_next_start(tmp_path: Path) -> None:
    decisions = [replace(a_decision(number), deferred=False) for number in range(5)]
    ledger = FakeAggregator()

    async def main() -> None:
        ledger.away = True
        first = a_recorder(tmp_path, "first", ledger)
        first.start()
        await first.add(decisions)
        assert await first.drain(timeout_s=0.05) == len(decisions)
        ledger.away = False
        second = a_recorder(tmp_path, "second", ledger)
        second.start()
        await until_stored(ledger, len(decisions))
        assert await second.drain(timeout_s=10) == 0

    asyncio.run(main())
    assert stored(ledger) == [decision.decision_id for decision in decisions]
    assert list(tmp_path.iterdir()) == []


def test_a_stop_in_order_leaves_no_file(tmp_path: Path) -> None:
    ledger = FakeAggregator()

    async def main() -> None:
        recorder = a_recorder(tmp_path, "only", ledger)
        recorder.start()
        for number in range(250):
            await recorder.add([a_decision(number)])
        assert await recorder.drain(timeout_s=10) == 0

    asyncio.run(main())
    assert len(stored(ledger)) == 250
    assert list(tmp_path.iterdir()) == []
