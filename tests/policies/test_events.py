"""An event says what it may and no more."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import InvalidRequest
from policies.events import MAX_DETAILS, MAX_WORDS, PRIVATE, Event, EventKind, Scalar

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=1000)


@given(
    kind=st.sampled_from(EventKind),
    why=st.text(max_size=2000),
    details=st.dictionaries(st.from_regex(r"detail_[a-z]{1,9}", fullmatch=True), SCALARS),
)
def test_every_event_is_bounded_json_and_comes_back(
    kind: EventKind, why: str, details: dict[str, Scalar]
) -> None:
    event = Event.now(kind, now=0.0, who="ann", why=why, version=1, **dict(list(details.items())))

    text = json.dumps(event.to_json(), allow_nan=False)

    assert Event.from_json(json.loads(text)) == event
    assert len(event.why) <= MAX_WORDS
    assert all(len(v) <= MAX_WORDS for v in event.details.values() if isinstance(v, str))


@pytest.mark.parametrize("name", [*sorted(PRIVATE), "Prompt", "a b", ""])
def test_private_or_odd_details_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Event(kind=EventKind.TRAINING, who="", why="", at="", details={name: "x"})
    assert refused.value.field == "details"


def test_an_embedding_is_no_detail() -> None:
    values: list[float] = [0.1, 0.2]
    with pytest.raises(InvalidRequest, match="list"):
        Event(kind=EventKind.TRAINING, who="", why="", at="", details={"v": values})  # type: ignore[dict-item]  # what a careless caller does


def test_too_many_details_are_refused() -> None:
    details = {f"d{number}": number for number in range(MAX_DETAILS + 1)}
    with pytest.raises(InvalidRequest, match=str(MAX_DETAILS + 1)):
        Event(kind=EventKind.TRAINING, who="", why="", at="", details=details)


def test_a_number_that_is_none_becomes_null() -> None:
    event = Event.now(EventKind.VERDICT, now=0.0, who="", why="", uplift=math.nan)
    assert event.details == {"uplift": None}


def test_a_kind_that_is_not_listed_is_no_event() -> None:
    with pytest.raises(ValueError, match="party"):
        Event(kind="party", who="", why="", at="")  # type: ignore[arg-type]  # the point
