"""A byte of the ledger's file that is not what it was: told as the ledger's, in our words."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from clock import START_S, Clock
from ledgers import TENANT, batch, open_ledger, priced

from pipelines.ledger import Ledger
from policies.errors import RouterError
from policies.interaction import Outcome

FLIPS = 20
PAGE = 4096


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a ledger that was closed in order."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    ledger = open_ledger(f"sqlite:///{path}", Clock())
    ledger.change_prices(priced)
    use(ledger, first=0)
    ledger.close()
    return path.read_bytes()


def use(ledger: Ledger, *, first: int) -> None:
    """Do with a ledger what a service does."""
    names = [f"d{number}" for number in range(first, first + 40)]
    ledger.record([batch(names, at=START_S)])
    ledger.submit([(TENANT, Outcome(decision_id=n, quality=0.5, cost_usd=0.1)) for n in names])
    ledger.check()
    ledger.prices()
    ledger.counts()
    ledger.mature_expired()
    assert len(ledger.interactions(0, 1000)) >= len(names)
    assert ledger.decision("d0") is not None


def tried(path: Path) -> str | None:
    """Use a damaged ledger; return our complaint, None where it can be used."""
    ledger = None
    try:
        ledger = open_ledger(f"sqlite:///{path}", Clock())
        use(ledger, first=1000)
    except RouterError as error:
        return str(error)
    finally:
        if ledger is not None:
            ledger.close()
    return None


def test_a_flipped_byte_is_a_complaint_of_ours_or_does_no_harm(
    whole: bytes, tmp_path: Path
) -> None:
    rng, told = random.Random(0), 0
    # Bytes of the header and of the pages' own heads, where they break most; and any.
    heads = [page * PAGE + rng.randrange(12) for page in range(len(whole) // PAGE)]
    positions = [*range(0, 100, 7), *heads, *(rng.randrange(len(whole)) for _ in range(FLIPS))]
    for number, position in enumerate(positions):
        content = bytearray(whole)
        content[position] ^= 1 << rng.randrange(8)
        path = tmp_path / f"{number}.db"
        path.write_bytes(content)
        complaint = tried(path)
        if complaint is not None:
            told += 1
            assert "ledger" in complaint, (position, complaint)
        path.unlink()
    assert told >= 5, "most heads of pages are not what they were"


def test_a_file_cut_off_anywhere_is_told_as_the_ledgers(whole: bytes, tmp_path: Path) -> None:
    for number, share in enumerate((0.2, 0.5, 0.9)):
        path = tmp_path / f"{number}.db"
        path.write_bytes(whole[: int(len(whole) * share)])
        complaint = tried(path)
        assert complaint is not None and "ledger" in complaint
